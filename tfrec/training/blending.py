"""Chooses on validation data what is blended with a two-tower model, and fits it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import tensorflow as tf

from tfrec.evaluation import metrics
from tfrec.evaluation.baselines.blend import standardize
from tfrec.evaluation.baselines.counts import MOST_ITEMS
from tfrec.evaluation.baselines.ease import EASE
from tfrec.evaluation.baselines.search import ascend
from tfrec.evaluation.baselines.text import whiten
from tfrec.evaluation.ragged import Ragged
from tfrec.evaluation.ranks import Holdout, Scorer, rank
from tfrec.models.blend import Blend

NEIGHBOURS = 200
_WEIGHTS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5)
_DECAYS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
_GRID: dict[str, tuple[Any, ...]] = {
    "neighbours": _WEIGHTS,
    "neighbours_decay": _DECAYS,
    "l2": (50, 100, 200, 500, 1000),
    "text": _WEIGHTS,
    "text_decay": _DECAYS,
    "whitened": (True, False),
    "frequency": _WEIGHTS,
    "frequency_decay": _DECAYS,
}
_START = {
    "neighbours": 0.3,
    "neighbours_decay": 0.9,
    "l2": 200,
    "text": 0.1,
    "text_decay": 0.8,
    "whitened": True,
    "frequency": 0.0,
    "frequency_decay": 0.9,
}
_SETTINGS = {
    "neighbours": ("neighbours", "neighbours_decay", "l2"),
    "text": ("text", "text_decay", "whitened"),
    "frequency": ("frequency", "frequency_decay"),
}
_SCORES = 8 * 2**20  # floats of one component that are kept at a time


@dataclass(frozen=True)
class Sources:
    """What is blended beside the model.

    Args:
        components: of :class:`Blend`.
        items: N.
        texts: unit text vectors [N+1, t], or None.
    """

    components: Sequence[str]
    items: int
    texts: np.ndarray | None

    def make(self, chosen: dict[str, Any], train: Ragged) -> Blend:
        """The blend of these settings, its linear item-item model fitted on ``train``."""
        texts = self.texts_(chosen["whitened"])
        blend = Blend(
            {name: chosen[name] for name in ("neighbours", "text", "frequency")},
            {name: chosen[f"{name}_decay"] for name in ("neighbours", "text", "frequency")},
            self.items,
            min(NEIGHBOURS, self.items + 1),
            0 if texts is None else texts.shape[1],
        )
        blend.build()
        linear = EASE(chosen["l2"]).fit(train, self.items).weights if chosen["neighbours"] else None
        blend.fill(linear, texts)
        return blend

    def texts_(self, whitened: bool) -> np.ndarray | None:
        return whiten(self.texts) if whitened and self.texts is not None else self.texts

    def available(self) -> set[str]:
        """The components that these data allow: no item-item model for a large catalogue, no text without text."""
        absent = {"neighbours"} if self.items > MOST_ITEMS else set()
        return set(self.components) - absent - ({"text"} if self.texts is None else set())


def choose(model: Scorer, valid: Holdout, history: np.ndarray, train: Ragged, sources: Sources) -> dict[str, Any]:
    """Weights, decays and ridge penalty with the best ndcg@10 on valid, one changed at a time.

    Args:
        model: cosines of the model trained on ``train``.
        valid: the queries to choose on.
        history: int32 [Q, L], what the served graph would read of each query's history.
        train: ragged, a list of items per user.
        sources: what there is to blend.
    """
    rows = np.arange(len(valid))
    most = max(_SCORES // (sources.items + 1), 1)
    if len(rows) > most:
        rows = np.sort(np.random.default_rng(0).choice(rows, most, replace=False))
    valid, history = valid.take(rows), history[rows]
    component = lru_cache(maxsize=4)(_components(history, train, sources))
    cosine = standardize(model(rows))

    def score(settings: dict[str, Any]) -> float:
        total = cosine + sum(
            settings[name] * component(name, settings[f"{name}_decay"], settings[extra] if extra else None)
            for name, extra in (("neighbours", "l2"), ("text", "whitened"), ("frequency", None))
            if settings[name]
        )
        return float(metrics.ndcg(rank(lambda at: total[at], valid, sources.items, top=0), 10).mean())

    absent = set(_SETTINGS) - sources.available()
    fixed = {name: 0.0 for name in absent}
    tuned = [name for component, names in _SETTINGS.items() if component not in absent for name in names]
    return ascend({name: _GRID[name] for name in tuned}, _START | fixed, score)


def blended(model: Scorer, blend: Blend, history: np.ndarray) -> Scorer:
    """The model's cosines with the rest of the blend.

    Args:
        model: cosines of a holdout.
        blend: fitted.
        history: int32 [Q, L] of the same holdout.
    """
    specs = [tf.TensorSpec([None, None], tf.float32), tf.TensorSpec([None, history.shape[1]], tf.int32)]
    run = tf.function(lambda cosine, read: blend(cosine, read), input_signature=specs)
    return lambda rows: run(model(rows), history[rows]).numpy()


def _components(history: np.ndarray, train: Ragged, sources: Sources) -> Callable[[str, float, Any], np.ndarray]:
    linear = lru_cache(maxsize=1)(lambda l2: EASE(l2).fit(train, sources.items).weights)
    texts = lru_cache(maxsize=2)(sources.texts_)

    def component(name: str, decay: float, extra: Any) -> np.ndarray:
        if name == "frequency":
            return standardize(profile(history, decay, sources.items, distinct=False))
        weights = profile(history, decay, sources.items, distinct=True)
        if name == "neighbours":
            return standardize(weights @ linear(extra))
        vectors = texts(extra)
        assert vectors is not None
        return standardize((weights @ vectors) @ vectors.T)

    return component


def profile(history: np.ndarray, decay: float, items: int, distinct: bool) -> np.ndarray:
    """γ^age at the items of each history, float32 [Q, N+1]: the largest of an item, or the sum."""
    weights = np.broadcast_to(decay ** np.arange(history.shape[1] - 1, -1, -1.0), history.shape)
    out = np.zeros((len(history), items + 1), np.float32)
    rows = np.broadcast_to(np.arange(len(history))[:, None], history.shape)
    (np.maximum if distinct else np.add).at(out, (rows, history), weights)
    out[:, 0] = 0
    return out
