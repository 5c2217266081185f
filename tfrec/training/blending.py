"""Chooses on validation data what is blended with a two-tower model, and fits it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import tensorflow as tf

from tfrec.evaluation.baselines.blend import standardize
from tfrec.evaluation.baselines.counts import MOST_ITEMS, events
from tfrec.evaluation.baselines.ease import EASE
from tfrec.evaluation.baselines.search import Grid, ascend
from tfrec.evaluation.ragged import Ragged
from tfrec.evaluation.ranks import Holdout, Scorer
from tfrec.evaluation.whitening import whiten
from tfrec.models.blend import LINEAR, SPIKY, Blend
from tfrec.training.mixing import mix
from tfrec.training.neighbours import neighbours
from tfrec.training.sampled import Sample, recency
from tfrec.training.transitions import Transitions

NEIGHBOURS = 200
NEIGHBOURS_OF_MANY = 50
DISTINCT = ("neighbours", "text")
_DECAYS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 1.0)
_GRID: dict[str, dict[str, tuple[Any, ...]]] = {
    "neighbours": {"decay": _DECAYS, "l2": (50, 200, 1000)},
    "transitions": {"decay": (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99), "ridge": (1.0, 3.0, 10.0)},
    "text": {"decay": _DECAYS, "whitened": (True, False)},
    "popularity": {},
    "frequency": {"decay": (0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 1.0)},
}
_SHRINK: dict[str, tuple[Any, ...]] = {"decay": _DECAYS, "shrink": (1.0, 10.0, 100.0)}
_START = {"decay": 0.9, "l2": 200, "shrink": 10.0, "ridge": 3.0, "whitened": True}
_SCORES = 16 * 2**20  # floats of one component that are kept at a time

Chosen = dict[str, dict[str, Any]]
"""Settings by component, its weight among them; "model" has the weight of the cosine."""


@dataclass(frozen=True)
class Lists:
    """Items per user, oldest first, and a number per event that is equal within a basket."""

    items: Ragged
    baskets: np.ndarray


@dataclass(frozen=True)
class Sources:
    """What is blended beside the model.

    Args:
        components: of :class:`Blend`.
        items: N.
        texts: unit text vectors [N+1, t], or None.
        history_length: items of a history that the components read.
    """

    components: Sequence[str]
    items: int
    texts: np.ndarray | None
    history_length: int

    def make(self, chosen: Chosen, train: Lists) -> Blend:
        """The blend of these settings, its linear item-item models fitted on ``train``."""
        fitted = _Fits(self, train)
        texts = fitted.texts(chosen["text"]["whitened"]) if "text" in chosen else None
        blend = Blend(
            {name: settings["weight"] for name, settings in chosen.items()},
            {name: settings["decay"] for name, settings in chosen.items() if "decay" in settings},
            self.items,
            self.kept,
            0 if texts is None else texts.shape[1],
        )
        blend.build()
        blend.fill(
            {name: fitted.linear(name, chosen[name]) for name in LINEAR if name in chosen}, texts, fitted.popularity
        )
        return blend

    @property
    def is_large(self) -> bool:
        """Whether a matrix of all pairs of items is out of the question."""
        return self.items > MOST_ITEMS

    @property
    def kept(self) -> int:
        """Neighbours kept of each item."""
        return min(NEIGHBOURS_OF_MANY if self.is_large else NEIGHBOURS, self.items + 1)

    def available(self) -> list[str]:
        """The components that these data allow: no next-basket model of a large catalogue, no text without text."""
        absent = ({"transitions"} if self.is_large else set()) | ({"text"} if self.texts is None else set())
        return [name for name in self.components if name not in absent]


class _Fits:
    """What the components read, fitted on lists; the last linear model of each kind is kept."""

    def __init__(self, sources: Sources, train: Lists, sample: Sample | None = None):
        self.sample = sample
        self.popularity = np.log1p(events(train.items, sources.items)).astype(np.float32)
        self.texts = lru_cache(maxsize=2)(lambda whitened: _texts(sources.texts, whitened))
        transitions = Transitions(train.items, train.baskets, sources.items, sources.history_length)
        ease = lru_cache(maxsize=1)(lambda l2: EASE(l2).fit(train.items, sources.items).weights)
        near = lru_cache(maxsize=1)(lambda shrink: neighbours(train.items, sources.items, sources.kept, shrink))
        self._linear: dict[str, Callable[[dict[str, Any]], Any]] = {
            "neighbours": lambda settings: near(settings["shrink"]) if "shrink" in settings else ease(settings["l2"]),
            "transitions": lambda settings: transitions.fit(settings["decay"], settings["ridge"]),
        }

    def linear(self, name: str, settings: dict[str, Any]) -> Any:
        """Item-item weights [N+1, N+1], or the ids and values of the largest."""
        return self._linear[name](settings)

    def scores(self, name: str, settings: dict[str, Any], history: np.ndarray) -> np.ndarray:
        """Scores [Q, N+1] of one component for histories [Q, L], on the scale on which they are added."""
        scores = standardize(self._raw(name, settings, history))
        return standardize(np.arcsinh(scores)) if name in SPIKY else scores

    def _raw(self, name: str, settings: dict[str, Any], history: np.ndarray) -> np.ndarray:
        if name == "popularity":
            popularity = self.popularity if self.sample is None else self.popularity[self.sample.items]
            return np.broadcast_to(popularity, (len(history), len(popularity)))
        if self.sample is not None:
            return self._sampled(name, settings, history, self.sample)
        weights = profile(history, settings["decay"], len(self.popularity) - 1, distinct=name in DISTINCT)
        if name == "frequency":
            return weights
        if name == "text":
            vectors = self.texts(settings["whitened"])
            return (weights @ vectors) @ vectors.T
        return weights @ self.linear(name, settings)

    def _sampled(self, name: str, settings: dict[str, Any], history: np.ndarray, sample: Sample) -> np.ndarray:
        if name == "frequency":
            return profile(sample.place(history), settings["decay"], len(sample.items) - 1, distinct=False)
        weights = recency(history, settings["decay"], distinct=name in DISTINCT)
        if name == "text":
            return sample.text(history, weights, self.texts(settings["whitened"]))
        return sample.linear(history, weights, self.linear(name, settings))


def _texts(texts: np.ndarray | None, whitened: bool) -> np.ndarray:
    assert texts is not None
    return whiten(texts) if whitened else texts


def choose(model: Scorer, valid: Holdout, history: np.ndarray, train: Lists, sources: Sources) -> Chosen:
    """Settings and weights under which the validation items are likeliest.

    The settings of each component are those that help the cosine most, with that component alone beside it; then
    the weights of all are fitted together (:func:`tfrec.training.mixing.mix`).

    Of a catalogue too large for all pairs of items, the targets and a sample of other items compete.

    Args:
        model: cosines of the model trained on ``train``.
        valid: the queries to choose on.
        history: int32 [Q, L], what the served graph would read of each query's history.
        train: what the components are fitted on.
        sources: what there is to blend.
    """
    rows = np.arange(len(valid))
    most = max(_SCORES // (min(sources.items, MOST_ITEMS) + 1), 1)
    if len(rows) > most:
        rows = np.sort(np.random.default_rng(0).choice(rows, most, replace=False))
    valid, history = valid.take(rows), history[rows]
    sample = Sample(valid, sources.items, MOST_ITEMS) if sources.is_large else None
    fits = _Fits(sources, train, sample)
    scores = {"model": standardize(sample.scores(model, rows) if sample else model(rows))}
    valid = sample.holdout(valid) if sample else valid
    settings: Chosen = {"model": {}}
    for name in sources.available():
        grid = _SHRINK if name == "neighbours" and sources.is_large else _GRID[name]
        settings[name] = _best(name, grid, fits, scores["model"], valid, history)
        scores[name] = fits.scores(name, settings[name], history)
    weights = mix(scores, valid).weights
    total = sum(weights.values())  # a served score is then a mean of z-scores
    return {name: settings[name] | {"weight": round(weight / total, 4)} for name, weight in weights.items()}


def _best(
    name: str, grid: Grid, fits: _Fits, cosine: np.ndarray, valid: Holdout, history: np.ndarray
) -> dict[str, Any]:
    def value(settings: dict[str, Any]) -> float:
        return mix({"model": cosine, name: fits.scores(name, settings, history)}, valid).value

    return ascend(grid, {key: _START[key] for key in grid}, value) if grid else {}


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


def profile(history: np.ndarray, decay: float, items: int, distinct: bool) -> np.ndarray:
    """γ^age at the items of each history, float32 [Q, N+1]: the largest of an item, or the sum."""
    weights = np.broadcast_to(decay ** np.arange(history.shape[1] - 1, -1, -1.0), history.shape)
    out = np.zeros((len(history), items + 1), np.float32)
    rows = np.broadcast_to(np.arange(len(history))[:, None], history.shape)
    (np.maximum if distinct else np.add).at(out, (rows, history), weights)
    out[:, 0] = 0
    return out
