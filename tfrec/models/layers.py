"""Layers that several towers share. All take plain arguments and save with Keras."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops


def mean_over_values(rows: Any, ids: Any) -> Any:
    """Mean of embedding rows [..., m, d] over the values whose id [..., m] is not 0; zeros when none is."""
    present = ops.cast(ops.not_equal(ids, 0), rows.dtype)[..., None]
    return ops.sum(rows * present, axis=-2) / ops.maximum(ops.sum(present, axis=-2), 1.0)


@keras.saving.register_keras_serializable("tfrec")
class RowEmbedding(keras.layers.Embedding):
    """``keras.layers.Embedding`` whose lookup costs what it reads.

    Keras' own reads the table first, and TensorFlow copies a table so read that is updated by rows.

    Call: int32 [...] -> [..., d].
    """

    def call(self, inputs: Any) -> Any:
        return ops.cast(tf.gather(self.embeddings.value, ops.cast(inputs, "int32")), self.compute_dtype)


@keras.saving.register_keras_serializable("tfrec")
class FeatureSum(keras.layers.Layer):
    """Adds one vector a feature: mean embedding of a categorical, linear map of the numerics.

    Args:
        vocabularies: rows of each categorical feature, its unknown row 0 included.
        numeric: names of numeric features, standardised, missing = 0.
        dimension: d.

    Call: {name: int32 [..., m] or float32 [...]} -> [..., d]. Value 0 of a categorical adds nothing.
    """

    def __init__(self, vocabularies: Mapping[str, int], numeric: Sequence[str], dimension: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.vocabularies, self.numeric, self.dimension = dict(vocabularies), tuple(numeric), dimension
        self.embeddings = {
            name: RowEmbedding(size, dimension, name=f"{name}_embedding", dtype=self.dtype_policy)
            for name, size in self.vocabularies.items()
        }
        if self.numeric:
            self.projection = keras.layers.Dense(
                dimension, use_bias=False, name="numeric_projection", dtype=self.dtype_policy
            )

    def build(self, input_shape: Any = None) -> None:
        for embedding in self.embeddings.values():
            embedding.build()
        if self.numeric:
            self.projection.build((None, len(self.numeric)))
        self.built = True

    def call(self, inputs: Mapping[str, Any]) -> Any:
        parts = [mean_over_values(table(inputs[name]), inputs[name]) for name, table in self.embeddings.items()]
        if self.numeric:
            columns = [ops.cast(inputs[name], self.compute_dtype) for name in self.numeric]
            parts.append(self.projection(ops.stack(columns, axis=-1)))
        return sum(parts[1:], parts[0])

    def get_config(self) -> dict[str, Any]:
        own = {"vocabularies": self.vocabularies, "numeric": self.numeric, "dimension": self.dimension}
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable("tfrec")
class DecayedMean(keras.layers.Layer):
    """Causal mean of a sequence in which every step back multiplies the weight by a learned γ.

        y_i = Σ_{j≤i} γ^(i−j) m_j x_j / Σ_{j≤i} γ^(i−j) m_j

    Args:
        decay: the initial γ in (0, 1); a plain mean has γ = 1.
        learned: whether γ is trained.

    Call: x [B, L, d], mask m [B, L] -> [B, L, d]; zeros where nothing precedes.
    """

    def __init__(self, decay: float = 0.8, learned: bool = True, **kwargs: Any):
        super().__init__(**kwargs)
        self.decay, self.learned = decay, learned

    def build(self, input_shape: Any = None) -> None:
        if self.learned:
            logit = keras.initializers.Constant(math.log(self.decay / (1 - self.decay)))
            self.logit = self.add_weight(shape=(), initializer=logit, name="decay_logit")
        self.built = True

    def call(self, x: Any, mask: Any) -> Any:
        length = ops.shape(x)[1]
        position = ops.arange(length, dtype="float32")
        age = position[:, None] - position[None, :]  # [L, L]
        log_decay = -ops.softplus(-ops.cast(self.logit, "float32")) if self.learned else math.log(self.decay)
        power = ops.where(age >= 0, ops.exp(ops.maximum(age, 0.0) * log_decay), 0.0)
        weights = power[None] * ops.cast(mask, "float32")[:, None, :]  # [B, L, L]
        weights = weights / ops.maximum(ops.sum(weights, axis=-1, keepdims=True), 1e-9)
        return ops.matmul(ops.cast(weights, x.dtype), x)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "decay": self.decay, "learned": self.learned}


@keras.saving.register_keras_serializable("tfrec")
class CausalTransformer(keras.layers.Layer):
    """Pre-LN transformer in which a position attends to itself and what precedes it.

    SASRec (Kang & McAuley 2018, arXiv 1808.09781) with the layer norm before each block
    (Xiong et al. 2020, arXiv 2002.04745).

    Args:
        layers: blocks.
        heads: attention heads; must divide the width.
        length: L, the longest sequence; shorter ones take the last positions.
        dropout: on attention, hidden and output.

    Call: x [B, L, d], mask [B, L] -> [B, L, d].
    """

    def __init__(self, layers: int, heads: int, length: int, dropout: float = 0.0, **kwargs: Any):
        super().__init__(**kwargs)
        self.layers, self.heads, self.length, self.dropout = layers, heads, length, dropout

    def build(self, input_shape: Sequence[int]) -> None:
        width = input_shape[-1]
        self.positions = self.add_weight(
            shape=(self.length, width), initializer=keras.initializers.RandomNormal(stddev=0.02), name="positions"
        )
        self.blocks = [
            _Block(self.heads, width, self.dropout, name=f"block_{i}", dtype=self.dtype_policy)
            for i in range(self.layers)
        ]
        for block in self.blocks:
            block.build(input_shape)
        self.norm = keras.layers.LayerNormalization(name="norm", dtype=self.dtype_policy)
        self.norm.build(input_shape)
        self.built = True

    def call(self, x: Any, mask: Any, training: bool = False) -> Any:
        length = ops.shape(x)[1]
        x = x + ops.cast(self.positions[self.length - length :], x.dtype)
        place = ops.arange(length)
        age = place[:, None] - place[None]  # [L, L]
        # A padding position sees itself: with nothing visible, attention would spread over the future.
        present = ops.logical_or(ops.cast(mask, "bool")[:, None, :], (age == 0)[None])
        visible = ops.logical_and((age >= 0)[None], present)  # [B, L, L]
        for block in self.blocks:
            x = block(x, visible, training=training)
        return self.norm(x)

    def get_config(self) -> dict[str, Any]:
        own = {"layers": self.layers, "heads": self.heads, "length": self.length, "dropout": self.dropout}
        return {**super().get_config(), **own}


class _Block(keras.layers.Layer):
    def __init__(self, heads: int, width: int, dropout: float, **kwargs: Any):
        super().__init__(**kwargs)
        policy = {"dtype": self.dtype_policy}
        self.attention_norm = keras.layers.LayerNormalization(name="attention_norm", **policy)
        self.attention = keras.layers.MultiHeadAttention(
            heads, width // heads, dropout=dropout, name="attention", **policy
        )
        self.hidden_norm = keras.layers.LayerNormalization(name="hidden_norm", **policy)
        self.hidden = keras.layers.Dense(4 * width, activation="gelu", name="hidden", **policy)
        self.output_projection = keras.layers.Dense(width, name="output", **policy)
        self.drop = keras.layers.Dropout(dropout, name="drop", **policy)

    def build(self, input_shape: Sequence[int]) -> None:
        self.attention_norm.build(input_shape)
        self.attention.build(input_shape, input_shape)
        self.hidden_norm.build(input_shape)
        self.hidden.build(input_shape)
        self.output_projection.build((*input_shape[:-1], 4 * input_shape[-1]))
        self.drop.build(input_shape)
        self.built = True

    def call(self, x: Any, visible: Any, training: bool = False) -> Any:
        normed = self.attention_norm(x)
        attended = self.attention(normed, normed, attention_mask=visible, training=training)
        x = x + self.drop(attended, training=training)
        hidden = self.output_projection(self.hidden(self.hidden_norm(x)))
        return x + self.drop(hidden, training=training)
