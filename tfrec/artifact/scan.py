"""An exact scan of a large catalogue, whose best items are found by the largest scores of small groups."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tfrec.artifact.ivf import LOWEST, Allowed, among, best_of

GROUP = 64  # of top_k
BLOCK = 8192  # items whose scores are computed together
_FEW = 16  # items that share a maximum in a scan
_SCORES = 2**18  # scores at a time, 1 MB


class Scan(tf.Module):
    """Items of the largest v_i·q among all.

    A few blocks of the catalogue at a time: their scores stay in the processor's cache, and only the largest score of
    each 16 items is kept. The best n items lie in the n groups of the largest maxima; these are scored once more.
    Exact but for the rounding of float32: of scores that differ by less, either may come first.

    Args:
        vectors: float32 [N+1, d], which must not change without the index.
        available: bool [N+1], items that may be returned, of which the same holds.
    """

    def __init__(self, vectors: tf.Variable, available: tf.Variable):
        super().__init__(name="scan")
        self.vectors, self.available = vectors, available
        table = columns(vectors.numpy(), available.numpy())
        self.columns = tf.Variable(table, shape=[None, *table.shape[1:]], trainable=False)

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
        # At most M of the best are dropped.
        _, groups = top_k(self._maxima(query, allowed), count + tf.shape(dropped)[1])
        groups = tf.sort(groups, axis=1)  # of equal scores the first comes first
        items = tf.reshape(groups[:, :, None] * _FEW + tf.range(_FEW), [tf.shape(query)[0], -1])
        items = tf.where(items < tf.size(self.available), items, 0)
        kept = tf.gather(self.available, items) & ~among(items, dropped)
        if allowed is not None:
            kept &= allowed(items)
        scores = tf.linalg.matvec(tf.gather(self.vectors, items), query)
        return best_of(tf.where(kept, scores, LOWEST), items, count)

    def _maxima(self, query: tf.Tensor, allowed: Allowed | None) -> tf.Tensor:
        """The largest score of each group [B, N / 16] of 16 items that follow one another."""
        table, rows = tf.convert_to_tensor(self.columns), tf.shape(query)[0]
        query = tf.pad(query, [[0, 0], [0, 1]], constant_values=1.0)
        blocks, width = tf.shape(table)[0], table.shape[1]
        step = tf.maximum(_SCORES // (tf.maximum(rows, 1) * BLOCK), 1)

        def look(first: tf.Tensor, found: tf.TensorArray) -> tuple[tf.Tensor, tf.TensorArray]:
            size = tf.minimum(step, blocks - first)
            # Slices of the first dimension are views: nothing is copied.
            scores = tf.matmul(query[None], tf.slice(table, [first, 0, 0], [size, width, BLOCK]))  # [size, B, BLOCK]
            if allowed is not None:
                items = tf.range(first * BLOCK, (first + size) * BLOCK)
                items = tf.where(items < tf.size(self.available), items, 0)
                may = allowed(tf.broadcast_to(items, [rows, size * BLOCK]))
                scores = tf.where(tf.transpose(tf.reshape(may, [rows, size, BLOCK]), [1, 0, 2]), scores, LOWEST)
            maxima = tf.reduce_max(tf.reshape(scores, [size, rows, BLOCK // _FEW, _FEW]), axis=3)
            return first + size, found.write(first // step, maxima)

        shape = [None, None, BLOCK // _FEW]
        found = tf.TensorArray(tf.float32, 0, dynamic_size=True, infer_shape=False, element_shape=shape)
        _, found = tf.while_loop(lambda first, _: first < blocks, look, [0, found], parallel_iterations=1)
        return tf.reshape(tf.transpose(found.concat(), [1, 0, 2]), [rows, -1])


def columns(vectors: np.ndarray, available: np.ndarray) -> np.ndarray:
    """The transposed catalogue in blocks, with a last row that takes what is not available out of the race.

    Returns:
        float32 [blocks, d + 1, 8192]; 0 + v·q = v·q in float32, so that the last row changes no score of an item.
    """
    items, width = vectors.shape
    table = np.zeros((-(-items // BLOCK) * BLOCK, width + 1), np.float32)
    table[:items, :-1] = vectors
    table[:, -1] = LOWEST / 2
    table[:items, -1][available] = 0
    return np.ascontiguousarray(table.reshape(-1, BLOCK, width + 1).transpose(0, 2, 1))


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
