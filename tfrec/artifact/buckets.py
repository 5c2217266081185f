"""Vectors in buckets of bounded size, by k-means, so that a query need look into few of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

FULL = 0.9  # share of a new bucket that is meant to be taken, so that items can be inserted
_BRANCH = 128  # clusters that a set is split into at a time
_SAMPLE = 256  # rows a cluster that k-means learns from
_STEPS = 8
_PASSES = 2
_TRIES = 8  # nearest buckets that an item may go to
_SCORES = 2**23  # floats of scores at a time


@dataclass(frozen=True)
class Buckets:
    """Which items lie together.

    Args:
        centroids: float32 [P, d] unit vectors, the directions of their means.
        items: int32 [P, cap] rows of the catalogue, each of them at most once; what is left of a bucket is 0.
    """

    centroids: np.ndarray
    items: np.ndarray

    def joined(self, other: Buckets) -> Buckets:
        return Buckets(np.concatenate([self.centroids, other.centroids]), np.concatenate([self.items, other.items]))


def build(vectors: np.ndarray, items: np.ndarray, cap: int, seed: int = 0) -> Buckets:
    """Clusters items, and fills every bucket with what is nearest until it is full.

    k-means splits a set of n into n / 0.9 cap clusters, at most 128 at a time, and each of these again, until a
    cluster has about 0.9 cap rows. Then :func:`insert`. Source: the inverted file of Jégou et al. 2011, doi
    10.1109/TPAMI.2010.57; buckets are bounded because a graph of dense tensors pads them all to the largest.

    Args:
        vectors: float32 [N+1, d].
        items: int32 [n] rows of ``vectors`` that can be found.
        cap: most items of a bucket.
        seed: of the first centroids.
    """
    leaves = _leaves(vectors, items, max(int(cap * FULL), 1), np.random.default_rng(seed))
    buckets = _packed(leaves, vectors, cap)
    for _ in range(_PASSES):
        buckets = insert(Buckets(buckets.centroids, np.zeros_like(buckets.items)), vectors, items)
        buckets = _with_means(buckets, vectors)
    return buckets


def insert(buckets: Buckets, vectors: np.ndarray, items: np.ndarray) -> Buckets:
    """Puts items into the bucket with room whose centroid is nearest, argmax v·c.

    What finds none among the 8 nearest gets buckets of its own, appended.

    Args:
        buckets: hold none of ``items``.
        vectors: float32 [N+1, d].
        items: int32 [n] rows of ``vectors``.
    """
    table, cap = buckets.items.copy(), buckets.items.shape[1]
    used = np.count_nonzero(table, axis=1)
    tried = np.empty((len(items), 0), np.int64)
    for _ in range(min(_TRIES, len(table))):
        if not len(items):
            break
        choice, score = _nearest(vectors, items, buckets.centroids, tried)
        order = np.lexsort((-score, choice))  # by bucket, the nearest item first
        bucket = choice[order]
        place = used[bucket] + np.arange(len(order)) - np.searchsorted(bucket, bucket)
        fits = place < cap
        table[bucket[fits], place[fits]] = items[order[fits]]
        used = np.count_nonzero(table, axis=1)
        left = order[~fits]
        items, tried = items[left], np.concatenate([tried[left], choice[left, None]], axis=1)
    filled = Buckets(buckets.centroids, table)
    if not len(items):
        return filled
    leaves = _leaves(vectors, items, max(int(cap * FULL), 1), np.random.default_rng(0))
    return filled.joined(_packed(leaves, vectors, cap))


def remove(buckets: Buckets, items: np.ndarray) -> Buckets:
    """Takes items out; the others of their buckets move up."""
    table = np.where(np.isin(buckets.items, items), 0, buckets.items)
    order = np.argsort(table == 0, axis=1, kind="stable")
    return Buckets(buckets.centroids, np.take_along_axis(table, order, axis=1))


def _packed(leaves: list[np.ndarray], vectors: np.ndarray, cap: int) -> Buckets:
    """A bucket for each set of items, or as many as it fills."""
    parts = [part for leaf in leaves for part in np.array_split(leaf, max(-(-len(leaf) // cap), 1))]
    table = np.stack([np.pad(part, (0, cap - len(part))) for part in parts]).astype(np.int32)
    return _with_means(Buckets(np.zeros((len(table), vectors.shape[1]), np.float32), table), vectors)


def _with_means(buckets: Buckets, vectors: np.ndarray) -> Buckets:
    """The buckets that hold something, each with the direction of its items' sum."""
    table = buckets.items[buckets.items[:, 0] > 0] if buckets.items.any() else buckets.items[:1]
    sums = [vectors[row[row > 0]].sum(axis=0) for row in table]
    return Buckets(_unit(np.stack(sums)), table)


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
        # Equal vectors have one centroid: there is no better way to divide them than by number.
        waiting += parts if len(parts) > 1 else np.array_split(rows, clusters)
    return leaves


def _k_means(vectors: np.ndarray, rows: np.ndarray, clusters: int, random: np.random.Generator) -> np.ndarray:
    """Spherical k-means on a sample; the cluster of every row, int [n]."""
    known = random.choice(rows, min(len(rows), _SAMPLE * clusters), replace=False)
    centroids = _unit(vectors[known[:clusters]])
    nothing = np.empty((len(known), 0), np.int64)
    for _ in range(_STEPS):
        label, _ = _nearest(vectors, known, centroids, nothing)
        order = np.argsort(label, kind="stable")
        present, starts = np.unique(label[order], return_index=True)
        centroids = centroids.copy()
        centroids[present] = _unit(np.add.reduceat(vectors[known[order]], starts, axis=0))
    return _nearest(vectors, rows, centroids, np.empty((len(rows), 0), np.int64))[0]


def _nearest(
    vectors: np.ndarray, items: np.ndarray, centroids: np.ndarray, tried: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest centroid of each item but for those that were tried, and v·c."""
    choice, score = np.empty(len(items), np.int64), np.empty(len(items), np.float32)
    step = max(_SCORES // len(centroids), 1)
    for low in range(0, len(items), step):
        block = slice(low, low + step)
        scores = vectors[items[block]] @ centroids.T
        np.put_along_axis(scores, tried[block], -np.inf, axis=1)
        choice[block] = scores.argmax(axis=1)
        score[block] = np.take_along_axis(scores, choice[block, None], axis=1)[:, 0]
    return choice, score
