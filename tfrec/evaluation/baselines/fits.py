"""Every baseline on one set of train lists, by name and settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache

import numpy as np

from tfrec.evaluation.baselines.blend import blend
from tfrec.evaluation.baselines.ease import EASE
from tfrec.evaluation.baselines.knn import ItemKNN
from tfrec.evaluation.baselines.popularity import PersonalFrequency, Popularity
from tfrec.evaluation.baselines.text import LastItemText, TextProfile
from tfrec.evaluation.ragged import Ragged
from tfrec.evaluation.ranks import Holdout, Scorer

Recommender = Callable[[Holdout], Scorer]


class Fits:
    """Fits baselines; a method per name in the table, its arguments are the settings.

    The last EASE is kept, because several names and settings read the same weights.

    Args:
        train: ragged, a list of items per user.
        n_items: N.
        texts: the text embeddings as they are (False) and whitened (True), float32 [N+1, t], unit rows, row 0 zeros.
    """

    def __init__(self, train: Ragged, n_items: int, texts: Mapping[bool, np.ndarray]):
        self.train, self.n_items, self.texts = train, n_items, texts
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
        return LastItemText(self.texts[False]).scorer

    def text_profile(self, text_gamma: float, whitened: bool) -> Recommender:
        profile = TextProfile(self.texts[whitened])
        return lambda holdout: profile.scorer(holdout, text_gamma)

    def ease_recency_text(
        self, l2: float, gamma: float, text_gamma: float, whitened: bool, weight: float
    ) -> Recommender:
        ease, text = self.ease_recency(l2, gamma), self.text_profile(text_gamma, whitened)
        return lambda holdout: blend(ease(holdout), text(holdout), weight)
