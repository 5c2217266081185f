"""What a served graph does with the shapes of a request before it means anything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

LOWEST = float(np.finfo(np.float32).min)


def one_a_row(value: tf.Tensor, rows: tf.Tensor, name: str) -> tf.Tensor:
    """A number of each request [rows], from one for all or one a request."""
    fits = (tf.size(value) == 1) | ((tf.rank(value) == 1) & (tf.size(value) == rows))
    rule = [f"{name} must be one number, or one a request; got", value, "for", rows]
    return tf.broadcast_to(checked(tf.reshape(value, [-1]), fits, rule), [rows])


def rows_of(value: tf.Tensor, rows: tf.Tensor, name: str) -> tf.Tensor:
    """Repeats a single row, as an omitted input has, for the whole batch."""
    size = tf.shape(value)[0]
    rule = f"{name} must have one row, or one a request; got"
    value = checked(value, (size == 1) | (size == rows), [rule, size, "for", rows])
    return tf.broadcast_to(value, tf.concat([[rows], tf.shape(value)[1:]], axis=0))


def checked(value: tf.Tensor, condition: tf.Tensor, message: Sequence[Any]) -> tf.Tensor:
    """The value; INVALID_ARGUMENT with the message where the condition does not hold."""
    # Without the dependency, an op that cannot take the value may be first to complain.
    with tf.control_dependencies([tf.debugging.Assert(condition, message)]):
        return tf.identity(value)


def known_first(index: tf.Tensor) -> tf.Tensor:
    """Places that move unknown items (0) to the left and keep the order of the others: [0, 5, 0, 7] -> [0, 2, 1, 3]."""
    return tf.argsort(tf.cast(index > 0, tf.int32), axis=1, stable=True)


def last(index: tf.Tensor, length: int) -> tf.Tensor:
    """The last ``length`` columns, zeros on the left."""
    missing = tf.maximum(length - tf.shape(index)[1], 0)
    return tf.ensure_shape(tf.pad(index, [[0, 0], [missing, 0]])[:, -length:], [None, length])
