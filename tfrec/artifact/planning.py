"""Chooses how the nearest of a catalogue's vectors are found, by its size and a recall that is measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from tfrec.artifact.buckets import Buckets, build
from tfrec.artifact.indexed import Plan
from tfrec.artifact.ivf import SURE, Storage

How = Literal["auto", "brute", "ivf"]
FEW = 100_000  # items of which all scores take about 2 ms
NEAREST = 100
SIZE = 90  # items of a bucket, about
_PAYS = 0.25  # of the catalogue that is looked at, at most
_SCORES = 2**25
_WIDER = (1.25, 1.5, 2, 3)  # buckets at most, if only near ones are looked into: times what is needed otherwise


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
    storage: Storage = "float32"


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
    probes = probes_for(buckets, vectors, queries, wish.recall)
    about = {
        "buckets": len(buckets.centroids),
        "nprobe": probes.nprobe,
        "looked_at": round(probes.looked_at),
        f"recall@{NEAREST}": round(probes.recall, 4),
        "measured_on": len(queries),
        "storage": wish.storage,
    }
    if wish.how == "auto" and probes.looked_at + len(buckets.centroids) > _PAYS * items:
        return Plan(), {"kind": "brute", "instead_of": about}
    return Plan(buckets, probes.nprobe, wish.storage, probes.reach), {"kind": "ivf", **about}


class Probes(NamedTuple):
    """How far a query looks, see :class:`tfrec.artifact.ivf.IVF`, and what that gives.

    Args:
        nprobe, reach: of the index.
        recall: share of the 100 nearest that is found.
        looked_at: items for a query on average.
    """

    nprobe: int
    reach: float | None
    recall: float
    looked_at: float


def probes_for(buckets: Buckets, vectors: np.ndarray, queries: np.ndarray, target: float) -> Probes:
    """Among settings that find the target's share of the 100 nearest, that of the fewest items looked at.

    Args:
        buckets: of all items.
        vectors: float32 [N+1, d].
        queries: float32 [Q, d]; without any, all buckets are needed.
        target: in (0, 1].
    """
    count = len(buckets.centroids)
    if not len(queries):
        return Probes(count, None, 1.0, float(len(buckets.items)))
    scores = (queries / np.maximum(np.linalg.norm(queries, axis=1, keepdims=True), 1e-12)) @ buckets.centroids.T
    order = np.argsort(-scores, axis=1, kind="stable")
    scores = np.take_along_axis(scores, order, axis=1)
    behind = np.maximum(scores[:, min(SURE, count) - 1, None] - scores, 0)  # [Q, P], by rank
    bucket_of = np.zeros(len(vectors), np.int64)
    bucket_of[buckets.items] = buckets.labels
    wanted = bucket_of[nearest(queries, vectors)]  # [Q, 100]
    rank = np.take_along_axis(np.argsort(order, axis=1), wanted, axis=1)
    gap = np.take_along_axis(behind, rank, axis=1)
    need = int(np.ceil(target * rank.size - 1e-6))
    least = int(np.sort(rank, axis=None)[need - 1]) + 1
    sizes = buckets.sizes[order]
    plain = Probes(least, None, float(np.mean(rank < least)), float(sizes[:, :least].sum(axis=1).mean()))
    tried = [plain]
    for nprobe in {min(int(least * times), count) for times in _WIDER} - set(range(SURE + 1)):
        # A little more than the gap, as the graph computes in another order.
        margin = float(np.sort(gap[rank < nprobe])[need - 1]) + 1e-5
        looked_at = (sizes * (behind <= margin))[:, :nprobe].sum(axis=1).mean()
        recall = np.mean((rank < nprobe) & (gap <= margin))
        tried.append(Probes(nprobe, margin / nprobe, float(recall), float(looked_at)))
    return min(tried, key=lambda probes: probes.looked_at)


def nearest(queries: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """The 100 items of the largest products, or all if there are fewer, int [Q, ≤ 100]."""
    count = min(NEAREST, len(vectors) - 1)
    step = max(_SCORES // len(vectors), 1)
    blocks = [queries[low : low + step] @ vectors[1:].T for low in range(0, len(queries), step)]
    return np.concatenate([np.argpartition(-block, count - 1, axis=1)[:, :count] for block in blocks]) + 1
