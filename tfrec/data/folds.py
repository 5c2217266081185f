"""Cross-validation in time: each fold trains on what came before the part that it is measured on."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

UNUSED = 3


def rolling(events: Mapping[str, np.ndarray], folds: int) -> list[np.ndarray]:
    """Splits of a rolling origin, over train and valid; test is never used.

    Each user's n events fall into folds + 1 parts in time, part ⌊place · (folds + 1) / n⌋. Fold i trains on the
    parts before part i and is measured on part i.

    Args:
        events: "user" int32 and "split" int8 [E], sorted by user and time.
        folds: how many.

    Returns:
        int8 [E] for each fold: 0 train, 1 valid, 3 unused.
    """
    usable = events["split"] < 2
    users = events["user"][usable]
    counts = np.bincount(users)
    first = np.cumsum(counts) - counts
    part = np.full(len(usable), folds + 1)
    part[usable] = (np.arange(len(users)) - first[users]) * (folds + 1) // counts[users]
    return [np.where(part < i, 0, np.where(part == i, 1, UNUSED)).astype(np.int8) for i in range(1, folds + 1)]
