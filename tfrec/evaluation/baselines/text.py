"""Items whose text is near the history's."""

from __future__ import annotations

import numpy as np

from tfrec.evaluation import ragged
from tfrec.evaluation.baselines.history import weighted_sum
from tfrec.evaluation.ranks import Holdout, Scorer


class LastItemText:
    """Cosine to the text of the last item: score(u, i) = e_i · e_last.

    Args:
        text: float32 [N+1, t], unit rows, row 0 zeros.
    """

    def __init__(self, text: np.ndarray):
        self.text = text

    def scorer(self, holdout: Holdout) -> Scorer:
        """Cosines to each query's last item, [b, N+1]; zeros for an empty history."""

        def score(rows: np.ndarray) -> np.ndarray:
            values, offsets = ragged.take(holdout.history, rows)
            last = np.zeros(len(rows), np.int64)
            some = np.diff(offsets) > 0
            last[some] = values[offsets[1:][some] - 1]
            return self.text[last] @ self.text.T

        return score


class TextProfile:
    """Cosine to a profile that forgets: score(u, i) = e_i · Σ over history items j of γ^age(j) e_j.

    Args:
        text: float32 [N+1, t], unit rows, row 0 zeros.
    """

    def __init__(self, text: np.ndarray):
        self.text = text

    def scorer(self, holdout: Holdout, gamma: float) -> Scorer:
        """Scores each query's profile, [b, N+1].

        Args:
            holdout: the queries.
            gamma: γ in (0, 1].
        """
        return lambda rows: weighted_sum(ragged.take(holdout.history, rows), self.text, gamma) @ self.text.T
