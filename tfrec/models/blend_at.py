"""The blend's scores at chosen items, for catalogues of which not every score is computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfrec.models.blend import LINEAR, Blend, recency


class Table(NamedTuple):
    """Vectors float32 [M+1, d], and their moments [d+1, d]: covariances, and the mean below."""

    vectors: tf.Tensor
    moments: tf.Tensor


class Sums(NamedTuple):
    """Values added up by item.

    Args:
        ids: int32 [B, E], ascending, 0 = nothing.
        segment: int32 [B, E], the place in ``totals`` of each.
        totals: float32 [B, E]; places that no id has are 0.
        used: bool [B, E], the places that an item has.
    """

    ids: tf.Tensor
    segment: tf.Tensor
    totals: tf.Tensor
    used: tf.Tensor


class BlendAt:
    """What :class:`Blend` gives, at some items of M: the same sum, standardised over all M.

    Means and deviations of products follow from the moments of the vectors, in d² operations; sums by item are 0 but
    at neighbours of the history, so that theirs follow from these alone.

    Args:
        blend: fitted; only its raw variables are read.
    """

    def __init__(self, blend: Blend):
        self.blend, weights = blend, blend.weight_of
        self.reads_texts = "text" in weights
        self.sparse = [name for name in (*LINEAR, "frequency") if name in weights]
        if "popularity" in weights:
            counts = np.asarray(blend.popularity)[1:].astype(np.float64)
            self._popularity_moments = float(counts.mean()), float(counts.var())

    def profile(self, history: tf.Tensor, vectors: tf.Tensor) -> tf.Tensor:
        """The weighted text of each history [B, L], float32 [B, t]."""
        weights = recency(history, self.blend.decays["text"]) * _last(history)
        return tf.einsum("bl,blt->bt", weights, tf.gather(vectors, history))

    def sums(self, history: tf.Tensor) -> dict[str, Sums]:
        """Of each part that is a sum by item, over histories int32 [B, L]."""
        return {name: self._sums(name, history) for name in self.sparse}

    def candidates(self, sums: dict[str, Sums], count: tf.Tensor) -> list[tf.Tensor]:
        """For each of the sums the items of the largest, int32 [B, ≤ count]; 0 = none."""
        return [largest(part, count) for part in sums.values()]

    def parts(
        self,
        query: tf.Tensor,
        history: tf.Tensor,
        items: tf.Tensor,
        sums: dict[str, Sums],
        own: tuple[tf.Tensor, tf.Tensor],
        texts: tuple[tf.Tensor, tf.Tensor] | None,
    ) -> dict[str, tf.Tensor]:
        """What is summed, before weights, float32 [B, C] each at items int32 [B, C], as :meth:`Blend.parts` has it.

        Args:
            query: float32 [B, d].
            history: int32 [B, L], oldest first, 0 = padding.
            items: rows of ``own``.
            sums: as of :meth:`sums`.
            own: item vectors, and their moments.
            texts: the text vectors that are compared, and their moments; None where the blend reads none.
        """
        size = tf.cast(tf.shape(own[0])[0] - 1, tf.float32)
        products: dict[str, Callable[[], tf.Tensor]] = {
            "model": lambda: _product(query, items, Table(*own)),
            "text": lambda: self._text(history, items, texts),
            "popularity": lambda: self._popular(items, size),
        }
        return {
            name: _comparable(sums[name], items, size) if name in sums else products[name]()
            for name in self.blend.weight_of
        }

    def total(self, parts: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """The weighted sum of :meth:`parts`, of which there is one at least."""
        return self.blend.total(parts)

    def _sums(self, name: str, history: tf.Tensor) -> Sums:
        weights = recency(history, self.blend.decays[name])
        if name == "frequency":
            return sum_up(history, weights)
        if name == "neighbours":
            weights *= _last(history)
        history, weights = self._trained(history, weights)
        ids = tf.gather(self.blend.ids[name].value, history)  # [B, L, m]
        values = tf.gather(self.blend.values[name].value, history) * weights[..., None]
        flat = [tf.shape(history)[0], tf.shape(history)[1] * self.blend.neighbours]
        return sum_up(tf.reshape(ids, flat), tf.reshape(values, flat))

    def _text(self, history: tf.Tensor, items: tf.Tensor, texts: tuple[tf.Tensor, tf.Tensor] | None) -> tf.Tensor:
        assert texts is not None
        return _product(self.profile(history, texts[0]), items, Table(*texts))

    def _popular(self, items: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
        items, known = self._trained(items, tf.ones(tf.shape(items)))
        moments = _among_more(*self._popularity_moments, self.blend.items / size)
        return _standard(tf.gather(self.blend.popularity.value, items) * known, *moments)

    def _trained(self, items: tf.Tensor, values: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Items and values without items that are new."""
        trained = items <= self.blend.items
        return tf.where(trained, items, 0), tf.where(trained, values, 0.0)


def sum_up(ids: tf.Tensor, values: tf.Tensor) -> Sums:
    """Adds values [B, E] up by their ids int32 [B, E]; id 0 is left out."""
    order = tf.argsort(ids, axis=1)
    ids, values = tf.gather(ids, order, batch_dims=1), tf.gather(values, order, batch_dims=1)
    first = tf.not_equal(ids, tf.pad(ids, [[0, 0], [1, 0]])[:, :-1])
    segment = tf.cumsum(tf.cast(first, tf.int32), axis=1)  # 0 = the ids that are 0
    rows, width = tf.shape(ids)[0], tf.shape(ids)[1] + 1
    place = tf.reshape(segment + (tf.range(rows) * width)[:, None], [-1])
    totals = tf.math.unsorted_segment_sum(tf.reshape(values, [-1]), place, rows * width)
    totals = tf.reshape(totals, [rows, width])
    used = tf.range(width)[None] <= tf.reduce_max(segment, axis=1, keepdims=True)
    used &= tf.range(width)[None] > 0
    return Sums(ids, segment, tf.where(used, totals, 0.0), used)


def at(sums: Sums, items: tf.Tensor) -> tf.Tensor:
    """The totals of items int32 [B, C], 0 where there is none."""
    ids = tf.pad(sums.ids, [[0, 0], [1, 0]])
    segment = tf.pad(sums.segment, [[0, 0], [1, 0]])
    place = tf.searchsorted(ids, items, side="right") - 1
    there = tf.equal(tf.gather(ids, place, batch_dims=1), items)
    totals = tf.gather(sums.totals, tf.gather(segment, place, batch_dims=1), batch_dims=1)
    return tf.where(there, totals, 0.0)


def largest(sums: Sums, count: tf.Tensor) -> tf.Tensor:
    """The items of the largest totals, int32 [B, ≤ count], 0 where there are fewer."""
    lowest = float(np.finfo(np.float32).min)
    by_place = tf.where(tf.gather(sums.used, sums.segment, batch_dims=1), 0.0, lowest)
    first = tf.not_equal(sums.ids, tf.pad(sums.ids, [[0, 0], [1, 0]])[:, :-1])
    totals = tf.where(first, tf.gather(sums.totals, sums.segment, batch_dims=1) + by_place, lowest)
    found, place = tf.math.top_k(totals, tf.minimum(count, tf.shape(totals)[1]))
    return tf.where(found > lowest, tf.gather(sums.ids, place, batch_dims=1), 0)


def _comparable(sums: Sums, items: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """z ∘ arsinh ∘ z of the totals at items, where all others of the M items have a total of 0."""
    used = tf.cast(sums.used, tf.float32)
    others = size - tf.reduce_sum(used, axis=1, keepdims=True)

    def moments(values: tf.Tensor, other: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        mean = (tf.reduce_sum(used * values, axis=1, keepdims=True) + others * other) / size
        squares = tf.reduce_sum(used * (values - mean) ** 2, axis=1, keepdims=True)
        return mean, (squares + others * (other - mean) ** 2) / size

    zero = tf.zeros_like(others)
    first = moments(sums.totals, zero)
    squash = lambda totals: tf.asinh(_standard(totals, *first))  # noqa: E731
    return _standard(squash(at(sums, items)), *moments(squash(sums.totals), squash(zero)))


def _product(query: tf.Tensor, items: tf.Tensor, table: Table) -> tf.Tensor:
    """Standardised products with the query at items."""
    mean = tf.matmul(query, table.moments[-1:], transpose_b=True)
    variance = tf.reduce_sum(tf.matmul(query, table.moments[:-1]) * query, axis=1, keepdims=True)
    return _standard(tf.linalg.matvec(tf.gather(table.vectors, items), query), mean, variance)


def _among_more(mean: Any, variance: Any, share: Any) -> tuple[Any, Any]:
    """Mean and variance when these values are a share of all and the others are 0."""
    return share * mean, share * (variance + (1 - share) * mean**2)


def _standard(scores: tf.Tensor, mean: Any, variance: Any) -> tf.Tensor:
    """z-scores; zeros where all scores are equal, as in :func:`tfrec.models.blend.standardize`."""
    deviation = tf.sqrt(tf.maximum(tf.convert_to_tensor(variance, tf.float32), 0.0))
    usable = deviation > 1e-7 * tf.abs(mean)
    return tf.where(usable, (scores - mean) / tf.where(usable, deviation, 1.0), 0.0)


def _last(history: tf.Tensor) -> tf.Tensor:
    """1 where no later place holds the same item, else 0, float32 [B, L]."""
    place = tf.range(tf.shape(history)[1])
    later = (history[:, :, None] == history[:, None]) & (place[:, None] < place[None])
    return tf.cast(~tf.reduce_any(later, axis=2), tf.float32)
