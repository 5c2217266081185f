"""Orders candidates so that an answer is varied: marginal relevance, and at most m of a category."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf


class Varied(NamedTuple):
    """What a request asks of the variety of its answer.

    Args:
        strength: λ in [0, 1], float32 [B]; 0 keeps the order.
        most: m, int32 [B]; 0 sets no limit.
    """

    strength: tf.Tensor
    most: tf.Tensor

    @property
    def asked(self) -> tf.Tensor:
        """Whether any row wants more than its order."""
        return tf.reduce_any((self.strength > 0) | (self.most > 0))


def diversify(
    values: tf.Tensor, vectors: tf.Tensor, categories: tf.Tensor, names: int, varied: Varied, count: tf.Tensor
) -> tf.Tensor:
    """Places of the candidates that are answered, one after the other.

        next = argmax_i (1 − λ) · r_i − λ · max_{j chosen} v_i · v_j,   r = the row's values from 0 to 1

    over candidates none of whose categories has been chosen m times. Equal ones are taken in their order.
    Source: Carbonell and Goldstein 1998, The use of MMR, doi:10.1145/290941.291025.

    Args:
        values: float32 [B, C], best first; the lowest float32 is none.
        vectors: unit vectors float32 [B, C, d].
        categories: int32 [B, C, c], 0 = none, each once an item.
        names: the largest category.
        varied: λ and m.
        count: how many are wanted, int32 scalar.

    Returns:
        int32 [B, min(count, C)] places, −1 where no candidate is left.
    """
    values = tf.ensure_shape(values, [None, None])
    vectors, categories = (tf.ensure_shape(x, [None, None, None]) for x in (vectors, categories))
    strength, most = (tf.ensure_shape(x, [None]) for x in varied)
    rows, candidates = tf.shape(values)[0], tf.shape(values)[1]
    relevance, there = _from_0_to_1(values)
    strength = strength[:, None]
    limit = tf.where(most > 0, most, candidates + 1)[:, None, None]

    def step(
        places: tf.Tensor, left: tf.Tensor, nearest: tf.Tensor, counts: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        worth = (1 - strength) * relevance - strength * nearest
        place = _choose(worth, left, counts, categories, limit)
        safe = tf.maximum(place, 0)
        cosine = tf.einsum("bcd,bd->bc", vectors, tf.gather(vectors, safe, batch_dims=1))
        first = tf.shape(places)[1] == 0
        nearest = tf.where(first, cosine, tf.maximum(nearest, cosine))
        chosen = tf.one_hot(tf.gather(categories, safe, batch_dims=1), names + 1, dtype=tf.int32)
        left &= tf.range(candidates)[None] != place[:, None]
        return tf.concat([places, place[:, None]], 1), left, nearest, counts + tf.reduce_sum(chosen, axis=1)

    start = (tf.zeros([rows, 0], tf.int32), there, tf.zeros_like(values), tf.zeros([rows, names + 1], tf.int32))
    shapes = tuple(tf.TensorShape([None, None]) for _ in start)  # places grow
    return tf.while_loop(
        lambda places, *_: tf.shape(places)[1] < tf.minimum(count, candidates),
        step,
        start,
        shape_invariants=shapes,
    )[0]


def _choose(worth: tf.Tensor, left: tf.Tensor, counts: tf.Tensor, categories: tf.Tensor, limit: tf.Tensor) -> tf.Tensor:
    """The candidate [B] that is worth most of those left whose categories are not full; −1 without one."""
    full = (tf.gather(counts, categories, batch_dims=1) >= limit) & (categories > 0)
    usable = left & ~tf.reduce_any(full, axis=2)
    best = tf.argmax(tf.where(usable, worth, worth.dtype.min), axis=1, output_type=tf.int32)
    return tf.where(tf.reduce_any(usable, axis=1), best, -1)


def _from_0_to_1(values: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Values of a row between its worst and best candidate, 1 where all are equal; and which are candidates."""
    there = values > values.dtype.min
    best = tf.reduce_max(values, axis=1, keepdims=True)
    worst = tf.reduce_min(tf.where(there, values, best), axis=1, keepdims=True)
    span = best - worst
    return tf.where(there, tf.where(span > 0, tf.math.divide_no_nan(values - worst, span), 1.0), 0.0), there
