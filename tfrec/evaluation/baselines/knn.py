"""Items taken by the same users."""

from __future__ import annotations

import numpy as np

from tfrec.evaluation import ragged
from tfrec.evaluation.baselines.counts import co_occurrence, distinct, events, refuse_large
from tfrec.evaluation.ragged import Ragged
from tfrec.evaluation.ranks import Holdout, Scorer


class ItemKNN:
    """Item neighbourhoods: score(u, j) = Σ over history items i among j's neighbours of similarity(i, j).

    similarity(i, j) = users with both / (√(users with i · users with j) + shrink).
    Source: Sarwar et al. 2001, doi 10.1145/371920.372071; shrinkage as in arXiv 1907.06902.

    Args:
        neighbours: how many items each item keeps, the nearest.
        shrink: pulls pairs with few users towards zero.
    """

    def __init__(self, neighbours: int, shrink: float):
        self.neighbours, self.shrink = neighbours, shrink

    def fit(self, train: Ragged, n_items: int) -> ItemKNN:
        """Keeps the neighbours of each item; memory is N × neighbours, time grows with N².

        Raises:
            TrainingError: more items than time allows.
        """
        refuse_large(n_items)
        norm = np.sqrt(events(distinct(train, n_items), n_items)).astype(np.float32)
        near, nearness = [], []
        for rows, similar in co_occurrence(train, n_items):
            similar /= np.maximum(norm[rows, None] * norm + self.shrink, 1.0)
            similar[np.arange(len(similar)), np.arange(rows.start, rows.stop)] = 0
            best = np.argpartition(-similar, min(self.neighbours, n_items), axis=1)[:, : self.neighbours]
            near.append(best.astype(np.int32))
            nearness.append(np.take_along_axis(similar, best, axis=1))
        self._index(np.concatenate(near), np.concatenate(nearness))
        return self

    def _index(self, near: np.ndarray, nearness: np.ndarray) -> None:
        """Turns "j's neighbours i" into lists by i: a history item then finds the items it speaks for."""
        item = np.repeat(np.arange(len(near)), near.shape[1])
        order = np.argsort(near.ravel(), kind="stable")
        order = order[nearness.ravel()[order] > 0]
        starts = np.searchsorted(near.ravel()[order], np.arange(len(near) + 1))
        self.items: Ragged = (item[order].astype(np.int32), starts)
        self.similarity: Ragged = (nearness.ravel()[order], starts)

    def scorer(self, holdout: Holdout) -> Scorer:
        """Adds up the neighbourhoods of each query's history, [b, N+1]."""

        def score(rows: np.ndarray) -> np.ndarray:
            history = distinct(ragged.take(holdout.history, rows), len(self.items[1]) - 2)
            items, offsets = ragged.take(self.items, history[0])
            row = np.repeat(ragged.owners(history), np.diff(offsets))
            shape = (len(rows), len(self.items[1]) - 1)
            similarity = ragged.take(self.similarity, history[0])[0]
            sums = np.bincount(row * shape[1] + items, weights=similarity, minlength=shape[0] * shape[1])
            return sums.reshape(shape).astype(np.float32)

        return score
