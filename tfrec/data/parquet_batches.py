"""Histories in Parquet → training batches through a buffer of bounded size, for events that do not fit in memory."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from numpy.lib.stride_tricks import sliding_window_view

from tfrec.data.batches import count_rows, make_rows, need_rows
from tfrec.data.groups import EventGroups
from tfrec.errors import TrainingError

BUFFER = 2**21  # events that are shuffled together; as many more are read ahead


class Chunk(NamedTuple):
    """Histories of some row groups and their training rows in random order.

    Args:
        values: int32, item indices after L + 1 zeros, users one after the other, oldest first.
        user: int32 [R].
        end: int32 [R], events of the chunk up to the row's last one.
        known: int32 [R], events of the user up to that one.
    """

    values: np.ndarray
    user: np.ndarray
    end: np.ndarray
    known: np.ndarray


@dataclass(frozen=True)
class ParquetBatches:
    """The rows of :class:`HistoryBatches`, read from row groups as they are needed.

    An epoch takes the row groups in random order, as many at a time as the buffer holds, and the rows of these in
    random order. The order is a function of seed, epoch, step and shard alone. Shards have row groups of their own,
    about equally many rows; a shard that has fewer than the others begins again, as the last batch does.

    Args:
        groups: events sorted by user and time, with user, item and split.
        splits: whose events are read, such as (0, 1) for train and valid.
        length: L, positions of a row.
        batch: rows of a batch of all shards together.
        seed: of shuffling and windows.
        targets, windows, first_event: of :class:`HistoryBatches`.
        buffer: events that are shuffled together.
        shard, shards: which part of each batch this worker makes, of how many.

    Raises:
        TrainingError: there is no row, or fewer row groups than shards.
        DataError: a file is damaged.
    """

    groups: EventGroups
    splits: tuple[int, ...]
    length: int
    batch: int
    seed: int
    targets: str = "all"
    windows: int = 1
    first_event: bool = False
    buffer: int = BUFFER
    shard: int = 0
    shards: int = 1

    def __post_init__(self) -> None:
        if self.batch % self.shards:
            raise TrainingError(f"a batch must be a multiple of its shards, {self.shards}", self.batch)
        self.groups.require_whole_users()
        need_rows(int(self._rows.sum()), self.groups.events, self.first_event)
        if not all(self._rows[own].any() for own in self._shards):
            received = f"{np.count_nonzero(self._rows)} for {self.shards} workers"
            raise TrainingError("every worker needs a row group with training rows", received, "Take fewer workers")

    @cached_property
    def steps(self) -> int:
        """Batches of an epoch, the same for all shards."""
        most = max(int(self._rows[own].sum()) for own in self._shards)
        return -(-most // self._local)

    def target_counts(self, items: int) -> np.ndarray:
        """Events of each item, int64 [N + 1], of all shards."""
        parts = (self._read([group]) for group in range(len(self.groups)))
        return sum((np.bincount(item, minlength=items + 1) for _, item in parts), np.zeros(items + 1, np.int64))

    def dataset(self, epoch: int, first_step: int = 0) -> tf.data.Dataset:
        """Batches of one epoch from ``first_step`` on, in the form of :meth:`HistoryBatches.dataset`."""
        shapes = {"user": [], "history": [self.length], "target": [self.length if self.targets == "all" else 1]}
        spec = {name: tf.TensorSpec([self._local, *shape], tf.int32) for name, shape in shapes.items()}
        made = tf.data.Dataset.from_generator(lambda: self.arrays(epoch, first_step), output_signature=spec)
        return made.apply(tf.data.experimental.assert_cardinality(self.steps - first_step)).prefetch(tf.data.AUTOTUNE)

    def arrays(self, epoch: int, first_step: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """The same batches as arrays."""
        first, last = first_step * self._local, self.steps * self._local
        chunks = self._read_ahead(epoch, first, last)
        chunk, place = next(chunks)
        for _ in range(first_step, self.steps):
            pieces, missing = [], self._local
            while missing:
                while place == len(chunk.user):
                    chunk, place = next(chunks)
                pieces.append(self._cut(chunk, slice(place, place + missing)))
                taken = len(pieces[-1]["user"])
                place, missing = place + taken, missing - taken
            yield pieces[0] if len(pieces) == 1 else {k: np.concatenate([p[k] for p in pieces]) for k in pieces[0]}

    @property
    def _local(self) -> int:
        return self.batch // self.shards

    @cached_property
    def _rows(self) -> np.ndarray:
        """Training rows of each row group."""
        return np.array([self._rows_in(group) for group in range(len(self.groups))], np.int64)

    def _rows_in(self, group: int) -> int:
        user, _ = self._read([group])
        return count_rows(np.diff(_offsets(user)), self.length, self.targets, self.windows, self.first_event)

    @cached_property
    def _shards(self) -> list[np.ndarray]:
        """Row groups of each shard, about equally many rows: the largest first, each to the shard that has fewest."""
        owned: list[list[int]] = [[] for _ in range(self.shards)]
        heap = [(0, shard) for shard in range(self.shards)]
        for group in np.argsort(-self._rows, kind="stable").tolist():
            rows, shard = heap[0]
            owned[shard].append(group)
            heapq.heapreplace(heap, (rows + int(self._rows[group]), shard))
        return [np.sort(np.array(own, np.int64)) for own in owned]

    def _plan(self, epoch: int) -> list[np.ndarray]:
        """This shard's row groups in random order, as many at a time as the buffer holds."""
        order = np.random.default_rng([self.seed, epoch]).permutation(self._shards[self.shard])
        events = np.array([self.groups.groups[group].events for group in order])
        part = (np.cumsum(events) - events) // self.buffer
        return np.split(order, np.flatnonzero(np.diff(part)) + 1)

    def _read_ahead(self, epoch: int, first: int, last: int) -> Iterator[tuple[Chunk, int]]:
        """Chunks that hold rows ``first`` to ``last`` of an epoch without end, and where to begin in each."""
        with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as pool:
            waiting: tuple[Future[Chunk], int] | None = None
            for groups, start in self._wanted(epoch, first, last):
                ahead = pool.submit(self._chunk, epoch, groups), max(first - start, 0)
                if waiting:
                    yield waiting[0].result(), waiting[1]
                waiting = ahead
            if waiting:
                yield waiting[0].result(), waiting[1]

    def _wanted(self, epoch: int, first: int, last: int) -> Iterator[tuple[np.ndarray, int]]:
        start = 0
        while start < last:
            for groups in self._plan(epoch):
                end = start + int(self._rows[groups].sum())
                if end > first and start < last:
                    yield groups, start
                start = end

    def _chunk(self, epoch: int, groups: np.ndarray) -> Chunk:
        random = np.random.default_rng([self.seed, epoch, int(groups[0])])
        user, item = self._read(groups)
        settings = self.length, self.targets, self.windows, self.first_event
        rows = make_rows(_offsets(user), *settings, random).astype(np.int32)
        rows = rows[random.permutation(len(rows))]
        values = np.concatenate([np.zeros(self.length + 1, np.int32), item])
        # The row's last event tells whose it is.
        return Chunk(values, user[rows[:, 2] - 1], rows[:, 2], rows[:, 2] - rows[:, 1])

    def _read(self, groups: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Users and items, int32 [E], of the events that count."""
        users, items = [], []
        for group in groups:
            events = self.groups.read(int(group), ["user", "item", "split"])
            kept = np.isin(events["split"], self.splits) & (events["user"] > 0)
            users.append(events["user"][kept])
            items.append(events["item"][kept])
        return np.concatenate(users), np.concatenate(items)

    def _cut(self, chunk: Chunk, part: slice) -> dict[str, np.ndarray]:
        window = sliding_window_view(chunk.values, self.length + 1)[chunk.end[part]]  # [b, L + 1]
        before = self.length + 1 - chunk.known[part, None]
        window *= np.arange(self.length + 1, dtype=np.int32) >= before
        history, target = window[:, :-1], window[:, 1:]
        if not self.first_event:
            target = target * (history > 0)
        return {
            "user": chunk.user[part],
            "history": history,
            "target": target[:, -1:] if self.targets == "last" else target,
        }


def _offsets(user: np.ndarray) -> np.ndarray:
    """Where each user's events begin, and where the last ones end, of events sorted by user."""
    return np.append(np.flatnonzero(np.diff(user, prepend=0)), len(user))
