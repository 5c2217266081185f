"""Histories → training batches, in an order that is a function of seed, epoch and step alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import tensorflow as tf

from tfrec.errors import TrainingError


@dataclass(frozen=True)
class HistoryBatches:
    """Windows of users' histories as next-item training rows.

    A row ends at one event of a user and holds the ``length`` events before it. With ``targets="last"``
    every event after a user's first is the end of a row and its only target; with ``"all"`` every position
    predicts its successor, and a user has one row, or ``windows`` randomly placed ones an epoch when the
    history is longer than a row.

    Args:
        values: int32 [E] item indices, users one after the other, oldest first.
        offsets: int64 [U + 2]; user index u owns values[offsets[u]:offsets[u + 1]]; list 0 is the unknown user's.
        length: L, positions of a row.
        batch: rows of a batch; the last batch of an epoch is filled up from the epoch's beginning.
        seed: of shuffling and windows.
        targets: "all" or "last".
        windows: rows an epoch of a long history.
        first_event: whether a user's first event is a target too (an empty history; needs a user id).
    """

    values: np.ndarray
    offsets: np.ndarray
    length: int
    batch: int
    seed: int
    targets: str = "all"
    windows: int = 1
    first_event: bool = False

    def __post_init__(self) -> None:
        need_rows(self._size, len(self.values), self.first_event)

    @cached_property
    def steps(self) -> int:
        """Batches of an epoch."""
        return -(-self._size // self.batch)

    def target_counts(self, items: int) -> np.ndarray:
        """Events of each item, int64 [N + 1]."""
        return np.bincount(self.values, minlength=items + 1)

    def dataset(self, epoch: int, first_step: int = 0) -> tf.data.Dataset:
        """Batches of one epoch from ``first_step`` on.

        Each is {"user": int32 [B], "history": int32 [B, L], "target": int32 [B, L] (or [B, 1] for "last")};
        0 is padding, on the left. A target without anything before it is 0 unless ``first_event``.
        """
        rows = tf.constant(self._rows(epoch))
        values = tf.constant(self.values)
        columns = tf.range(-self.length - 1, 0, dtype=tf.int64)

        def make(step: tf.Tensor) -> dict[str, tf.Tensor]:
            index = tf.math.floormod(step * self.batch + tf.range(self.batch, dtype=tf.int64), rows.shape[0])
            user, start, end = tf.unstack(tf.gather(rows, index), axis=1)
            place = end[:, None] + columns[None]  # [B, L + 1]
            inside = place >= start[:, None]
            window = tf.where(inside, tf.gather(values, tf.maximum(place, 0)), 0)
            history, target = window[:, :-1], window[:, 1:]
            if not self.first_event:
                target = tf.where(history > 0, target, 0)
            if self.targets == "last":
                target = target[:, -1:]
            return {
                "user": tf.cast(tf.ensure_shape(user, [self.batch]), tf.int32),
                "history": tf.ensure_shape(history, [self.batch, self.length]),
                "target": target,
            }

        steps = tf.data.Dataset.range(first_step, self.steps)
        return steps.map(make, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).prefetch(tf.data.AUTOTUNE)

    @cached_property
    def _size(self) -> int:
        return count_rows(np.diff(self.offsets), self.length, self.targets, self.windows, self.first_event)

    def _rows(self, epoch: int) -> np.ndarray:
        """int64 [R, 3] shuffled rows: user index, start of the user's events, end of the window (exclusive)."""
        random = np.random.default_rng([self.seed, epoch])
        return random.permutation(
            make_rows(self.offsets, self.length, self.targets, self.windows, self.first_event, random)
        )


def make_rows(
    offsets: np.ndarray, length: int, targets: str, windows: int, first_event: bool, random: np.random.Generator
) -> np.ndarray:
    """The training rows of lists of events, in their order.

    Args:
        offsets: int64 [U + 1]; list u holds the events offsets[u]:offsets[u + 1].
        length, targets, windows, first_event: of :class:`HistoryBatches`.
        random: draws where windows end.

    Returns:
        int64 [R, 3]: list, start of its events, end of the window (exclusive).
    """
    start, stop = offsets[:-1], offsets[1:]
    if targets == "last":
        return _rows_of_events(start, stop - start, first_event)
    owner, events = np.arange(len(start)), stop - start
    keep = events >= (1 if first_event else 2)
    count = np.where(events > length + 1, windows, 1)[keep]
    owner, start, stop = (np.repeat(x[keep], count) for x in (owner, start, stop))
    first_end = np.minimum(start + length + 1, stop)
    end = random.integers(first_end, stop, endpoint=True)
    return np.stack([owner, start, end], axis=1).astype(np.int64)


def _rows_of_events(start: np.ndarray, events: np.ndarray, first_event: bool) -> np.ndarray:
    owner = np.repeat(np.arange(len(events)), events)
    start = np.repeat(start, events)
    end = np.arange(1, len(owner) + 1)
    keep = (end - start >= 2) | first_event
    return np.stack([owner, start, end], axis=1)[keep].astype(np.int64)


def count_rows(events: np.ndarray, length: int, targets: str, windows: int, first_event: bool) -> int:
    """How many rows :func:`make_rows` makes of lists with so many events each."""
    least = 1 if first_event else 2
    counts = events - least + 1 if targets == "last" else np.where(events > length + 1, windows, 1)
    return int(counts[events >= least].sum())


def need_rows(rows: int, events: int, first_event: bool) -> None:
    """Raises a TrainingError when there is nothing to learn from."""
    if not rows:
        least = "one event" if first_event else "two events"
        raise TrainingError(f"training needs a user with at least {least}", f"{events} events")
