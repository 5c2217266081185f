"""The linear autoencoder in closed form."""

from __future__ import annotations

import numpy as np

from tfrec.errors import TrainingError
from tfrec.evaluation import ragged
from tfrec.evaluation.baselines.counts import co_occurrence
from tfrec.evaluation.baselines.history import weighted_sum
from tfrec.evaluation.ragged import Ragged
from tfrec.evaluation.ranks import Holdout, Scorer

MOST_ITEMS = 20_000
_EXACT_ITEMS = 5_000  # up to here float64 costs little
_BLOCK = 512


class EASE:
    """Items weighed by a linear autoencoder without self-similarity: score(u) = x_u B.

    B_ij = -P_ij / P_jj for i ≠ j, 0 on the diagonal, with P = (XᵀX + l2 I)⁻¹ and X the 0/1 matrix of users × items.
    x_u is the history, or with γ < 1 the history weighted by γ^age. Source: Steck 2019, arXiv 1905.03375.

    B is dense: fit takes one N × N matrix of float32 (float64 for few items), 1.6 GB at 20,000 items.

    Args:
        l2: the ridge penalty.
    """

    def __init__(self, l2: float):
        self.l2 = l2

    def fit(self, train: Ragged, n_items: int) -> EASE:
        """Solves for B, 2 N³ operations.

        Raises:
            TrainingError: more items than memory and time allow.
        """
        if n_items > MOST_ITEMS:
            raise TrainingError(f"EASE needs at most {MOST_ITEMS} items", n_items)
        p = np.empty((n_items + 1, n_items + 1), np.float64 if n_items <= _EXACT_ITEMS else np.float32)
        for rows, both in co_occurrence(train, n_items):
            p[rows] = both
        diagonal = np.diag_indices(n_items + 1)
        p[diagonal] += self.l2
        invert(p)
        p /= -p[diagonal]
        p[diagonal] = 0
        self.weights = p.astype(np.float32, copy=False)
        return self

    def scorer(self, holdout: Holdout, gamma: float = 1.0) -> Scorer:
        """Scores each query's history, [b, N+1].

        Args:
            holdout: the queries.
            gamma: γ in (0, 1]; 1 is EASE as published.
        """
        return lambda rows: weighted_sum(ragged.take(holdout.history, rows), self.weights, gamma)


def invert(matrix: np.ndarray) -> None:
    """Inverts a symmetric positive definite matrix in place, by blocks of the sweep operator.

    A quarter fewer operations than np.linalg.inv and no second or third matrix.
    """
    n = len(matrix)
    for low in range(0, n, _BLOCK):
        block = slice(low, min(low + _BLOCK, n))
        pivot = np.linalg.inv(matrix[block, block].astype(np.float64)).astype(matrix.dtype)
        column = matrix[:, block].copy()
        column[block] = 0
        row = pivot @ matrix[block]
        for first in range(0, n, _BLOCK):
            part = slice(first, min(first + _BLOCK, n))
            matrix[part] -= column[part] @ row
        matrix[block] = row
        matrix[:, block] = -column @ pivot
        matrix[block, block] = pivot
