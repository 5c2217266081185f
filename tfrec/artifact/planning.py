"""Chooses how the nearest of a catalogue's vectors are found, by its size and a recall that is measured."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import tensorflow as tf

from tfrec.artifact.buckets import SURE, Buckets, behind, build, reaches
from tfrec.artifact.indexed import Plan
from tfrec.artifact.ivf import IVF, Found
from tfrec.artifact.stored import Storage

How = Literal["auto", "brute", "ivf"]
FEW = 100_000  # items of which all scores take about 2 ms
NEAREST = 100
SIZE = 130  # items of a bucket, about
_PAYS = 0.25  # of the catalogue that is looked at, at most
_SCORES = 2**25
_CLOSE = 0.01  # to the fewest buckets that find enough


@dataclass(frozen=True)
class Wish:
    """What is asked of an index.

    Args:
        how: "brute" computes all scores; "auto" does so up to 100,000 items, and where an inverted file does not pay.
        recall: share of the 100 nearest that an inverted file finds on average.
        storage: of the vectors in the buckets.
    """

    how: How = "auto"
    recall: float = 0.95
    storage: Storage = "packed"


def make_plan(
    vectors: np.ndarray, queries: np.ndarray, wish: Wish, least: int = FEW
) -> tuple[Plan | None, dict[str, Any]]:
    """A plan, None for plain matrix products, and what the card says of it.

    Args:
        vectors: float32 [N+1, d].
        queries: float32 [Q, d], held out as far as possible: recall is measured on them.
        wish: of the settings.
        least: items above which "auto" thinks of an inverted file.
    """
    items = len(vectors) - 1
    if wish.how == "brute" or (wish.how == "auto" and items <= least):
        plan = Plan() if items > FEW else None
        return plan, {"kind": "brute"}
    buckets = build(vectors, np.arange(1, items + 1, dtype=np.int32), SIZE)
    plan, probes = _reaching(buckets, vectors, queries, wish)
    about = {
        "buckets": len(buckets.centroids),
        "nprobe": probes.nprobe,
        "looked_at": round(probes.looked_at),
        f"recall@{NEAREST}": round(probes.recall, 4),
        "measured_on": len(queries),
        "storage": plan.storage,
    }
    if wish.how == "auto" and probes.looked_at + len(buckets.centroids) > _PAYS * items:
        return Plan(), {"kind": "brute", "instead_of": about}
    return plan, {"kind": "ivf", **about}


def _reaching(buckets: Buckets, vectors: np.ndarray, queries: np.ndarray, wish: Wish) -> tuple[Plan, Probes]:
    """The fewest buckets with which the index itself finds as much as is wished, and what it finds.

    There is a standard error to spare, so that other queries find as much. Where a storage that rounds does not even
    with all buckets, float32 takes its place.
    """
    count = len(buckets.centroids)
    if not len(queries):
        return Plan(buckets, count, wish.storage), Probes(count, 1.0, float(len(buckets.items)))
    tuning = Tuning(buckets, vectors, queries)
    index = IVF(tf.Variable(vectors, trainable=False), buckets, wish.storage, tuning.reach)
    search = tf.function(index.search)
    shares = functools.cache(lambda nprobe: tuning.found_by(search, nprobe))

    def enough(nprobe: int) -> bool:
        return bool(shares(nprobe).mean() - shares(nprobe).std() / np.sqrt(len(queries)) >= wish.recall)

    low, high = min(SURE, count), tuning.nprobe(wish.recall)
    while not enough(high) and high < count:
        low, high = high, min(2 * high, count)
    if not enough(high):
        if wish.storage != "float32":
            return _reaching(buckets, vectors, queries, replace(wish, storage="float32"))
        return Plan(buckets, count, wish.storage, tuning.reach), tuning.probes(count, float(shares(count).mean()))
    while high - low > max(_CLOSE * high, 1):
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return Plan(buckets, high, wish.storage, tuning.reach), tuning.probes(high, float(shares(high).mean()))


class Probes(NamedTuple):
    """How far a query looks, see :class:`tfrec.artifact.ivf.IVF`, and what that gives.

    Args:
        nprobe: buckets to look into, on average.
        recall: share of the 100 nearest that is found.
        looked_at: items for a query on average.
    """

    nprobe: int
    recall: float
    looked_at: float


class Tuning:
    """Queries that say how many buckets are needed.

    Args:
        buckets: of all items.
        vectors: float32 [N+1, d].
        queries: float32 [Q, d], one at least.
    """

    def __init__(self, buckets: Buckets, vectors: np.ndarray, queries: np.ndarray):
        self.queries, self.sizes = queries, buckets.sizes
        self.best = nearest(queries, vectors)
        self.reach = reaches(buckets.centroids, queries)
        self._far = behind(buckets.centroids, queries)
        bucket_of = np.zeros(len(vectors), np.int64)
        bucket_of[buckets.items] = buckets.labels
        self._wanted = np.take_along_axis(self._far, bucket_of[self.best], axis=1)

    def nprobe(self, target: float) -> int:
        """The fewest buckets that hold the target's share, in (0, 1], of the 100 nearest."""
        need = np.sort(self._wanted, axis=None)[int(np.ceil(target * self._wanted.size - 1e-6)) - 1]
        return max(int(np.searchsorted(self.reach, need)) + 1, min(SURE, len(self.reach)))

    def probes(self, nprobe: int, recall: float) -> Probes:
        """What is looked at by queries that find this share."""
        return Probes(nprobe, recall, float(((self._far <= self.reach[nprobe - 1]) @ self.sizes).mean()))

    def found_by(self, search: Callable[..., Found], nprobe: int) -> np.ndarray:
        """The share of its 100 nearest that :meth:`IVF.search` finds for each query, asked one at a time, float [Q]."""
        nothing, count = tf.zeros([1, 0], tf.int32), tf.constant(self.best.shape[1])
        found = [search(tf.constant(query[None]), nothing, count, tf.constant(nprobe))[1] for query in self.queries]
        return np.array([np.isin(row, items).mean() for row, items in zip(self.best, found, strict=True)])


def nearest(queries: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """The 100 items of the largest products, or all if there are fewer, int [Q, ≤ 100]."""
    count = min(NEAREST, len(vectors) - 1)
    step = max(_SCORES // len(vectors), 1)
    blocks = [queries[low : low + step] @ vectors[1:].T for low in range(0, len(queries), step)]
    return np.concatenate([np.argpartition(-block, count - 1, axis=1)[:, :count] for block in blocks]) + 1
