"""What everybody takes, and what this user takes again."""

from __future__ import annotations

import numpy as np

from tfrec.evaluation import ragged
from tfrec.evaluation.baselines.counts import events
from tfrec.evaluation.ragged import Ragged
from tfrec.evaluation.ranks import Holdout, Scorer


class Popularity:
    """Train events of the item: score(u, i) = count(i)."""

    def fit(self, train: Ragged, n_items: int) -> Popularity:
        """Counts the events of each item in the users' lists."""
        self.counts = events(train, n_items).astype(np.float32)
        return self

    def scorer(self, holdout: Holdout) -> Scorer:
        """The same scores for every query, [b, N+1]."""
        return lambda rows: np.broadcast_to(self.counts, (len(rows), len(self.counts)))


class PersonalFrequency:
    """How often the user took the item before; popularity decides among equals.

    score(u, i) = count(u, i) + count(i) / (1 + max count). Source: arXiv 2109.14233 (GP-TopFreq).
    """

    def fit(self, train: Ragged, n_items: int) -> PersonalFrequency:
        """Counts the events of each item in the users' lists."""
        counts = events(train, n_items)
        self.share = counts / (1 + counts.max())  # below 1; float64, so that a large count leaves it digits
        return self

    def scorer(self, holdout: Holdout) -> Scorer:
        """Counts each query's history, [b, N+1]."""

        def score(rows: np.ndarray) -> np.ndarray:
            history = ragged.take(holdout.history, rows)
            scores = np.tile(self.share, (len(rows), 1))
            np.add.at(scores, (ragged.owners(history), history[0]), 1.0)
            return scores

        return score
