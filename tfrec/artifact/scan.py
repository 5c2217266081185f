"""An exact scan of a large catalogue, whose best items are found by the largest score of each group of 64."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tfrec.artifact.ivf import LOWEST, Allowed

GROUP = 64


class Scan(tf.Module):
    """Items of the largest v_i·q among all.

    Args:
        vectors: float32 [N+1, d].
        available: bool [N+1], items that may be returned.
    """

    def __init__(self, vectors: tf.Variable, available: tf.Variable):
        super().__init__(name="scan")
        self.available = available
        # Transposed, a matrix product with few queries takes a half of the time.
        self.columns = tf.Variable(columns(vectors.numpy()), shape=[vectors.shape[1], None], trainable=False)

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
        scores = tf.matmul(query, self.columns)
        rows, size = tf.shape(scores)[0], tf.shape(scores)[1]
        open_ = tf.pad(self.available, [[0, size - tf.size(self.available)]])
        closed = tf.cast(tf.where(~open_), tf.int32)[:, 0]
        # Few places are written, which spares a copy of all scores.
        scores = lower(scores, tf.concat([tf.broadcast_to(closed, [rows, tf.size(closed)]), dropped], axis=1))
        if allowed is not None:
            scores = tf.where(allowed(tf.broadcast_to(tf.range(size), [rows, size])), scores, LOWEST)
        found, items = top_k(scores, count)
        return found, tf.where(found > LOWEST, items, 0)


def columns(vectors: np.ndarray) -> np.ndarray:
    """The transposed catalogue with columns of zeros up to a whole group, float32 [d, ≥ N+1]."""
    return np.ascontiguousarray(np.pad(vectors, [(0, -len(vectors) % GROUP), (0, 0)]).T)


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
