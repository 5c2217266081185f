"""What the events of the past say of each item, as numbers that a ranker reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

_NEWEST = 0.1  # share of the events that count as recent


def item_statistics(events: Mapping[str, np.ndarray], items: int, splits: Sequence[int]) -> dict[str, np.ndarray]:
    """Numbers of every item, name -> float32 [N+1], row 0 for the unknown.

        stat.count    log(1 + events)
        stat.again    log((1 + events) / (1 + users)), how often it is taken again
        stat.recent   log(1 + events among the newest tenth), where events have times
        stat.last     when it was last taken, from 0 for the oldest event to 1 for the newest

    each in deviations from its mean over the items with events, so that a longer past reads as a shorter one did.

    Args:
        events: "user", "item", "split" and perhaps "timestamp", [E].
        items: N.
        splits: what is past.
    """
    past = np.isin(events["split"], splits)
    user, item = events["user"][past].astype(np.int64), events["item"][past].astype(np.int64)
    count = np.bincount(item, minlength=items + 1)
    pairs = np.unique(user * (items + 1) + item) % (items + 1)
    users = np.bincount(pairs, minlength=items + 1)
    found = {"count": np.log1p(count), "again": np.log((1 + count) / (1 + users))}
    if "timestamp" in events and len(item):
        time = events["timestamp"][past].astype(np.float64)
        newest = time >= np.quantile(time, 1 - _NEWEST)
        found["recent"] = np.log1p(np.bincount(item[newest], minlength=items + 1))
        last = np.full(items + 1, time.min())
        np.maximum.at(last, item, time)
        found["last"] = (last - time.min()) / max(np.ptp(time), 1.0)
    return {f"stat.{name}": _standard(values, count > 0) for name, values in found.items()}


def _standard(values: np.ndarray, kept: np.ndarray) -> np.ndarray:
    some = values[kept]
    if not len(some):
        return np.zeros(len(values), np.float32)
    deviation = float(some.std())
    return ((values - some.mean()) / (deviation if deviation > 1e-6 else 1.0)).astype(np.float32)
