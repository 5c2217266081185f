"""Which items a request allows, by price and category, as functions of items that any kind of index can call."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from tfrec.artifact.requests import checked

NO_LIMIT = float(np.finfo(np.float32).max)  # infinity is no JSON

Allowed = Callable[[tf.Tensor], tf.Tensor]
"""Items int32 [B, C] (or [1, C], for every row) -> bool [B, C]."""


def within_price(prices: tf.Tensor, low: tf.Tensor, high: tf.Tensor) -> Allowed:
    """Items whose price lies in [low, high]; one without a price only where neither bound is set.

    Args:
        prices: float32 [M+1], NaN = unknown; items beyond it have none.
        low, high: float32 [B]; 0 and the largest float32 set no bound.

    Raises:
        INVALID_ARGUMENT: a bound is NaN or negative, or low is above high.
    """
    low = checked(low, tf.reduce_all(low >= 0), ["min_price must be a number of at least 0; got", low])
    high = checked(high, tf.reduce_all(high >= 0), ["max_price must be a number of at least 0; got", high])
    rule = ["min_price must not be above max_price; got", low, "and", high]
    low = checked(low, tf.reduce_all(low <= high), rule)
    free = (low <= 0) & (high >= NO_LIMIT)

    def allowed(items: tf.Tensor) -> tf.Tensor:
        price = tf.gather(prices, known(items, prices))
        inside = (price >= low[:, None]) & (price <= high[:, None])  # false for NaN
        return free[:, None] | inside

    return _if_any(~free, allowed)


def within_categories(categories: tf.Tensor, allow: tf.Tensor, given: tf.Tensor, deny: tf.Tensor) -> Allowed:
    """Items of a category that is allowed, where any is named, and of none that is denied.

    Args:
        categories: int32 [M+1, c], 0 = none; items beyond it have none.
        allow, deny: int32 [B, A] and [B, D], 0 = no category of the catalogue.
        given: whether a row names allowed categories, known ones or not, bool [B].
    """

    def allowed(items: tf.Tensor) -> tf.Tensor:
        own = tf.gather(categories, known(items, categories))  # [B, C, c]
        return (~given[:, None] | _meets(own, allow)) & ~_meets(own, deny)

    return _if_any(given | tf.reduce_any(deny > 0, axis=1), allowed)


def all_of(rules: Sequence[Allowed]) -> Allowed:
    """What every rule allows."""

    def allowed(items: tf.Tensor) -> tf.Tensor:
        out = items > 0
        for rule in rules:
            out &= rule(items)
        return out

    return allowed


def known(items: tf.Tensor, column: tf.Tensor) -> tf.Tensor:
    """Items, but 0 for those that are newer than a column."""
    return tf.where(items < tf.shape(column)[0], items, 0)


def _meets(own: tf.Tensor, wanted: tf.Tensor) -> tf.Tensor:
    """Whether any of [B, C, c] is among [B, A], bool [B, C]; 0 is nothing."""
    pairs = (own[..., None] == wanted[:, None, None, :]) & (own > 0)[..., None]
    return tf.reduce_any(pairs, axis=[2, 3])


def _if_any(active: tf.Tensor, allowed: Allowed) -> Allowed:
    """Spares the work where no row asks for it."""

    def chosen(items: tf.Tensor) -> tf.Tensor:
        shape = tf.stack([tf.size(active), tf.shape(items)[1]])
        return tf.cond(
            tf.reduce_any(active),
            lambda: tf.broadcast_to(allowed(items), shape),
            lambda: tf.ones(shape, tf.bool),
        )

    return chosen
