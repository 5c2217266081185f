"""Item-item, text, popularity and repetition evidence added to a two-tower model, in the served graph."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

COMPONENTS = ("neighbours", "transitions", "text", "popularity", "frequency")
LINEAR = ("neighbours", "transitions")
SPIKY = (*LINEAR, "frequency")
Linear = np.ndarray | tuple[np.ndarray, np.ndarray]


@keras.saving.register_keras_serializable("tfrec")
class Blend(keras.layers.Layer):
    """Weighted sum of scores, each standardised over the catalogue of a request.

        s(u, i) = w z(cosine) + w_n a(Σ_j γ_n^age(j) B[j, i]) + w_r a(Σ_j γ_r^age(j) R[j, i])
                + w_t z(Σ_j γ_t^age(j) t_j · t_i) + w_p z(log(1 + c_i)) + w_f a(Σ_j γ_f^age(j) [j = i])

    over the items j of the history, with z the distance from the mean in standard deviations and a = z ∘ arsinh ∘ z
    for scores of which few are far from 0. In the sums of B and t an item counts once, at its last place. B are the
    weights of a linear item-item model (EASE, Steck 2019, arXiv 1905.03375), R those of
    :class:`tfrec.training.transitions.Transitions`, of each item the largest; c are counts of events.

    Args:
        weights: w of "model" (the cosine) and of components; an absent one is not computed.
        decays: γ in (0, 1] of the components that read the history.
        items: N.
        neighbours: entries kept of each row of B and R.
        text_width: t.

    Call: cosine float32 [B, M+1], history int32 [B, L], oldest first, 0 = padding, optionally texts float32 [M+1, t]
    in place of its own -> float32 [B, M+1]. Items N+1..M are new: they have no neighbours and a popularity of 0.
    """

    def __init__(
        self,
        weights: Mapping[str, float],
        decays: Mapping[str, float],
        items: int,
        neighbours: int = 0,
        text_width: int = 0,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.weight_of = {name: float(weights[name]) for name in ("model", *COMPONENTS) if weights.get(name)}
        self.decays = {name: float(value) for name, value in decays.items() if name in self.weight_of}
        self.items, self.neighbours, self.text_width = items, neighbours, text_width

    def build(self, input_shape: Any = None) -> None:
        rows, used = self.items + 1, self.weight_of
        self.ids = {n: self._constant((rows, self.neighbours), "int32", f"{n}_ids") for n in LINEAR if n in used}
        self.values = {n: self._constant((rows, self.neighbours), "float32", f"{n}_values") for n in self.ids}
        if "text" in used:
            self.texts = self._constant((rows, self.text_width), "float32", "texts")
        if "popularity" in used:
            self.popularity = self._constant((rows,), "float32", "popularity")
        self.built = True

    def _constant(self, shape: tuple[int, ...], dtype: str, name: str) -> Any:
        return self.add_weight(shape=shape, dtype=dtype, initializer="zeros", trainable=False, name=name)

    def fill(self, linear: Mapping[str, Linear], texts: np.ndarray | None, popularity: np.ndarray) -> None:
        """Assigns what the components read.

        Args:
            linear: "neighbours" and "transitions" to [N+1, N+1], of which the largest entries of each row are kept,
                or to the ids and values [N+1, m] that are kept.
            texts: float32 [N+1, t].
            popularity: float32 [N+1], log(1 + c).
        """
        for name, ids in self.ids.items():
            largest, values = _largest(linear[name], self.neighbours)
            ids.assign(largest)
            self.values[name].assign(values)
        if "text" in self.weight_of:
            self.texts.assign(texts)
        if "popularity" in self.weight_of:
            self.popularity.assign(popularity)

    def call(self, cosine: tf.Tensor, history: tf.Tensor, texts: tf.Tensor | None = None) -> tf.Tensor:
        parts = self.parts(cosine, history, texts)
        return self.total(parts) if parts else tf.zeros_like(cosine)

    def parts(self, cosine: tf.Tensor, history: tf.Tensor, texts: tf.Tensor | None = None) -> dict[str, tf.Tensor]:
        """What is summed, before weights: the cosine as "model" and every component, float32 [B, M+1]."""
        history, items = without_padding(history), tf.shape(cosine)[1] - 1
        scores = {n: self._scores(n, history, items, texts) for n in self.weight_of if n != "model"}
        found = {name: comparable(name, value) + tf.zeros_like(cosine) for name, value in scores.items()}
        return found | ({"model": standardize(cosine)} if "model" in self.weight_of else {})

    def total(self, parts: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """The weighted sum of :meth:`parts`, float32 [B, M+1]."""
        return tf.add_n([self.weight_of[name] * part for name, part in parts.items()])

    def _scores(self, name: str, history: tf.Tensor, items: tf.Tensor, texts: tf.Tensor | None) -> tf.Tensor:
        """Scores of a component over items 1..``items``, [B or 1, items + 1]."""
        if name == "popularity":
            return _grown(self.popularity.value[None], items)
        weights = recency(history, self.decays[name])
        if name in ("neighbours", "text"):
            weights *= _last_occurrence(history, items)
        if name == "text":
            return self._text(history, weights, items, texts)
        if name in LINEAR:
            return self._linear(name, history, weights, items)
        return _sum_by_item(history[..., None], weights[..., None], items)

    def _linear(self, name: str, history: tf.Tensor, weights: tf.Tensor, items: tf.Tensor) -> tf.Tensor:
        history, weights = self._trained(history, weights)
        ids = tf.gather(self.ids[name].value, history)  # [B, L, m]
        values = tf.gather(self.values[name].value, history) * weights[..., None]
        return _sum_by_item(ids, values, items)

    def _text(self, history: tf.Tensor, weights: tf.Tensor, items: tf.Tensor, texts: tf.Tensor | None) -> tf.Tensor:
        if texts is None:
            history, weights = self._trained(history, weights)
            texts = tf.convert_to_tensor(self.texts.value)  # a gather from the variable would make each read a copy
        profile = tf.einsum("bl,blt->bt", weights, tf.gather(texts, history))
        return _grown(tf.matmul(profile, texts, transpose_b=True), items)

    def _trained(self, history: tf.Tensor, weights: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """History and weights without items that are new."""
        trained = history <= self.items
        return tf.where(trained, history, 0), tf.where(trained, weights, 0.0)

    def get_config(self) -> dict[str, Any]:
        own = {
            "weights": self.weight_of,
            "decays": self.decays,
            "items": self.items,
            "neighbours": self.neighbours,
            "text_width": self.text_width,
        }
        return {**super().get_config(), **own}

    def save(self, path: Path) -> None:
        """Writes config and weights into one .npz file."""
        weights = {weight.name: weight.numpy() for weight in self.weights}
        np.savez(path, config=np.array(json.dumps(self.get_config())), **weights)

    @classmethod
    def load(cls, path: Path) -> Blend:
        """Reads what :meth:`save` wrote."""
        with np.load(path, allow_pickle=False) as stored:
            blend = cls.from_config(json.loads(str(stored["config"])))
            blend.build()
            for weight in blend.weights:
                weight.assign(stored[weight.name])
        return blend


def _largest(linear: Linear, count: int) -> tuple[np.ndarray, np.ndarray]:
    if isinstance(linear, tuple):
        return linear
    largest = np.argpartition(-np.abs(linear), count - 1, axis=1)[:, :count]
    return largest, np.take_along_axis(linear, largest, axis=1)


def comparable(name: str, scores: tf.Tensor) -> tf.Tensor:
    """Scores of a component on the scale on which they are added."""
    scores = standardize(scores)
    return standardize(tf.asinh(scores)) if name in SPIKY else scores


def standardize(scores: tf.Tensor) -> tf.Tensor:
    """z-scores of each row over items 1..N; zeros where all are equal."""
    known = scores[:, 1:]
    mean = tf.reduce_mean(known, axis=1, keepdims=True)
    deviation = tf.math.reduce_std(known, axis=1, keepdims=True)
    usable = deviation > 1e-7 * tf.abs(mean)
    return tf.where(usable, (scores - mean) / tf.where(usable, deviation, 1.0), 0.0)


def without_padding(history: tf.Tensor) -> tf.Tensor:
    """Drops the columns on the left that are padding in every row."""
    used = tf.reduce_any(history > 0, axis=0)
    return history[:, tf.reduce_sum(tf.cast(tf.cumsum(tf.cast(used, tf.int32)) == 0, tf.int32)) :]


def recency(history: tf.Tensor, decay: float) -> tf.Tensor:
    """γ^age [B, L], 0 at padding; the last item has age 0."""
    age = tf.cast(tf.range(tf.shape(history)[1] - 1, -1, -1), tf.float32)
    return tf.where(history > 0, tf.pow(decay, age)[None], 0.0)


def _grown(scores: tf.Tensor, items: tf.Tensor) -> tf.Tensor:
    """Scores [B, N+1] with zeros for new items, [B, items + 1]."""
    return tf.pad(scores, [[0, 0], [0, items + 1 - tf.shape(scores)[1]]])


def _last_occurrence(history: tf.Tensor, items: tf.Tensor) -> tf.Tensor:
    """1 where no later place holds the same item, else 0, float32 [B, L]."""
    rows = tf.shape(history)[0]
    column = tf.zeros_like(history) + tf.range(tf.shape(history)[1])[None]
    place = history + (tf.range(rows) * (items + 1))[:, None]
    last = tf.math.unsorted_segment_max(tf.reshape(column, [-1]), tf.reshape(place, [-1]), rows * (items + 1))
    return tf.cast(tf.gather(last, place) == column, tf.float32)


def _sum_by_item(ids: tf.Tensor, values: tf.Tensor, items: tf.Tensor) -> tf.Tensor:
    """Adds values [B, L, m] up by their item ids, float32 [B, N+1]; item 0 gets whatever is padding."""
    rows = tf.shape(ids)[0]
    place = ids + (tf.range(rows) * (items + 1))[:, None, None]
    flat = tf.math.unsorted_segment_sum(tf.reshape(values, [-1]), tf.reshape(place, [-1]), rows * (items + 1))
    return tf.reshape(flat, [rows, items + 1])
