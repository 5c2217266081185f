"""Item tower and user tower: features in, unit vectors of the behaviour space out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import ops

from tfrec.models.id_tables import FULL, id_embedding
from tfrec.models.layers import CausalTransformer, DecayedMean, FeatureSum
from tfrec.models.text import TextEncoder


def unit(x: Any) -> Any:
    """L2-normalises the last axis in float32; a zero vector stays zero."""
    x = ops.cast(x, "float32")
    # The floor is inside the root, whose gradient at 0 is infinite.
    return x / ops.sqrt(ops.maximum(ops.sum(ops.square(x), axis=-1, keepdims=True), 1e-12))


@keras.saving.register_keras_serializable("tfrec")
class ItemTower(keras.layers.Layer):
    """Item vector: id embedding + text projection + features, L2-normalised.

        v = unit(E[id] + W · √t · text + Σ features)

    Args:
        dimension: d.
        items: N; 0 = no id embedding.
        text_width: t; 0 = no text.
        vocabularies, numeric: of :class:`FeatureSum`.
        encoder: config of a :class:`TextEncoder` that learns, or None when ``text`` is given as vectors.
        table: of :func:`tfrec.models.id_tables.id_embedding`.

    Call: {"item": int32 [R], "text": float32 [R, t] or "tokens": int32 [R, S], features} -> float32 [R, d].
    Item 0 (unknown) has no id part, so a new item is served from its text and features.
    """

    def __init__(
        self,
        dimension: int,
        items: int,
        text_width: int,
        vocabularies: Mapping[str, int],
        numeric: Sequence[str],
        encoder: Mapping[str, Any] | None = None,
        table: Mapping[str, Any] = FULL,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.table = dict(table)
        self.dimension, self.items, self.text_width = dimension, items, text_width
        self.vocabularies, self.numeric = dict(vocabularies), tuple(numeric)
        policy = {"dtype": self.dtype_policy}
        self.encoder: Any = TextEncoder.from_config(dict(encoder)) if encoder else None
        # The two parts start at like lengths; tiny ids under a long text vector learn late.
        ids, text = keras.initializers.RandomNormal(stddev=0.3), keras.initializers.RandomNormal(stddev=0.03)
        self.id_embedding = id_embedding(items, dimension, table, ids, 0.3, name="id", **policy) if items else None
        self.text_projection = (
            keras.layers.Dense(dimension, use_bias=False, kernel_initializer=text, name="text_projection", **policy)
            if text_width
            else None
        )
        has_features = self.vocabularies or self.numeric
        self.features = (
            FeatureSum(self.vocabularies, self.numeric, dimension, name="features", **policy) if has_features else None
        )

    def build(self, input_shape: Any = None) -> None:
        if self.id_embedding:
            self.id_embedding.build()
        if self.text_projection:
            self.text_projection.build((None, self.text_width))
        if self.features:
            self.features.build()
        if self.encoder and not self.encoder.built:
            self.encoder.build((None, None))
        self.built = True

    def text(self, inputs: Mapping[str, Any], training: bool = False) -> Any:
        """Text vectors [R, t], unit length: as given, or from the encoder."""
        return inputs["text"] if "text" in inputs else self.encoder(inputs["tokens"], training=training)

    def call(self, inputs: Mapping[str, Any], training: bool = False) -> Any:
        parts = []
        if self.id_embedding:
            known = ops.cast(ops.not_equal(inputs["item"], 0), self.compute_dtype)
            parts.append(self.id_embedding(inputs["item"]) * known[..., None])
        if self.text_projection:
            text = self.text(inputs, training=training) * self.text_width**0.5
            parts.append(self.text_projection(ops.cast(text, self.compute_dtype)))
        if self.features:
            parts.append(self.features(inputs))
        return unit(sum(parts[1:], parts[0]))

    def get_config(self) -> dict[str, Any]:
        own = {
            "dimension": self.dimension,
            "items": self.items,
            "text_width": self.text_width,
            "vocabularies": self.vocabularies,
            "numeric": self.numeric,
            "encoder": self.encoder.get_config() if self.encoder else None,
            "table": self.table,
        }
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable("tfrec")
class UserTower(keras.layers.Layer):
    """User vector at every position of a history: gated summaries + id embedding + features, L2-normalised.

        u_i = unit(Σ_s g_s · summary_s(x_1 … x_i) + E[user] + Σ features)

    Args:
        dimension: d.
        history: summaries: "mean", "decay" (:class:`DecayedMean`), "transformer" (:class:`CausalTransformer`).
        length, layers, heads, dropout: of the transformer.
        embedding_dropout: on the item vectors that it reads.
        users: U; 0 = no id embedding.
        vocabularies, numeric: of :class:`FeatureSum`.
        table: of :func:`tfrec.models.id_tables.id_embedding`.

    Call: item vectors float32 [B, L, d], mask bool [B, L], {"user": int32 [B], features [B, …]} -> float32 [B, L, d].
    """

    def __init__(
        self,
        dimension: int,
        history: Sequence[str],
        length: int,
        layers: int,
        heads: int,
        dropout: float,
        embedding_dropout: float,
        users: int,
        vocabularies: Mapping[str, int],
        numeric: Sequence[str],
        table: Mapping[str, Any] = FULL,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.settings: dict[str, Any] = {
            "dimension": dimension,
            "history": tuple(history),
            "length": length,
            "layers": layers,
            "heads": heads,
            "dropout": dropout,
            "embedding_dropout": embedding_dropout,
            "users": users,
            "vocabularies": dict(vocabularies),
            "numeric": tuple(numeric),
            "table": dict(table),
        }
        policy = {"dtype": self.dtype_policy}
        makers = {
            "mean": lambda: DecayedMean(1.0, learned=False, name="mean", **policy),
            "decay": lambda: DecayedMean(name="decay", **policy),
            "transformer": lambda: CausalTransformer(layers, heads, length, dropout, name="transformer", **policy),
        }
        self.summaries: list[keras.layers.Layer] = [makers[name]() for name in history]
        self.drop = keras.layers.Dropout(embedding_dropout, name="embedding_drop", **policy)
        # 0.03 is about the spread of Keras' own start.
        self.id_embedding = (
            id_embedding(users, dimension, table, "uniform", 0.03, name="id", **policy) if users else None
        )
        self.features = (
            FeatureSum(vocabularies, numeric, dimension, name="features", **policy) if vocabularies or numeric else None
        )

    def build(self, input_shape: Any = None) -> None:
        shape = (None, self.settings["length"], self.settings["dimension"])
        for summary in self.summaries:
            summary.build(shape)
        if self.summaries:
            self.gates = self.add_weight(shape=(len(self.summaries),), initializer="ones", name="gates")
        if self.id_embedding:
            self.id_embedding.build()
        if self.features:
            self.features.build()
        self.drop.build(shape)
        self.built = True

    def call(self, items: Any, mask: Any, user: Mapping[str, Any], training: bool = False) -> Any:
        width = self.settings["dimension"] ** 0.5
        x = ops.cast(items * width * ops.cast(mask, items.dtype)[..., None], self.compute_dtype)
        x = self.drop(x, training=training)
        parts = [
            self._summary(layer, x, mask, training) * ops.cast(self.gates[i], x.dtype)
            for i, layer in enumerate(self.summaries)
        ]
        if self.id_embedding:
            known = ops.cast(ops.not_equal(user["user"], 0), self.compute_dtype)
            parts.append((self.id_embedding(user["user"]) * known[:, None])[:, None])
        if self.features:
            parts.append(self.features(user)[:, None])
        total = sum(parts[1:], parts[0])
        return unit(total + ops.zeros_like(x))

    def _summary(self, layer: Any, x: Any, mask: Any, training: bool) -> Any:
        if isinstance(layer, CausalTransformer):
            return layer(x, mask, training=training)
        return layer(x, mask)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), **self.settings}
