"""Gradients of embedding rows: duplicates added with static shapes, and the update that reads them."""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tfrec.errors import TrainingError


class Merged(NamedTuple):
    """One gradient a row of a table.

    Args:
        rows: int32 [R]; each row once, then any rows where ``present`` is 0.
        sums: float32 [R, ...], zeros where ``present`` is 0.
        present: float32 [R, 1, ...], 1 where the batch has read the row.
    """

    rows: tf.Tensor
    sums: tf.Tensor
    present: tf.Tensor


class Distinct(NamedTuple):
    """Each of some ids once.

    Args:
        rows: int32 [R]; the smallest id again where there are fewer than R.
        place: int32 [K], where each id is in ``rows``.
        count: scalar int32, rows before the repeated ones.
    """

    rows: tf.Tensor
    place: tf.Tensor
    count: tf.Tensor


def distinct_rows(ids: tf.Tensor, most: int) -> Distinct:
    """``tf.unique`` with static shapes, by sorting: R = min(K, most) follows from shapes alone, as XLA needs.

    Args:
        ids: int32 [K].
        most: distinct ids that there can be.
    """
    order = tf.argsort(ids)
    ordered = tf.gather(ids, order)
    first = tf.concat([tf.zeros_like(ids[:1]), tf.cast(ordered[1:] != ordered[:-1], tf.int32)], axis=0)
    segments = tf.cumsum(first)
    size = tf.minimum(tf.shape(ids)[0], most) if ids.shape[0] is None else min(ids.shape[0], most)
    rows = tf.maximum(tf.math.unsorted_segment_max(ordered, segments, size), tf.reduce_min(ids))
    place = tf.scatter_nd(order[:, None], segments, tf.shape(ids))
    return Distinct(rows, tf.ensure_shape(place, ids.shape), tf.reduce_max(segments) + 1)


def merge_rows(gradient: tf.IndexedSlices, rows: int) -> Merged:
    """Adds the gradients of equal rows; R = min(K, rows) follows from shapes alone, so that XLA compiles it.

    Args:
        gradient: values float32 [K, ...] of indices [K], with duplicates.
        rows: of the table.
    """
    values, ids = gradient.values, tf.cast(gradient.indices, tf.int32)
    if ids.shape[0] is not None and rows <= ids.shape[0]:
        places, segments, size = tf.range(rows), ids, rows
        present = tf.math.unsorted_segment_sum(tf.ones_like(ids), ids, rows) > 0
    else:
        # tf.unique would be simpler, but its output's shape depends on the values.
        places, segments, count = distinct_rows(ids, rows)
        size = tf.shape(places)[0] if places.shape[0] is None else places.shape[0]
        present = tf.range(size) < count
    sums = tf.math.unsorted_segment_sum(values, segments, size)
    return Merged(places, sums, tf.reshape(tf.cast(present, sums.dtype), [-1] + [1] * (sums.shape.rank - 1)))


def merged_slices(gradient: tf.IndexedSlices, rows: int) -> tf.IndexedSlices:
    """The same gradient with each row once, so that the norm of its values is its norm."""
    merged = merge_rows(gradient, rows)
    return tf.IndexedSlices(merged.sums, merged.rows, gradient.dense_shape)


class TouchedRows(keras.optimizers.Optimizer):
    """Mixin before a dense Keras optimizer: a gradient of rows updates those rows and no others.

    A dense gradient takes the dense rule. Weight decay, decoupled (arXiv 1711.05101), is applied to what is updated.

    Raises:
        TrainingError: an option is set that reads whole tables, or clips before duplicates are added.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        whole = ("clipnorm", "clipvalue", "global_clipnorm", "use_ema", "gradient_accumulation_steps")
        if refused := [name for name in whole if kwargs.get(name)]:
            advice = "The trainer clips and accumulates on merged rows"
            raise TrainingError(f"{type(self).__name__} must be made without options of whole tables", refused, advice)
        super().__init__(*args, **kwargs)

    def row_step(self, index: int, merged: Merged, rate: tf.Tensor) -> tf.Tensor:
        """Updates the state of these rows and returns what to subtract from them, [R, ...].

        Args:
            index: of the variable among those the optimizer was built with.
            merged: its gradient.
            rate: learning rate.
        """
        raise NotImplementedError

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        rate = tf.cast(learning_rate, variable.dtype)
        decay = rate * self.weight_decay if self.weight_decay and self._use_weight_decay(variable) else None
        if not isinstance(gradient, tf.IndexedSlices):
            if decay is not None:
                variable.assign_sub(variable * decay)
            super().update_step(gradient, variable, learning_rate)
            return
        slices = tf.IndexedSlices(tf.cast(gradient.values, variable.dtype), gradient.indices, gradient.dense_shape)
        merged = merge_rows(slices, variable.shape[0])
        step = self.row_step(self._get_variable_index(variable), merged, rate)
        if decay is not None:
            step += decay * tf.gather(variable, merged.rows)
        variable.scatter_sub(tf.IndexedSlices(step * merged.present, merged.rows))

    def _apply_weight_decay(self, variables: Any) -> None:
        """Nothing: Keras would decay whole tables here."""
