"""Every baseline on one set of train lists, by name and settings."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, lru_cache

import numpy as np

from tfrec.evaluation.baselines.blend import blend
from tfrec.evaluation.baselines.ease import EASE
from tfrec.evaluation.baselines.knn import ItemKNN
from tfrec.evaluation.baselines.popularity import PersonalFrequency, Popularity
from tfrec.evaluation.baselines.text import LastItemText, TextProfile, whiten
from tfrec.evaluation.ragged import Ragged
from tfrec.evaluation.ranks import Holdout, Scorer

Recommender = Callable[[Holdout], Scorer]


class Fits:
    """Fits baselines; a method per name in the table, its arguments are the settings.

    The last EASE is kept, because several names and settings read the same weights.

    Args:
        train: ragged, a list of items per user.
        n_items: N.
        text: float32 [N+1, t], unit rows, row 0 zeros; None when items have no text.
    """

    def __init__(self, train: Ragged, n_items: int, text: np.ndarray | None):
        self.train, self.n_items = train, n_items
        self._text = text
        self._ease = lru_cache(maxsize=1)(lambda l2: EASE(l2).fit(train, n_items))

    def popularity(self) -> Recommender:
        return Popularity().fit(self.train, self.n_items).scorer

    def personal_frequency(self) -> Recommender:
        return PersonalFrequency().fit(self.train, self.n_items).scorer

    def item_knn(self, neighbours: int, shrink: float) -> Recommender:
        return ItemKNN(neighbours, shrink).fit(self.train, self.n_items).scorer

    def ease(self, l2: float) -> Recommender:
        return self._ease(l2).scorer

    def ease_recency(self, l2: float, gamma: float) -> Recommender:
        return lambda holdout: self._ease(l2).scorer(holdout, gamma)

    def text_last_item(self) -> Recommender:
        return LastItemText(self.text).scorer

    def text_profile(self, text_gamma: float, whitened: bool) -> Recommender:
        profile = TextProfile(self.whitened if whitened else self.text)
        return lambda holdout: profile.scorer(holdout, text_gamma)

    def ease_recency_text(
        self, l2: float, gamma: float, text_gamma: float, whitened: bool, weight: float
    ) -> Recommender:
        ease, text = self.ease_recency(l2, gamma), self.text_profile(text_gamma, whitened)
        return lambda holdout: blend(ease(holdout), text(holdout), weight)

    @property
    def text(self) -> np.ndarray:
        assert self._text is not None
        return self._text

    @cached_property
    def whitened(self) -> np.ndarray:
        return whiten(self.text)
