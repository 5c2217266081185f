"""Rows of a ranker → batches, in an order that is a function of seed, epoch and step alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import tensorflow as tf

from tfrec.data.impressions import Impressions
from tfrec.data.preprocess import age_rows
from tfrec.data.sampling import Sampler
from tfrec.errors import TrainingError


@dataclass(frozen=True)
class ImpressionBatches:
    """Batches of rows with their histories.

    Args:
        rows: R of them.
        batch: rows of a batch; the last batch of an epoch is filled up from the epoch's beginning.
        seed: of order, hidden history and negatives.
        length: L, items of a history; 0 = none.
        gap: at most so many of a row's last history items are hidden, anew in each epoch: held-out rows lie further
            from what is known of their user than training rows do.
        sampler: gives each row negatives; None = rows have labels.
        shuffle: False keeps the order, for evaluation.
    """

    rows: Impressions
    batch: int
    seed: int
    length: int = 0
    gap: int = 0
    sampler: Sampler | None = None
    shuffle: bool = True

    def __post_init__(self) -> None:
        if not len(self.rows):
            raise TrainingError("a ranker needs rows to learn from", 0, "Change data.split, or bring more interactions")

    @cached_property
    def steps(self) -> int:
        """Batches of an epoch."""
        return -(-len(self.rows) // self.batch)

    def dataset(self, epoch: int, first_step: int = 0) -> tf.data.Dataset:
        """Batches of one epoch from ``first_step`` on.

        Each is {"user": int32 [B], "item": int32 [B] (or [B, 1 + n], the positive first), "history", "history_event"
        and "history_age": int32 [B, L], context features, "label": float32 [B, T] (or [B, 1 + n, 1]),
        "weight": float32 [B]}; 0 is padding of a history, on the left.
        """
        order = tf.constant(self._order(epoch))
        columns = {name: tf.constant(column) for name, column in self.rows.columns.items()}
        columns |= {"label": tf.constant(self.rows.labels), "weight": tf.constant(self.rows.weights)}
        vectors = {name: tf.constant(table) for name, table in self.rows.vectors.items()}
        times = tf.constant(self.rows.times)
        spans = tf.constant(np.stack([self.rows.start, self.rows.end], axis=1).astype(np.int64))
        history = [tf.constant(_never_empty(values)) for values in self.rows.history]

        def make(step: tf.Tensor) -> dict[str, tf.Tensor]:
            place = tf.math.floormod(step * self.batch + tf.range(self.batch, dtype=tf.int64), order.shape[0])
            row = tf.ensure_shape(tf.gather(order, place), [self.batch])
            seed = tf.stack([tf.cast(step, tf.int32), self.seed * 100_003 + epoch])
            out = {name: tf.gather(column, row) for name, column in columns.items()}
            out |= {name: tf.gather(table, out[name]) for name, table in vectors.items()}
            if self.length:
                out |= self._look_back(history, tf.gather(spans, row), tf.gather(times, row), seed)
            return self._with_negatives(out, seed) if self.sampler else out

        steps = tf.data.Dataset.range(first_step, self.steps)
        return steps.map(make, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).prefetch(tf.data.AUTOTUNE)

    def _order(self, epoch: int) -> np.ndarray:
        rows = np.arange(len(self.rows))
        return np.random.default_rng([self.seed, epoch]).permutation(rows) if self.shuffle else rows

    def _look_back(
        self, history: list[tf.Tensor], spans: tf.Tensor, now: tf.Tensor, seed: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        start, end = spans[:, 0], spans[:, 1]
        if self.gap:
            hidden = tf.random.stateless_uniform([self.batch], seed, 0, self.gap + 1, tf.int64)
            end = tf.maximum(end - hidden, start)
        place = end[:, None] + tf.range(-self.length, 0, dtype=tf.int64)[None]
        inside = place >= start[:, None]
        read = [tf.where(inside, tf.gather(values, tf.maximum(place, 0)), 0) for values in history]
        return {"history": read[0], "history_event": read[1], "history_age": age_rows(now[:, None], read[2])}

    def _with_negatives(self, batch: dict[str, tf.Tensor], seed: tf.Tensor) -> dict[str, tf.Tensor]:
        assert self.sampler
        drawn = self.sampler(batch["user"], batch["item"], seed)
        items = tf.concat([batch["item"][:, None], drawn], axis=1)
        label = tf.concat([tf.ones([self.batch, 1]), tf.zeros(tf.shape(drawn))], axis=1)
        return {**batch, "item": items, "label": label[..., None]}


def _never_empty(values: np.ndarray) -> np.ndarray:
    return values if len(values) else np.zeros(1, values.dtype)
