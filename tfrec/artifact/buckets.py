"""Vectors in buckets, by k-means, so that a query need look into few of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MOST = 512  # items of a bucket
SURE = 4  # buckets from whose products the others' distance is counted
_BRANCH = 128  # clusters that a set is split into at a time
_SAMPLE = 256  # rows a cluster that k-means learns from
_STEPS = 8
_PASSES = 5  # over all items with all centroids
_ASKED = 500  # queries at least that a distance is counted with, if there are so many
_ROUNDING = 1e-5  # of products
_BEYOND = 3.0  # products of unit vectors are at most 2 apart
_SCORES = 2**23  # floats of scores at a time


@dataclass(frozen=True)
class Buckets:
    """Which items lie together.

    Args:
        centroids: float32 [P, d] unit vectors, the directions of their means.
        items: int32 [n] rows of the catalogue, each of them once, bucket after bucket.
        starts: int32 [P+1]; bucket p holds items[starts[p] : starts[p+1]].
    """

    centroids: np.ndarray
    items: np.ndarray
    starts: np.ndarray

    @property
    def sizes(self) -> np.ndarray:
        return np.diff(self.starts)

    @property
    def labels(self) -> np.ndarray:
        """The bucket of each of ``items``, int [n]."""
        return np.repeat(np.arange(len(self.centroids)), self.sizes)


def build(vectors: np.ndarray, items: np.ndarray, size: int, seed: int = 0) -> Buckets:
    """Clusters items.

    k-means splits a set of n into n / size clusters, at most 128 at a time, and each of these again, until a cluster
    has about ``size`` rows; then, five times, every item goes to the nearest centroid of all, argmax v·c. What is
    larger than 512 is divided by number, so that no query looks at more items a bucket. Vectors of zeros, which are
    near nothing, have buckets of their own. Source: the inverted file of Jégou et al. 2011, doi 10.1109/TPAMI.2010.57.

    Args:
        vectors: float32 [N+1, d].
        items: int32 [n] rows of ``vectors`` that can be found.
        size: rows of a cluster, about.
        seed: of the first centroids.
    """
    some = vectors[items].any(axis=1)
    leaves = _leaves(vectors, items[some], max(size, 1), np.random.default_rng(seed))
    centroids = _unit(np.stack([vectors[leaf].sum(axis=0) for leaf in leaves]))
    if not some.all():  # the first of equal products takes the zeros
        centroids = np.concatenate([np.zeros_like(centroids[:1]), centroids])
    made = Buckets(centroids[:1], items, np.zeros(2, np.int32))
    for _ in range(_PASSES if len(items) else 0):
        present, label = np.unique(_nearest(vectors, items, centroids), return_inverse=True)
        made = _sorted(centroids[present], items, label)
        centroids = _means(made, vectors)
    return _bounded(Buckets(centroids[: len(made.sizes)], made.items, made.starts))


def insert(buckets: Buckets, vectors: np.ndarray, items: np.ndarray) -> Buckets:
    """Puts items into the buckets whose centroids are nearest, argmax v·c; centroids stay.

    Args:
        buckets: hold none of ``items``.
        vectors: float32 [N+1, d].
        items: int32 [n] rows of ``vectors``.
    """
    label = _nearest(vectors, items, buckets.centroids)
    return _bounded(_sorted(buckets.centroids, np.append(buckets.items, items), np.append(buckets.labels, label)))


def remove(buckets: Buckets, items: np.ndarray) -> Buckets:
    """Takes items out."""
    kept = ~np.isin(buckets.items, items)
    return _sorted(buckets.centroids, buckets.items[kept], buckets.labels[kept])


def in_rows(buckets: Buckets, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Items in rows of ``width`` that never cross buckets, int32 [W, width] with 0 in places that are left over.

    Returns:
        the rows, and int32 [P+1]: bucket p has rows starts[p] : starts[p+1].
    """
    starts = np.append(0, np.cumsum(-(-buckets.sizes // width))).astype(np.int32)
    items = np.zeros(starts[-1] * width, np.int32)
    before = np.repeat(starts[:-1] * width - buckets.starts[:-1], buckets.sizes)
    items[before + np.arange(len(buckets.items))] = buckets.items
    return items.reshape(-1, width), starts


def from_rows(centroids: np.ndarray, items: np.ndarray, starts: np.ndarray) -> Buckets:
    """The inverse of :func:`in_rows`."""
    label = np.repeat(np.arange(len(centroids)), np.diff(starts[: len(centroids) + 1]) * items.shape[1])
    return _sorted(centroids, items[items > 0], label[items.reshape(-1) > 0])


def behind(centroids: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """How far behind a query's fourth largest product with a centroid the others are, max(c₄·q - c·q, 0) / |q|.

    Args:
        centroids: float32 [P, d].
        queries: float32 [Q, d].

    Returns:
        float32 [Q, P].
    """
    products = _unit(queries) @ centroids.T
    sure = min(SURE, len(centroids))
    return np.maximum(-np.partition(-products, sure - 1, axis=1)[:, sure - 1, None] - products, 0)


def reaches(centroids: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Distances within which queries have 1 to P buckets on average, float32 [P]; within the last all of them.

    Args:
        centroids: float32 [P, d].
        queries: float32 [Q, d]; of 1,000 and more some are used, 500 at least.
    """
    some = queries[:: max(len(queries) // _ASKED, 1)]
    reach = np.sort(behind(centroids, some), axis=None)[len(some) - 1 :: len(some)]
    reach += _ROUNDING * (reach > 0)  # as the graph computes in another order
    return np.append(reach[: len(centroids) - 1], _BEYOND).astype(np.float32)


def _sorted(centroids: np.ndarray, items: np.ndarray, label: np.ndarray) -> Buckets:
    order = np.argsort(label, kind="stable")
    starts = np.searchsorted(label[order], np.arange(len(centroids) + 1))
    return Buckets(centroids, items[order].astype(np.int32), starts.astype(np.int32))


def _bounded(buckets: Buckets) -> Buckets:
    """Buckets of at most 512, some of which have the same centroid."""
    parts = np.maximum(-(-buckets.sizes // MOST), 1)
    bucket = np.repeat(np.arange(len(parts)), parts)
    part = np.arange(len(bucket)) - np.repeat(np.cumsum(parts) - parts, parts)
    starts = buckets.starts[bucket] + buckets.sizes[bucket] * part // parts[bucket]
    starts = np.append(starts, len(buckets.items)).astype(np.int32)
    return Buckets(buckets.centroids[bucket], buckets.items, starts)


def _means(buckets: Buckets, vectors: np.ndarray) -> np.ndarray:
    """The directions of the sums of buckets, none of which is empty."""
    bounds = zip(buckets.starts[:-1], buckets.starts[1:], strict=True)
    return _unit(np.stack([vectors[buckets.items[low:high]].sum(axis=0) for low, high in bounds]))


def _unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)).astype(np.float32)


def _leaves(vectors: np.ndarray, items: np.ndarray, size: int, random: np.random.Generator) -> list[np.ndarray]:
    """Items in clusters of about ``size``."""
    waiting, leaves = [items], []
    while waiting:
        rows = waiting.pop()
        clusters = min(round(len(rows) / size), _BRANCH)
        if clusters <= 1:
            leaves.append(rows)
            continue
        label = _k_means(vectors, rows, clusters, random)
        order = np.argsort(label, kind="stable")
        parts = np.split(rows[order], np.flatnonzero(np.diff(label[order])) + 1)
        # Vectors in one direction have one centroid: there is no way to divide them.
        waiting, leaves = (waiting + parts, leaves) if len(parts) > 1 else (waiting, [*leaves, rows])
    return leaves


def _k_means(vectors: np.ndarray, rows: np.ndarray, clusters: int, random: np.random.Generator) -> np.ndarray:
    """Spherical k-means on a sample; the cluster of every row, int [n]."""
    known = random.choice(rows, min(len(rows), _SAMPLE * clusters), replace=False)
    centroids = _unit(vectors[known[:clusters]])
    for _ in range(_STEPS):
        label = _nearest(vectors, known, centroids)
        order = np.argsort(label, kind="stable")
        present, starts = np.unique(label[order], return_index=True)
        centroids = centroids.copy()
        centroids[present] = _unit(np.add.reduceat(vectors[known[order]], starts, axis=0))
    return _nearest(vectors, rows, centroids)


def _nearest(vectors: np.ndarray, items: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """The nearest centroid of each item, int [n]."""
    choice = np.empty(len(items), np.int64)
    step = max(_SCORES // len(centroids), 1)
    for low in range(0, len(items), step):
        choice[low : low + step] = (vectors[items[low : low + step]] @ centroids.T).argmax(axis=1)
    return choice
