"""An exact scan of a large catalogue, whose best items are found by the largest scores of small groups."""

from __future__ import annotations

import tensorflow as tf

from tfrec.artifact.ivf import Allowed, among, best_of
from tfrec.artifact.stored import LOWEST
from tfrec.artifact.take import take

GROUP = 64  # of top_k
_FEW = 16  # items that share a maximum in a scan
_SCORES = 2**19  # scores at a time, 2 MB


class Scan(tf.Module):
    """Items of the largest v_i·q among all.

    A part of the catalogue at a time: its scores stay in the processor's cache, and only the largest score of each 16
    items is kept. The best n items lie in the n groups of the largest maxima; these are scored once more.
    Exact but for the rounding of float32: of scores that differ by less, either may come first.

    Args:
        vectors: float32 [N+1, d].
        available: bool [N+1], items that may be returned.
    """

    def __init__(self, vectors: tf.Variable, available: tf.Variable):
        super().__init__(name="scan")
        self.vectors, self.available = vectors, available

    def search(
        self, query: tf.Tensor, dropped: tf.Tensor, count: tf.Tensor, allowed: Allowed | None = None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Scores and items [B, ≤ count], the best first; where there is none, the lowest float32 and 0.

        Args:
            query: float32 [B, d].
            dropped: int32 [B, M] items that may not be returned.
            count: int32 scalar.
            allowed: items int32 [B, C] -> bool [B, C].
        """
        rows, size = tf.shape(query)[0], tf.size(self.available)
        grouped = size - size % _FEW
        # At most M of the best are dropped.
        _, groups = top_k(self._maxima(query, grouped, allowed), count + tf.shape(dropped)[1])
        groups = tf.sort(groups, axis=1)  # of equal scores the first comes first
        items = tf.reshape(groups[:, :, None] * _FEW + tf.range(_FEW), [rows, -1])
        others = tf.range(grouped, size)
        items = tf.concat([items, tf.broadcast_to(others, [rows, tf.size(others)])], axis=1)
        kept = take(self.available, items) & ~among(items, dropped)
        if allowed is not None:
            kept &= allowed(items)
        scores = tf.linalg.matvec(take(self.vectors, items), query)
        return best_of(tf.where(kept, scores, LOWEST), items, count)

    def _maxima(self, query: tf.Tensor, grouped: tf.Tensor, allowed: Allowed | None) -> tf.Tensor:
        """The largest score of each 16 of the first ``grouped`` items, [B, grouped / 16]."""
        vectors, available = tf.convert_to_tensor(self.vectors), tf.convert_to_tensor(self.available)
        rows, width = tf.shape(query)[0], vectors.shape[1]
        step = tf.maximum(_SCORES // (tf.maximum(rows, 1) * _FEW), 1) * _FEW

        def look(first: tf.Tensor, found: tf.TensorArray) -> tuple[tf.Tensor, tf.TensorArray]:
            size = tf.minimum(step, grouped - first)
            # Slices of rows are views where a row is a multiple of 64 bytes: nothing is copied.
            scores = tf.matmul(tf.slice(vectors, [first, 0], [size, width]), query, transpose_b=True)  # [size, B]
            there = tf.slice(available, [first], [size])[:, None]
            scores = tf.cond(tf.reduce_all(there), lambda: scores, lambda: tf.where(there, scores, LOWEST))
            if allowed is not None:
                may = allowed(tf.broadcast_to(tf.range(first, first + size), [rows, size]))
                scores = tf.where(tf.transpose(may), scores, LOWEST)
            maxima = tf.reduce_max(tf.reshape(scores, [size // _FEW, _FEW, rows]), axis=1)
            return first + step, found.write(first // step, maxima)

        found = tf.TensorArray(tf.float32, 0, dynamic_size=True, infer_shape=False, element_shape=[None, None])
        _, found = tf.while_loop(
            lambda first, _: (first < grouped) | (first == 0), look, [0, found], parallel_iterations=1
        )
        return tf.transpose(found.concat())


def lower(scores: tf.Tensor, dropped: tf.Tensor) -> tf.Tensor:
    """Scores [B, N] with the lowest float32 at the places [B, M]."""
    rows = tf.broadcast_to(tf.range(tf.shape(dropped)[0])[:, None], tf.shape(dropped))
    places = tf.reshape(tf.stack([rows, dropped], axis=-1), [-1, 2])
    return tf.tensor_scatter_nd_update(scores, places, tf.fill(tf.shape(places)[:1], LOWEST))


def top_k(scores: tf.Tensor, count: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """What tf.math.top_k gives, ties included, for long rows and few places.

    The best ``count`` lie in the ``count`` groups of 64 whose largest scores are largest.

    Args:
        scores: float32 [B, N].
        count: int32 scalar.

    Returns:
        Scores and places [B, min(count, N)].
    """
    rows, size = tf.shape(scores)[0], tf.shape(scores)[1]
    missing = -size % GROUP
    scores = tf.cond(
        missing > 0, lambda: tf.pad(scores, [[0, 0], [0, missing]], constant_values=LOWEST), lambda: scores
    )
    scores = tf.reshape(scores, [rows, -1, GROUP])
    maxima = tf.reduce_max(scores, axis=2)
    groups = tf.math.top_k(maxima, tf.minimum(count, tf.shape(maxima)[1])).indices
    groups = tf.sort(groups, axis=1)  # of equal scores the first comes first
    inside = tf.reshape(tf.gather(scores, groups, batch_dims=1), [rows, -1])
    found, place = tf.math.top_k(inside, tf.minimum(count, size))
    return found, tf.gather(groups, place // GROUP, batch_dims=1) * GROUP + place % GROUP
