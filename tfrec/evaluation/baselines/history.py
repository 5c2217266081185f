"""Weighted sums of rows over the items of a history."""

from __future__ import annotations

import math

import numpy as np

from tfrec.evaluation import ragged
from tfrec.evaluation.ragged import Ragged

_NEGLIGIBLE = 1e-6


def weighted_sum(history: Ragged, matrix: np.ndarray, gamma: float = 1.0) -> np.ndarray:
    """Σ over distinct items i of γ^age(i) · matrix[i]; age counts the events after the last one with i.

    Args:
        history: b lists of items, oldest first.
        matrix: float32 [N+1, d], row 0 zeros.
        gamma: γ in (0, 1]; 1 forgets the order.

    Returns:
        float32 [b, d].
    """
    items, row, age = history[0], ragged.owners(history), ragged.ages(history)
    # What weighs almost nothing is left out: it costs time, and float32 denormals cost much of it.
    kept = age * math.log(gamma) >= math.log(_NEGLIGIBLE)
    used, column = np.unique(items[kept], return_inverse=True)
    weights = np.zeros((len(history[1]) - 1, len(used)), np.float32)
    np.maximum.at(weights, (row[kept], column), (gamma ** age[kept]).astype(np.float32))
    return weights @ matrix[used]
