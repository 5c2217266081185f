"""Item-item, text and repetition evidence added to the cosine of a two-tower model, in the served graph."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

COMPONENTS = ("neighbours", "text", "frequency")


@keras.saving.register_keras_serializable("tfrec")
class Blend(keras.layers.Layer):
    """Weighted sum of scores, each standardised over the catalogue of a request.

        s(u, i) = z(cosine) + w_n z(Σ_j γ_n^age(j) B[j, i])
                + w_t z(Σ_j γ_t^age(j) t_j · t_i) + w_f z(Σ_j γ_f^age(j) [j = i])

    over the items j of the history, with z the distance from the mean in standard deviations. An item counts once,
    at its last place, except in the last sum. B are the weights of a linear item-item model (EASE, Steck 2019,
    arXiv 1905.03375), the largest of each item.

    Args:
        weights: w by component: "neighbours", "text", "frequency"; an absent one is not computed.
        decays: γ in (0, 1] by component.
        items: N.
        neighbours: entries of B kept for each item.
        text_width: t.

    Call: cosine float32 [B, N+1], history int32 [B, L], oldest first, 0 = padding -> float32 [B, N+1].
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
        self.component_weights = {name: float(weights[name]) for name in COMPONENTS if weights.get(name)}
        self.decays = {name: float(decays[name]) for name in self.component_weights}
        self.items, self.neighbours, self.text_width = items, neighbours, text_width

    def build(self, input_shape: Any = None) -> None:
        rows = self.items + 1
        if "neighbours" in self.component_weights:
            self.neighbour_ids = self._constant((rows, self.neighbours), "int32", "neighbour_ids")
            self.neighbour_values = self._constant((rows, self.neighbours), "float32", "neighbour_values")
        if "text" in self.component_weights:
            self.texts = self._constant((rows, self.text_width), "float32", "texts")
        self.built = True

    def _constant(self, shape: tuple[int, int], dtype: str, name: str) -> Any:
        return self.add_weight(shape=shape, dtype=dtype, initializer="zeros", trainable=False, name=name)

    def fill(self, linear: np.ndarray | None, texts: np.ndarray | None) -> None:
        """Assigns B [N+1, N+1], of which the largest entries of each row are kept, and text vectors [N+1, t]."""
        if "neighbours" in self.component_weights:
            assert linear is not None
            ids = np.argpartition(-np.abs(linear), self.neighbours - 1, axis=1)[:, : self.neighbours]
            self.neighbour_ids.assign(ids)
            self.neighbour_values.assign(np.take_along_axis(linear, ids, axis=1))
        if "text" in self.component_weights:
            self.texts.assign(texts)

    def call(self, cosine: tf.Tensor, history: tf.Tensor) -> tf.Tensor:
        total = standardize(cosine)
        for name, weight in self.component_weights.items():
            total += weight * standardize(getattr(self, f"_{name}")(history, self.decays[name]))
        return total

    def _neighbours(self, history: tf.Tensor, decay: float) -> tf.Tensor:
        weights = _recency(history, decay) * _last_occurrence(history)
        ids = tf.gather(self.neighbour_ids.value, history)  # [B, L, m]
        values = tf.gather(self.neighbour_values.value, history) * weights[..., None]
        return _sum_by_item(ids, values, self.items)

    def _text(self, history: tf.Tensor, decay: float) -> tf.Tensor:
        weights = _recency(history, decay) * _last_occurrence(history)
        profile = tf.einsum("bl,blt->bt", weights, tf.gather(self.texts.value, history))
        return tf.matmul(profile, self.texts.value, transpose_b=True)

    def _frequency(self, history: tf.Tensor, decay: float) -> tf.Tensor:
        return _sum_by_item(history[..., None], _recency(history, decay)[..., None], self.items)

    def get_config(self) -> dict[str, Any]:
        own = {
            "weights": self.component_weights,
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


def standardize(scores: tf.Tensor) -> tf.Tensor:
    """z-scores of each row over items 1..N; zeros where all are equal."""
    known = scores[:, 1:]
    mean = tf.reduce_mean(known, axis=1, keepdims=True)
    deviation = tf.math.reduce_std(known, axis=1, keepdims=True)
    usable = deviation > 1e-7 * tf.abs(mean)
    return tf.where(usable, (scores - mean) / tf.where(usable, deviation, 1.0), 0.0)


def _recency(history: tf.Tensor, decay: float) -> tf.Tensor:
    """γ^age [B, L], 0 at padding; the last item has age 0."""
    age = tf.cast(tf.range(tf.shape(history)[1] - 1, -1, -1), tf.float32)
    return tf.where(history > 0, tf.pow(decay, age)[None], 0.0)


def _last_occurrence(history: tf.Tensor) -> tf.Tensor:
    """1 where no later place holds the same item, else 0, float32 [B, L]."""
    length = tf.shape(history)[1]
    same = history[:, :, None] == history[:, None, :]  # [B, L, L]
    later = tf.range(length)[None, :] > tf.range(length)[:, None]
    return 1.0 - tf.cast(tf.reduce_any(same & later[None], axis=2), tf.float32)


def _sum_by_item(ids: tf.Tensor, values: tf.Tensor, items: int) -> tf.Tensor:
    """Adds values [B, L, m] up by their item ids, float32 [B, N+1]; item 0 gets whatever is padding."""
    rows = tf.shape(ids)[0]
    place = ids + (tf.range(rows) * (items + 1))[:, None, None]
    flat = tf.math.unsorted_segment_sum(tf.reshape(values, [-1]), tf.reshape(place, [-1]), rows * (items + 1))
    return tf.reshape(flat, [rows, items + 1])
