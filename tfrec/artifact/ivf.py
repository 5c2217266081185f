"""An inverted file in the served graph: the nearest buckets are gathered and scored, the others are not looked at."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from tfrec.artifact.buckets import SURE, Buckets, in_rows, reaches
from tfrec.artifact.stored import LOWEST, Storage, stored_as
from tfrec.artifact.take import take

Allowed = Callable[[tf.Tensor], tf.Tensor]
Found = tuple[tf.Tensor, tf.Tensor]
"""Scores and items [B, C], the best first; the lowest float32 and 0 where there is none."""
HELD = ("centroids", "directions", "starts", "items", "rows")


class IVF(tf.Module):
    """Items of the largest v_i·q among those of the buckets p whose centroids are near, c_p·q ≥ c₄·q - r_n |q|.

    c₄·q is the fourth largest product with a centroid, and r_n the reach with which queries look into n buckets on
    average, so that a query beside a small cluster looks into few buckets, one inside a large cluster into many. With
    ``nprobe`` n < 4 the n nearest are looked into, with n ≥ P all of them. Vectors that are not stored as they are
    choose a shortlist, which is scored by the vectors themselves: a score that is returned is exact. Ops of
    TensorFlow's core alone, so that stock TF Serving runs it. Source: Jégou et al. 2011, doi 10.1109/TPAMI.2010.57.

    Args:
        vectors: float32 [N+1, d], which must not change without the index.
        buckets: of the items that can be found.
        storage: of the vectors in the buckets.
        reach: float32 [P], r_1 to r_P; None = of queries that are the centroids.
        nprobe: buckets to look into, on average, unless a request says otherwise.
    """

    def __init__(
        self,
        vectors: tf.Variable,
        buckets: Buckets,
        storage: Storage = "packed",
        reach: np.ndarray | None = None,
        nprobe: int = 1,
    ):
        super().__init__(name="ivf")
        self.vectors, self.nprobe, self._stored = vectors, nprobe, stored_as(storage, vectors.shape[1])
        held = contents(buckets, vectors.numpy(), storage)
        # Lists are open, so that a later version can hold more without training code.
        self.centroids, self.directions, self.starts, self.items, self.rows = (_open(held[name]) for name in HELD)
        reach = reaches(buckets.centroids, buckets.centroids) if reach is None else reach
        self.reach = tf.Variable(self._stored.distances(reach, buckets.centroids), trainable=False)

    def search(
        self, query: tf.Tensor, dropped: tf.Tensor, count: tf.Tensor, nprobe: tf.Tensor, allowed: Allowed | None = None
    ) -> Found:
        """Scores and items [B, ≤ count], the best first; where there is none, the lowest float32 and 0.

        Args:
            query: float32 [B, d].
            dropped: int32 [B, M] items that may not be returned.
            count: int32 scalar.
            nprobe: int32 scalar ≥ 1.
            allowed: items int32 [B, C] -> bool [B, C], asked about every item that is looked at.
        """
        asked = self._stored.asked(query)
        near = self._near(asked, query, nprobe)
        place, products = self._look(asked, near, tf.shape(query)[0])
        # At most M of the best are dropped: these few are named and compared, not all that was looked at.
        wide = self._stored.shortlist(count + tf.shape(dropped)[1])
        found, items = self._shortlist(place, products, wide, allowed)
        if not self._stored.exact:
            found = tf.linalg.matvec(take(self.vectors, items), query)
        return best_of(tf.where(among(items, dropped), LOWEST, found), items, count)

    def _near(self, asked: tf.Tensor, query: tf.Tensor, nprobe: tf.Tensor) -> tf.Tensor:
        """Rows of the batch and buckets that are near them, int64 [n, 2]."""
        fields = self._stored.fields(tf.matmul(asked, tf.convert_to_tensor(self.directions), transpose_b=True))
        buckets, best = self.reach.shape[0], functools.reduce(tf.maximum, fields)
        # Of the best of each row alone: directions that share a row point far apart.
        sure = tf.math.top_k(best, tf.minimum(nprobe, min(SURE, -(-buckets // self._stored.width)))).values[:, -1:]
        reach = take(self.reach, tf.minimum(nprobe, buckets) - 1)
        products = tf.concat(fields, axis=1)
        # To a query of zeros all are as near: some will do.
        directed = tf.reduce_any(asked != 0, axis=1, keepdims=True) | (tf.range(tf.shape(products)[1]) < nprobe)
        return tf.where((products >= sure - self._stored.within(reach, query)) & directed)

    def _look(self, asked: tf.Tensor, near: tf.Tensor, batch: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Places int32 [B, W] of the rows of buckets, and their products; without meaning where a query has fewer."""
        starts, ends = take(self.starts, near[:, 1]), take(self.starts, near[:, 1] + 1)
        flat = tf.ragged.range(starts, ends).flat_values

        def alone() -> tuple[tf.Tensor, tf.Tensor]:
            return flat[None], tf.matmul(asked, take(self.rows, flat), transpose_b=True)

        def together() -> tuple[tf.Tensor, tf.Tensor]:
            place = _padded(flat, tf.math.unsorted_segment_sum(ends - starts, near[:, 0], batch))
            there, place = place >= 0, tf.maximum(place, 0)
            products = tf.linalg.matvec(take(self.rows, place), asked)
            return place, tf.where(there, products, tf.cast(self._stored.nothing, products.dtype))

        return tf.cond(tf.equal(batch, 1), alone, together)

    def _shortlist(self, place: tf.Tensor, products: tf.Tensor, count: tf.Tensor, allowed: Allowed | None) -> Found:
        """The largest fields and their items [B, ≤ count], 0 where there is none; rows first, then what is in them."""
        best = functools.reduce(tf.maximum, self._fields(place, products, allowed))
        _, which = tf.math.top_k(best, tf.minimum(count, tf.shape(best)[1]), sorted=False)
        place, products = (tf.gather(value, which, batch_dims=1) for value in (place, products))
        fields = tf.stack(self._fields(place, products, allowed), axis=2)
        fields, items = (tf.reshape(value, [tf.shape(place)[0], -1]) for value in (fields, take(self.items, place)))
        if self._stored.width > 1:
            fields, which = tf.math.top_k(fields, tf.minimum(count, tf.shape(fields)[1]), sorted=False)
            items = tf.gather(items, which, batch_dims=1)
        return fields, tf.where(fields > self._stored.none, items, 0)

    def _fields(self, place: tf.Tensor, products: tf.Tensor, allowed: Allowed | None) -> list[tf.Tensor]:
        """For each of a row's items a number that grows with its score, the lowest where it is not allowed."""
        fields = self._stored.fields(products)
        if allowed is None:
            return fields
        items = tf.unstack(take(self.items, place), axis=2)
        return [tf.where(allowed(item), field, self._stored.none) for item, field in zip(items, fields, strict=True)]


def contents(buckets: Buckets, vectors: np.ndarray, storage: Storage) -> dict[str, np.ndarray]:
    """What the variables HELD of an index hold: [P, d], [·, d], [P+1 or a little more], [W, ·] and [W, d]."""
    stored, count = stored_as(storage, vectors.shape[1]), len(buckets.centroids)
    items, starts = in_rows(buckets, stored.width)
    more = -count % stored.width  # buckets that hold nothing
    chosen = np.append(np.arange(count), np.full(more, count - 1)).reshape(stored.width, -1).T
    values = (
        buckets.centroids,
        stored.rows(buckets.centroids, chosen),
        np.append(starts, np.full(more, starts[-1], np.int32)),
        items,
        stored.rows(vectors, items),
    )
    return dict(zip(HELD, values, strict=True))


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


def _open(value: np.ndarray, axis: int = 0) -> tf.Variable:
    shape: list[int | None] = list(value.shape)
    shape[axis] = None
    return tf.Variable(value, shape=shape, trainable=False)
