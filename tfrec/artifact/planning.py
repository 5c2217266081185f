"""Chooses how the nearest of a catalogue's vectors are found, by its size and a recall that is measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from tfrec.artifact.buckets import Buckets, build
from tfrec.artifact.indexed import Plan
from tfrec.artifact.ivf import Storage

How = Literal["auto", "brute", "ivf"]
FEW = 100_000  # items of which all scores take about 2 ms
NEAREST = 100
_CAP = 128
_PAYS = 0.25  # of the catalogue that is looked at, at most
_SCORES = 2**25


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
    buckets = build(vectors, np.arange(1, items + 1, dtype=np.int32), _CAP)
    nprobe, recall = probes_for(buckets, vectors, queries, wish.recall)
    looked_at = nprobe * _CAP + len(buckets.items)
    about = {
        "buckets": len(buckets.items),
        "bucket_size": _CAP,
        "nprobe": nprobe,
        f"recall@{NEAREST}": round(recall, 4),
        "measured_on": len(queries),
        "storage": wish.storage,
    }
    if wish.how == "auto" and looked_at > _PAYS * items:
        return Plan(), {"kind": "brute", "instead_of": about}
    return Plan(buckets, nprobe, wish.storage), {"kind": "ivf", **about}


def probes_for(buckets: Buckets, vectors: np.ndarray, queries: np.ndarray, target: float) -> tuple[int, float]:
    """The fewest buckets whose items hold the target's share of the 100 nearest, and that share.

    Args:
        buckets: of all items.
        vectors: float32 [N+1, d].
        queries: float32 [Q, d]; without any, all buckets are needed.
        target: in (0, 1].
    """
    if not len(queries):
        return len(buckets.items), 1.0
    bucket_of = np.zeros(len(vectors), np.int64)
    bucket, place = np.nonzero(buckets.items)
    bucket_of[buckets.items[bucket, place]] = bucket
    order = np.argsort(np.argsort(-(queries @ buckets.centroids.T), axis=1), axis=1)
    needed = np.take_along_axis(order, bucket_of[nearest(queries, vectors)], axis=1)  # [Q, 100]
    share = np.cumsum(np.bincount(needed.ravel(), minlength=len(buckets.items))) / needed.size
    nprobe = int(np.searchsorted(share, target - 1e-9)) + 1
    return nprobe, float(share[nprobe - 1])


def nearest(queries: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """The 100 items of the largest products, or all if there are fewer, int [Q, ≤ 100]."""
    count = min(NEAREST, len(vectors) - 1)
    step = max(_SCORES // len(vectors), 1)
    blocks = [queries[low : low + step] @ vectors[1:].T for low in range(0, len(queries), step)]
    return np.concatenate([np.argpartition(-block, count - 1, axis=1)[:, :count] for block in blocks]) + 1
