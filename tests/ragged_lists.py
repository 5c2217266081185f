"""Ragged lists and holdouts written as Python lists."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tfrec.evaluation.ragged import Ragged
from tfrec.evaluation.ranks import Holdout

Rows = Sequence[Sequence[int]]


def lists(*rows: Sequence[int]) -> Ragged:
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    return np.array([x for row in rows for x in row], np.int32), offsets.astype(np.int64)


def holdout(targets: Rows, mask: Rows | None = None, history: Rows | None = None) -> Holdout:
    """Queries of the users 1, 2, …; histories and masks are empty unless given."""
    users = np.arange(1, len(targets) + 1, dtype=np.int32)
    nothing = [[] for _ in targets]
    return Holdout(users, lists(*(history or nothing)), lists(*targets), lists(*(mask or nothing)))
