"""Rows of tables that are also read whole."""

from __future__ import annotations

import tensorflow as tf


def take(table: tf.Variable, index: tf.Tensor) -> tf.Tensor:
    """Rows of a variable, [*index.shape, ...].

    ``tf.gather`` of the variable itself would mark it as one that is changed by rows, and from then on each op that
    reads it whole, in whatever signature, is given a copy: a quarter of a second for a million vectors of width 64.
    """
    return tf.gather(tf.convert_to_tensor(table), index)


def whole(table: tf.Variable | None) -> tf.Tensor | None:
    """A variable's value, of which rows may be gathered; None without a variable."""
    return None if table is None else tf.convert_to_tensor(table)
