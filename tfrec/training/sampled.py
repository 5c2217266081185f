"""Scores of a part of a large catalogue, enough to choose the weights of a blend on."""

from __future__ import annotations

import numpy as np

from tfrec.evaluation import ragged
from tfrec.evaluation.ragged import Ragged
from tfrec.evaluation.ranks import Holdout, Scorer
from tfrec.training.neighbours import Neighbours

_FLOATS = 2**24


class Sample:
    """Every target of some queries and other items drawn at random: column c is item ``items[c]``, column 0 padding.

    Args:
        holdout: the queries.
        items: N of the catalogue.
        columns: items of the sample at most, more if there are more targets.
    """

    def __init__(self, holdout: Holdout, items: int, columns: int):
        targets = np.unique(holdout.targets[0])
        others = np.setdiff1d(np.arange(1, items + 1), targets)
        drawn = np.random.default_rng(0).permutation(others)[: max(columns - len(targets), 0)]
        self.items = np.concatenate([[0], np.union1d(targets, drawn)]).astype(np.int32)
        self._place = np.zeros(items + 1, np.int32)
        self._place[self.items] = np.arange(len(self.items))

    def place(self, items: np.ndarray) -> np.ndarray:
        """Columns of items of any shape; 0 where an item is not in the sample."""
        return self._place[items]

    def holdout(self, holdout: Holdout) -> Holdout:
        """The queries over columns; what is masked and not in the sample is left out."""
        return Holdout(holdout.users, holdout.history, self._lists(holdout.targets), self._lists(holdout.mask))

    def scores(self, scorer: Scorer, rows: np.ndarray) -> np.ndarray:
        """The scorer's columns, a few rows at a time, float32 [R, C+1]."""
        step = max(_FLOATS // len(self._place), 1)
        return np.concatenate([scorer(rows[i : i + step])[:, self.items] for i in range(0, len(rows), step)])

    def text(self, history: np.ndarray, weights: np.ndarray, vectors: np.ndarray) -> np.ndarray:
        """Products of weighted histories [Q, L] with vectors [N+1, t], float32 [Q, C+1]."""
        profiles = [weight @ vectors[items] for items, weight in zip(history, weights, strict=True)]
        return np.stack(profiles) @ vectors[self.items].T

    def linear(self, history: np.ndarray, weights: np.ndarray, near: Neighbours) -> np.ndarray:
        """Weighted sums of the neighbours of histories [Q, L], float32 [Q, C+1]."""
        out = np.zeros((len(history), len(self.items)), np.float32)
        for row, items, weight in zip(out, history, weights, strict=True):
            values = (near.values[items] * weight[:, None]).ravel()
            row += np.bincount(self.place(near.ids[items]).ravel(), values, len(self.items))
        out[:, 0] = 0
        return out

    def _lists(self, lists: Ragged) -> Ragged:
        place = self.place(lists[0])
        counts = np.bincount(ragged.owners(lists)[place > 0], minlength=len(lists[1]) - 1)
        return place[place > 0], np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def recency(history: np.ndarray, decay: float, distinct: bool) -> np.ndarray:
    """γ^age float32 [Q, L], 0 at padding and, where only the last place of an item counts, at its earlier ones."""
    weights = decay ** np.arange(history.shape[1] - 1, -1, -1.0) * (history > 0)
    if distinct:
        for row, weight in zip(history, weights, strict=True):
            last = len(row) - 1 - np.unique(row[::-1], return_index=True)[1]
            weight[np.setdiff1d(np.arange(len(row)), last)] = 0
    return weights.astype(np.float32)
