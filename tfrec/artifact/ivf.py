"""An inverted file in the served graph: the nearest buckets are gathered and scored, the others are not looked at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import tensorflow as tf

from tfrec.artifact.buckets import Buckets
from tfrec.artifact.take import take

LOWEST = float(np.finfo(np.float32).min)
Allowed = Callable[[tf.Tensor], tf.Tensor]
Storage = Literal["float32", "bfloat16"]
SURE = 4  # buckets that every query looks into, or nprobe if that is less
_SHORTLIST = 2  # of what is asked for, when rounded scores choose what is scored exactly


class IVF(tf.Module):
    """Items of the largest v_i·q among those of the ``nprobe`` buckets whose centroids have the largest c·q.

    Of these, a bucket is left out if c·q < c₄·q - reach · nprobe · |q|, with the fourth largest c₄·q: a query beside a
    small cluster is done after few buckets, one inside a large cluster is not. With ``nprobe`` = P none is left out:
    the answer is that of a scan. Ops of TensorFlow's core alone, so that stock TF Serving runs it.
    Source: Jégou et al. 2011, doi 10.1109/TPAMI.2010.57.

    Args:
        vectors: float32 [N+1, d], which must not change without the index.
        buckets: of the items that can be found.
        storage: of the vectors in the buckets; what bfloat16 finds is scored again by ``vectors``.
        reach: of cosines, for each bucket that may be looked into; None = no bucket is left out.
        nprobe: buckets to look into unless a request says otherwise.
    """

    def __init__(
        self,
        vectors: tf.Variable,
        buckets: Buckets,
        storage: Storage = "float32",
        reach: float | None = None,
        nprobe: int = 1,
    ):
        super().__init__(name="ivf")
        self.vectors, self.reach, self.nprobe = vectors, reach, nprobe
        # Lists are open, so that a later version can hold more without training code.
        self.centroids = _open(buckets.centroids.T, "float32", axis=1)  # [d, P], the faster way round
        self.starts = _open(buckets.starts, "int32")
        self.items = _open(buckets.items, "int32")
        self.rows = _open(vectors.numpy()[buckets.items], storage)  # what is near lies together

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
        scores, place = self._look(query, nprobe)
        kept = place >= 0
        if allowed is not None:
            kept &= allowed(tf.gather(self.items, tf.maximum(place, 0)))
        rounded = self.rows.dtype != tf.float32
        # At most M of the best are dropped: these few are named and compared, not all that was looked at.
        wide = (_SHORTLIST if rounded else 1) * count + tf.shape(dropped)[1]
        found, place = best_of(tf.where(kept, scores, LOWEST), place, wide)
        items = tf.where(found > LOWEST, tf.gather(self.items, place), 0)
        kept = (found > LOWEST) & ~among(items, dropped)
        if rounded:
            found = tf.linalg.matvec(take(self.vectors, items), query)
        return best_of(tf.where(kept, found, LOWEST), items, count)

    def _look(self, query: tf.Tensor, nprobe: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Scores and places in the lists [B, C] of what the nearest buckets hold; place -1 where a row has fewer."""
        rows, buckets = tf.shape(query)[0], tf.shape(self.centroids)[1]
        near = tf.math.top_k(tf.matmul(query, self.centroids), tf.minimum(nprobe, buckets))
        close = self._close(near.values, query, nprobe) | (nprobe >= buckets)
        starts = tf.gather(self.starts, near.indices)
        ends = tf.where(close, tf.gather(self.starts, near.indices + 1), starts)
        flat = tf.ragged.range(tf.reshape(starts, [-1]), tf.reshape(ends, [-1])).flat_values
        lengths = tf.reduce_sum(ends - starts, axis=1)
        place = tf.cond((rows == 1) & (tf.size(flat) > 0), lambda: flat[None], lambda: _padded(flat, lengths))
        vectors = tf.gather(self.rows, tf.maximum(place, 0))  # [B, C, d]
        return tf.cast(tf.linalg.matvec(vectors, tf.cast(query, vectors.dtype)), tf.float32), place

    def _close(self, products: tf.Tensor, query: tf.Tensor, nprobe: tf.Tensor) -> tf.Tensor:
        """Which buckets are within reach, by their c·q [B, n], the largest first."""
        if self.reach is None:
            return tf.ones_like(products, tf.bool)
        behind = self.reach * tf.cast(nprobe, tf.float32) * tf.norm(query, axis=1, keepdims=True)
        return products >= products[:, :SURE][:, -1:] - behind


def _padded(flat: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
    """Rows of ``lengths`` [B] that follow one another in ``flat``, with -1 up to the longest, one place at least."""
    wide = tf.range(tf.maximum(tf.reduce_max(lengths), 1))
    place = tf.cumsum(lengths, exclusive=True)[:, None] + wide
    inside = wide < lengths[:, None]
    return tf.gather(tf.pad(flat, [[0, 1]], constant_values=-1), tf.where(inside, place, tf.size(flat)))


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
