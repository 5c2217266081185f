"""BERT for inference: few large matrix products over real tokens only, from a KerasHub backbone's weights."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import keras
import tensorflow as tf
from keras import ops

from tfrec.errors import EncoderError

Precision = Literal["float32", "bfloat16"]
_EPSILON = 1e-12  # of BERT's layer normalisation
_MASKED = -1e9
_STEP = 16


class Dense(NamedTuple):
    """x · kernel + bias: [a, b] and [b]."""

    kernel: tf.Tensor
    bias: tf.Tensor


class Norm(NamedTuple):
    """Scale and offset of a layer normalisation, [t] each."""

    scale: tf.Tensor
    offset: tf.Tensor


class Block(NamedTuple):
    """One transformer layer; ``qkv`` holds query · 1/√(t/heads), key and value side by side, [t, 3t]."""

    qkv: Dense
    attention: Dense
    attention_norm: Norm
    inner: Dense
    outer: Dense
    norm: Norm


class Weights(NamedTuple):
    """tokens [V, t], positions [P, t] with the first segment's vector added, and the layers."""

    tokens: tf.Tensor
    positions: tf.Tensor
    norm: Norm
    blocks: tuple[Block, ...]


class FastBert:
    """Mean of BERT's token vectors over the mask, of unit length: ``TextEncoder`` without dropout.

    Formula: h = BERT(ids) [B, S, t]; v = Σ_s m_s h_s / Σ_s m_s with m = (ids ≠ 0); out = v / ‖v‖₂.

    Everything but attention runs on the rows of one matrix of real tokens, [T, t] with T = Σ m: padding costs nothing.
    Query, key and value are one product. TensorFlow fuses each product with its bias, GELU or residual.

    Args:
        backbone: KerasHub's BERT network; the weights are copied as they are now, LoRA updates merged.
        heads: attention heads.
        precision: of products and their weights; sums over features, norms and the result stay float32.

    Attributes:
        variables: every weight, as raw ``tf.Variable``; TF Serving finds no others.
    """

    def __init__(self, backbone: keras.Model, heads: int, precision: Precision = "float32"):
        self._heads, self._dtype = heads, tf.as_dtype(precision)
        # Variables, not constants: a SavedModel's graph must stay below 2 GB.
        self._weights: Weights = tf.nest.map_structure(
            lambda value: tf.Variable(value, trainable=False), _read(backbone, heads, self._dtype)
        )
        self.variables: list[tf.Variable] = tf.nest.flatten(self._weights)

    def __call__(self, token_ids: Any) -> tf.Tensor:
        """Unit vectors; zeros for a row of padding alone.

        Args:
            token_ids: int32 [B, S], padded with 0; B and S may be dynamic.

        Returns:
            float32 [B, t].

        Raises:
            EncoderError: S is static and more than the network's positions.
        """
        token_ids = tf.convert_to_tensor(token_ids)
        check_length(token_ids.shape[1], self._weights.positions.shape[0])
        layout = _lay_out(token_ids)
        x = tf.gather(self._weights.tokens, layout.ids)
        x = tf.cast(x, tf.float32) + tf.gather(self._weights.positions, layout.column)
        x = _normalise(x, self._weights.norm)  # [T, t]
        for block in self._weights.blocks:
            x = _normalise(x + self._product(self._attend(x, block, layout), block.attention), block.attention_norm)
            inner = tf.nn.gelu(_dense(tf.cast(x, self._dtype), block.inner), approximate=True)
            x = _normalise(x + self._product(inner, block.outer), block.norm)
        return _unit_mean(x, layout)

    def _product(self, x: tf.Tensor, dense: Dense) -> tf.Tensor:
        return tf.cast(_dense(x, dense), tf.float32)

    def _attend(self, x: tf.Tensor, block: Block, layout: _Layout) -> tf.Tensor:
        """Heads' outputs side by side, [T, t]; attention alone needs the padded form."""
        width = x.shape[-1]
        rows, length = tf.unstack(tf.shape(layout.mask))
        qkv = tf.gather(_dense(tf.cast(x, self._dtype), block.qkv), layout.place)  # [B, S, 3t]
        qkv = tf.reshape(qkv, [rows, length, 3, self._heads, width // self._heads])
        query, key, value = tf.unstack(tf.transpose(qkv, [2, 0, 3, 1, 4]))  # [B, heads, S, t/heads] each
        bias = tf.cast(tf.where(layout.mask, 0.0, _MASKED), self._dtype)[:, None, None, :]
        mixed = tf.matmul(tf.nn.softmax(tf.matmul(query, key, transpose_b=True) + bias), value)
        return tf.gather(tf.reshape(tf.transpose(mixed, [0, 2, 1, 3]), [rows * length, width]), layout.flat)


def check_length(length: int | None, positions: int) -> None:
    """Refuses texts longer than the network's positions; None is not known yet.

    Raises:
        EncoderError: they are.
    """
    if length is not None and length > positions:
        raise EncoderError(f"a text must have at most {positions} tokens, the encoder's positions", length)


class _Layout(NamedTuple):
    """Where each real token lies in the padded matrix [B, S], S trimmed to the longest row, and back."""

    mask: tf.Tensor  # bool [B, S]
    place: tf.Tensor  # int32 [B, S]: row of the token matrix; any for padding
    flat: tf.Tensor  # int32 [T]: place in [B · S]
    row: tf.Tensor  # int32 [T]
    column: tf.Tensor  # int32 [T]
    ids: tf.Tensor  # int32 [T]; 0 for the few that fill T up to a multiple of _STEP


def _lay_out(token_ids: tf.Tensor) -> _Layout:
    last = tf.where(token_ids != 0, tf.range(1, tf.shape(token_ids)[1] + 1), 0)
    token_ids = token_ids[:, : tf.maximum(tf.reduce_max(last), 1)]
    mask = token_ids != 0
    rows, length = tf.unstack(tf.shape(token_ids))
    # A row of padding alone keeps one token, so that the padded form always has a row to point at.
    kept = tf.reshape(mask | (tf.range(length) == 0), [-1])
    flat = tf.cast(tf.where(kept)[:, 0], tf.int32)
    ids = tf.gather(tf.reshape(token_ids, [-1]), flat)
    # oneDNN compiles and keeps code for every number of rows that it meets.
    filler = [[0, -tf.size(flat) % _STEP]]
    flat, ids = tf.pad(flat, filler), tf.pad(ids, filler)
    count = tf.cumsum(tf.cast(kept, tf.int32), exclusive=True)
    place = tf.reshape(tf.where(kept, count, 0), [rows, length])
    return _Layout(mask, place, flat, flat // length, flat % length, ids)


def _dense(x: tf.Tensor, dense: Dense) -> tf.Tensor:
    return tf.nn.bias_add(tf.matmul(x, dense.kernel), dense.bias)


def _normalise(x: tf.Tensor, norm: Norm) -> tf.Tensor:
    centred = x - tf.reduce_mean(x, axis=-1, keepdims=True)
    variance = tf.reduce_mean(tf.square(centred), axis=-1, keepdims=True)
    return centred * tf.math.rsqrt(variance + _EPSILON) * norm.scale + norm.offset


def _unit_mean(x: tf.Tensor, layout: _Layout) -> tf.Tensor:
    said = tf.cast(layout.ids != 0, tf.float32)[:, None]
    rows = tf.shape(layout.mask)[0]
    total = tf.math.unsorted_segment_sum(x * said, layout.row, rows)  # [B, t]
    mean = total / tf.maximum(tf.math.unsorted_segment_sum(said, layout.row, rows), 1.0)
    return mean / tf.maximum(tf.norm(mean, axis=-1, keepdims=True), 1e-12)


def _read(backbone: keras.Model, heads: int, dtype: tf.DType) -> Weights:
    tokens, positions, segments = (backbone.get_layer(f"{name}_embedding") for name in ("token", "position", "segment"))
    blocks = [layer for layer in backbone.layers if layer.name.startswith("transformer_layer_")]
    return Weights(
        _tensor(tokens.embeddings, dtype),
        _tensor(positions.position_embeddings) + _tensor(segments.embeddings)[0],
        _read_norm(backbone.get_layer("embeddings_layer_norm")),
        tuple(_read_block(block, heads, dtype) for block in blocks),
    )


def _read_block(block: Any, heads: int, dtype: tf.DType) -> Block:
    attention = block._self_attention_layer
    query, key, value = (_read_dense(getattr(attention, f"{name}_dense")) for name in ("query", "key", "value"))
    scale = (query.bias.shape[0] // heads) ** -0.5
    kernel = tf.concat([query.kernel * scale, key.kernel, value.kernel], axis=1)
    bias = tf.concat([query.bias * scale, key.bias, value.bias], axis=0)
    return Block(
        Dense(tf.cast(kernel, dtype), tf.cast(bias, dtype)),
        _read_dense(attention.output_dense, dtype),
        _read_norm(block._self_attention_layer_norm),
        _read_dense(block._feedforward_intermediate_dense, dtype),
        _read_dense(block._feedforward_output_dense, dtype),
        _read_norm(block._feedforward_layer_norm),
    )


def _read_dense(layer: Any, dtype: tf.DType = tf.float32) -> Dense:
    # An attention's kernels have an axis of heads among their inputs or outputs; the bias tells the outputs.
    bias = tf.reshape(_tensor(layer.bias, dtype), [-1])
    return Dense(tf.reshape(_tensor(layer.kernel, dtype), [-1, bias.shape[0]]), bias)


def _read_norm(layer: Any) -> Norm:
    return Norm(_tensor(layer.gamma), _tensor(layer.beta))


def _tensor(value: Any, dtype: tf.DType = tf.float32) -> tf.Tensor:
    return tf.cast(ops.convert_to_tensor(value), dtype)
