"""The linear autoencoder in closed form."""

from __future__ import annotations

import numpy as np

from tfrec.evaluation import ragged
from tfrec.evaluation.baselines.counts import co_occurrence, refuse_large
from tfrec.evaluation.baselines.history import weighted_sum
from tfrec.evaluation.ragged import Ragged
from tfrec.evaluation.ranks import Holdout, Scorer

_BLOCK = 512


class EASE:
    """Items weighed by a linear autoencoder without self-similarity: score(u) = x_u B.

    B_ij = -P_ij / P_jj for i ≠ j, 0 on the diagonal, with P = (XᵀX + l2 I)⁻¹ and X the 0/1 matrix of users × items.
    x_u is the history, or with γ < 1 the history weighted by γ^age. Source: Steck 2019, arXiv 1905.03375.

    B is dense: fit and scorer hold one N × N matrix of float32, 1.6 GB at 20,000 items.

    Args:
        l2: the ridge penalty.
    """

    def __init__(self, l2: float):
        self.l2 = l2

    def fit(self, train: Ragged, n_items: int) -> EASE:
        """Solves for B, N³ operations.

        Raises:
            TrainingError: more items than memory and time allow.
        """
        refuse_large(n_items)
        p = np.empty((n_items + 1, n_items + 1), np.float32)
        for rows, both in co_occurrence(train, n_items):
            p[rows] = both
        diagonal = np.diag_indices(n_items + 1)
        p[diagonal] += self.l2
        invert(p)
        p /= -p[diagonal]  # the sign of p does not matter
        p[diagonal] = 0
        self.weights = p
        return self

    def scorer(self, holdout: Holdout, gamma: float = 1.0) -> Scorer:
        """Scores each query's history, [b, N+1].

        Args:
            holdout: the queries.
            gamma: γ in (0, 1]; 1 is EASE as published.
        """
        return lambda rows: weighted_sum(ragged.take(holdout.history, rows), self.weights, gamma)


def invert(matrix: np.ndarray) -> None:
    """Turns a symmetric positive definite matrix into minus its inverse, in place.

    The sweep operator by blocks, on the lower triangle: N³ operations, nearly all in matrix products, and no second
    matrix. Source: Goodnight 1979, doi 10.1080/00031305.1979.10482685.
    """
    n = len(matrix)
    blocks = [slice(low, min(low + _BLOCK, n)) for low in range(0, n, _BLOCK)]
    for block in blocks:
        column = np.concatenate([matrix[block, : block.start].T, matrix[block.start :, block]])  # [n, block]
        pivot = np.linalg.inv(column[block].astype(np.float64)).astype(matrix.dtype)
        swept = column @ pivot
        for part in blocks:
            matrix[part, : part.stop] -= swept[part] @ column[: part.stop].T
        matrix[block, : block.start] = swept[: block.start].T
        matrix[block.stop :, block] = swept[block.stop :]
        matrix[block, block] = -pivot
    for block in blocks:
        matrix[: block.start, block] = matrix[block, : block.start].T
