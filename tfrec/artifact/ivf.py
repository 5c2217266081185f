"""An inverted file in the served graph: the nearest buckets are gathered and scored, the others are not looked at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import tensorflow as tf

from tfrec.artifact.buckets import Buckets

LOWEST = float(np.finfo(np.float32).min)
Allowed = Callable[[tf.Tensor], tf.Tensor]
Storage = Literal["float32", "bfloat16"]
_SHORTLIST = 2  # of what is asked for, when rounded scores choose what is scored exactly


class IVF(tf.Module):
    """Items of the largest v_i·q among those of the ``nprobe`` buckets whose centroids have the largest c·q.

    With ``nprobe`` = P the answer is that of a scan. Ops of TensorFlow's core alone, so that stock TF Serving runs it.
    Source: Jégou et al. 2011, doi 10.1109/TPAMI.2010.57.

    Args:
        vectors: float32 [N+1, d], which must not change without the index.
        buckets: of the items that can be found.
        storage: of the vectors in the buckets; what bfloat16 finds is scored again by ``vectors``.
    """

    def __init__(self, vectors: tf.Variable, buckets: Buckets, storage: Storage = "float32"):
        super().__init__(name="ivf")
        self.vectors, self.width, self.cap = vectors, vectors.shape[1], buckets.items.shape[1]
        # Buckets are open, so that a later version can hold more of them without training code.
        self.centroids = _open(buckets.centroids.T, "float32", axis=1)  # [d, P], the faster way round
        self.items = _open(buckets.items, "int32")
        self.columns = _open(columns(vectors.numpy(), buckets.items), storage)

    def search(
        self, query: tf.Tensor, dropped: tf.Tensor, count: tf.Tensor, nprobe: tf.Tensor, allowed: Allowed | None = None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Scores and items [B, ≤ count], the best first; where there is none, the lowest float32 and 0.

        Args:
            query: float32 [B, d].
            dropped: int32 [B, M] items that may not be returned.
            count: int32 scalar.
            nprobe: int32 scalar ≥ 1, buckets to look into.
            allowed: items int32 [B, C] -> bool [B, C], asked about every item that is looked at.
        """
        scores, items = self._look(query, nprobe)
        kept = items > 0
        if allowed is not None:
            kept &= allowed(items)
        rounded = self.columns.dtype != tf.float32
        # At most M of the best are dropped: these few are compared, not all that was looked at.
        wide = (_SHORTLIST if rounded else 1) * count + tf.shape(dropped)[1]
        found, items = best_of(tf.where(kept, scores, LOWEST), items, wide)
        kept = (found > LOWEST) & ~among(items, dropped)
        if rounded:
            found = tf.linalg.matvec(tf.gather(self.vectors, items), query)
        return best_of(tf.where(kept, found, LOWEST), items, count)

    def _look(self, query: tf.Tensor, nprobe: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Scores and items [B, nprobe · cap] of the nearest buckets."""
        rows, probes = tf.shape(query)[0], tf.minimum(nprobe, tf.shape(self.items)[0])
        near = tf.math.top_k(tf.matmul(query, self.centroids), probes).indices
        columns_ = tf.reshape(tf.gather(self.columns, near), [rows, probes, self.width, self.cap])
        query = tf.cast(query, self.columns.dtype)
        scores = tf.cast(tf.matmul(query[:, None, None], columns_), tf.float32)  # [B, nprobe, 1, cap]
        shape = [rows, probes * self.cap]
        return tf.reshape(scores, shape), tf.reshape(tf.gather(self.items, near), shape)


def columns(vectors: np.ndarray, items: np.ndarray) -> np.ndarray:
    """The vectors of each bucket side by side, as one row of the table, float32 [P, d · cap]."""
    return np.ascontiguousarray(vectors[items].transpose(0, 2, 1)).reshape(len(items), -1)


def among(items: tf.Tensor, dropped: tf.Tensor) -> tf.Tensor:
    """Which of the items [B, C] are in the row of ``dropped`` [B, M], or 0; bool [B, C]."""
    dropped = tf.sort(tf.pad(dropped, [[0, 0], [1, 0]]), axis=1)
    place = tf.searchsorted(dropped, items, side="right") - 1
    return tf.gather(dropped, place, batch_dims=1) == items


def best_of(scores: tf.Tensor, items: tf.Tensor, count: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The ``count`` best scores and their items [B, ≤ count]."""
    found, place = tf.math.top_k(scores, tf.minimum(count, tf.shape(scores)[1]))
    return found, tf.where(found > LOWEST, tf.gather(items, place, batch_dims=1), 0)


def _open(value: np.ndarray, dtype: str, axis: int = 0) -> tf.Variable:
    shape: list[int | None] = list(value.shape)
    shape[axis] = None
    return tf.Variable(tf.cast(value, dtype), shape=shape, trainable=False)
