"""Requests joined into batches in front of a session, with TensorFlow Serving's rules, padding and refusals.

Reference: tensorflow_serving/batching/{batching_session,batching_util}.cc and
tensorflow/core/kernels/batching_util/shared_batch_scheduler.h.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tfrec.server.servable import Session, Signature
from tfrec.server.status import RequestError, invalid

_MAX_RANK = 6
_LATE = RequestError("RESOURCE_EXHAUSTED", "Run() timeout exceeded while waiting in batching queue")


@dataclass(frozen=True)
class Batching:
    """Limits of the batches.

    Args:
        max_batch_size: rows of a batch, and of a request unless large ones are split.
        timeout_seconds: how long the first request of a batch waits for others.
        max_enqueued_batches: batches that may wait for a thread.
        threads: batches that run at the same time, over all models.
        allowed_sizes: batches are filled up to the next of these; the last one is max_batch_size.
        pad: whether inputs of different shapes are padded to a common one.
        split: whether a request larger than max_execution_size is split.
        max_execution_size: rows that run together.
    """

    max_batch_size: int = 1000
    timeout_seconds: float = 0.0
    max_enqueued_batches: int = 10
    threads: int = os.cpu_count() or 1
    allowed_sizes: tuple[int, ...] = ()
    pad: bool = False
    split: bool = False
    max_execution_size: int = 1000

    @classmethod
    def from_proto(cls, proto: Any) -> Batching:
        """Reads BatchingParameters.

        Raises:
            RequestError: a limit makes no sense.
        """
        given = {name: getattr(proto, name).value for name in _WRAPPED if proto.HasField(name)}
        names = {"max_batch_size": "max_batch_size", "max_enqueued_batches": "max_enqueued_batches"}
        names |= {"num_batch_threads": "threads", "enable_large_batch_splitting": "split"}
        values = {names[name]: value for name, value in given.items() if name in names}
        if "batch_timeout_micros" in given:
            values["timeout_seconds"] = given["batch_timeout_micros"] / 1e6
        largest = values.get("max_batch_size", cls.max_batch_size)
        values["max_execution_size"] = given.get("max_execution_batch_size", largest)
        made = cls(**values, allowed_sizes=tuple(proto.allowed_batch_sizes), pad=proto.pad_variable_length_inputs)
        made.check()
        return made

    def check(self) -> None:
        """Raises RequestError when a limit makes no sense."""
        for name, value in (("num_batch_threads", self.threads), ("max_enqueued_batches", self.max_enqueued_batches)):
            if value < 1:
                raise invalid(f"{name} must be positive; was {value}")
        if self.allowed_sizes and self.allowed_sizes[-1] != self.largest:
            raise invalid(
                "Last entry in allowed_batch_sizes must match max_batch_size; last entry was "
                f"{self.allowed_sizes[-1]}; expected {self.largest}"
            )

    @property
    def largest(self) -> int:
        """Rows of the largest batch that runs."""
        return self.max_execution_size if self.split else self.max_batch_size

    def rounded(self, size: int) -> int:
        """The number of rows that a batch of so many is filled up to."""
        return next((allowed for allowed in self.allowed_sizes if allowed >= size), size)


_WRAPPED = (
    *("max_batch_size", "batch_timeout_micros", "max_enqueued_batches", "num_batch_threads"),
    *("enable_large_batch_splitting", "max_execution_batch_size"),
)


@dataclass
class _Task:
    feeds: dict[str, np.ndarray]
    size: int
    deadline: float
    done: threading.Event = field(default_factory=threading.Event)
    outputs: list[np.ndarray] = field(default_factory=list)
    error: Exception | None = None


@dataclass
class _Queue:
    """Batches of one signature of one session; the last one is open."""

    session: Session
    fetches: tuple[str, ...]
    batches: list[list[_Task]] = field(default_factory=list)
    opened: float = 0.0

    def open_size(self) -> int:
        return sum(task.size for task in self.batches[-1]) if self.batches else 0


class BatchScheduler:
    """Threads that run the batches of all sessions in turn."""

    def __init__(self, limits: Batching):
        self.limits = limits
        self._queues: list[_Queue] = []
        self._work = threading.Condition()
        self._stopped = False
        self._threads = [threading.Thread(target=self._serve, name=f"batch-{i}") for i in range(limits.threads)]
        for thread in self._threads:
            thread.start()

    def add(self, session: Session, fetches: tuple[str, ...]) -> _Queue:
        with self._work:
            self._queues.append(_Queue(session, fetches))
            return self._queues[-1]

    def remove(self, queues: Sequence[_Queue]) -> None:
        with self._work:
            self._queues = [queue for queue in self._queues if all(queue is not gone for gone in queues)]

    def submit(self, queue: _Queue, task: _Task) -> None:
        """Puts a task into the open batch or a new one.

        Raises:
            RequestError: it is too large, or the queue is full.
        """
        limits = self.limits
        if task.size > limits.largest:
            raise invalid(f"Task size {task.size} is larger than maximum input batch size {limits.largest}")
        with self._work:
            if not queue.batches or queue.open_size() + task.size > limits.largest:
                if len(queue.batches) >= limits.max_enqueued_batches:
                    raise RequestError(
                        "UNAVAILABLE",
                        "The batch scheduling queue to which this task was submitted is full; currently "
                        f"{len(queue.batches)} batches enqueued and max_enqueued_batches is "
                        f"{limits.max_enqueued_batches}",
                    )
                queue.batches.append([])
                queue.opened = time.monotonic()
            queue.batches[-1].append(task)
            self._work.notify()

    def close(self) -> None:
        """Ends the threads once the queues are empty."""
        with self._work:
            self._stopped = True
            self._work.notify_all()
        for thread in self._threads:
            thread.join()

    def _serve(self) -> None:
        while (found := self._next()) is not None:
            _process(*found, self.limits)

    def _next(self) -> tuple[_Queue, list[_Task]] | None:
        with self._work:
            while True:
                wait = math.inf
                for i, queue in enumerate(self._queues):
                    due = self._due(queue)
                    if due <= 0:
                        self._queues.append(self._queues.pop(i))  # round robin
                        return queue, queue.batches.pop(0)
                    wait = min(wait, due)
                if self._stopped:
                    return None
                self._work.wait(None if wait == math.inf else wait)

    def _due(self, queue: _Queue) -> float:
        """Seconds until the first batch of a queue may run."""
        if not queue.batches:
            return math.inf
        if len(queue.batches) > 1 or self._stopped or queue.open_size() >= self.limits.largest:
            return 0.0
        return queue.opened + self.limits.timeout_seconds - time.monotonic()


class BatchingSession:
    """A session whose calls wait for company.

    A call of other tensors than those of one whole signature, as an output filter or several tasks make it, runs alone.

    Args:
        session: that runs the batches.
        scheduler: of all sessions.
        signatures: of the session's model.
    """

    def __init__(self, session: Session, scheduler: BatchScheduler, signatures: Iterable[Signature]):
        self._session, self._scheduler = session, scheduler
        self._declared = {(frozenset(i.tensor for i in s.inputs.values()), frozenset(s.fetches)) for s in signatures}
        self._queues: dict[tuple[tuple[str, ...], tuple[str, ...]], _Queue | None] = {}
        self._lock = threading.Lock()

    def run(
        self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str], deadline: float | None = None
    ) -> list[np.ndarray]:
        """Runs with others in a batch; see GraphSession.run.

        Raises:
            RequestError: the inputs cannot be batched, the queue is full, or what the graph says.
        """
        queue = self._queue(tuple(feeds), tuple(fetches))
        if queue is None:
            return self._session.run(feeds, fetches, deadline)
        size = _batch_size(feeds)
        tasks = [
            _Task(part, len(next(iter(part.values()))), math.inf if deadline is None else deadline)
            for part in self._parts(dict(feeds), size)
        ]
        for task in tasks:
            self._scheduler.submit(queue, task)
        for task in tasks:
            task.done.wait()
            if task.error is not None:
                raise task.error
        if len(tasks) == 1:
            return tasks[0].outputs
        return [np.concatenate(parts) for parts in zip(*(task.outputs for task in tasks), strict=True)]

    def close(self) -> None:
        """Frees the session; run must not be called afterwards."""
        self._scheduler.remove([queue for queue in self._queues.values() if queue is not None])
        self._session.close()

    def _queue(self, feeds: tuple[str, ...], fetches: tuple[str, ...]) -> _Queue | None:
        key = (feeds, fetches)
        with self._lock:
            if key not in self._queues:
                declared = (frozenset(feeds), frozenset(fetches)) in self._declared
                self._queues[key] = self._scheduler.add(self._session, fetches) if declared else None
            return self._queues[key]

    def _parts(self, feeds: dict[str, np.ndarray], size: int) -> list[dict[str, np.ndarray]]:
        limits = self._scheduler.limits
        if not limits.split or size <= limits.largest:
            return [feeds]
        if size > limits.max_batch_size:
            raise invalid(f"Task size {size} is larger than maximum input batch size {limits.max_batch_size}")
        return [
            {tensor: value[start : start + limits.largest] for tensor, value in feeds.items()}
            for start in range(0, size, limits.largest)
        ]


def _batch_size(feeds: Mapping[str, np.ndarray]) -> int:
    if not feeds:
        raise invalid("Batching Run() must have at least one input tensor")
    if any(value.ndim == 0 for value in feeds.values()):
        raise invalid("Batching Run() input tensors must have at least one dimension")
    sizes = {len(value) for value in feeds.values()}
    if len(sizes) > 1:
        raise invalid("Batching Run() input tensors must have equal 0th-dimension size")
    return sizes.pop()


def _process(queue: _Queue, batch: list[_Task], limits: Batching) -> None:
    try:
        latest = max(task.deadline for task in batch)
        if latest <= time.monotonic():
            raise _LATE
        size = sum(task.size for task in batch)
        feeds = merge(batch, limits.rounded(size) - size, limits.pad)
        outputs = queue.session.run(feeds, queue.fetches, None if latest == math.inf else latest)
        _split(batch, outputs, limits.rounded(size))
    except Exception as error:  # it belongs to the callers, who wait
        for task in batch:
            task.error = error
    finally:
        for task in batch:
            task.done.set()


def merge(batch: Sequence[Any], filling: int, pad: bool) -> dict[str, np.ndarray]:
    """Joins the inputs of tasks along the first axis.

    Args:
        batch: tasks with ``feeds``.
        filling: copies of the last task's first row to add.
        pad: whether shapes may differ; shorter ones are filled with the tensor's own first element.

    Raises:
        RequestError: the shapes differ and may not, or a tensor cannot be padded.
    """
    merged = {}
    for tensor in batch[0].feeds:
        values = [task.feeds[tensor] for task in batch]
        if pad:
            shape = np.max([value.shape for value in values], axis=0)
            values = [padded(value, shape) for value in values]
        elif len({value.shape[1:] for value in values}) > 1:
            raise RequestError(
                "FAILED_PRECONDITION",
                f"Tensors with name '{tensor}' from different tasks have different shapes and padding is turned off."
                "Set pad_variable_length_inputs to true, or ensure that all tensors with the same name"
                "have equal dimensions starting with the first dim.",
            )
        merged[tensor] = (
            np.concatenate([*values, *[values[-1][:1]] * filling]) if len(batch) + filling > 1 else values[0]
        )
    return merged


def padded(value: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """Fills a tensor up to a shape (its first axis stays) with its own first element.

    Raises:
        RequestError: the tensor is empty, or of rank above 6.
    """
    if value.ndim > _MAX_RANK:
        raise invalid("Only tensors with rank from 1 to 6 can be padded.")
    missing = [(0, 0), *((0, int(most) - size) for most, size in zip(shape[1:], value.shape[1:], strict=True))]
    if not any(after for _, after in missing):
        return value
    if not value.size:
        raise invalid("Got empty tensor in batch of non-empty tensors.")
    return np.pad(value, missing, constant_values=value.flat[0])


def _split(batch: Sequence[_Task], outputs: Sequence[np.ndarray], rows: int) -> None:
    for output in outputs:
        if output.ndim == 0:
            raise RequestError("FAILED_PRECONDITION", "Batched output tensor has 0 dimensions")
        if len(output) != rows:
            raise RequestError(
                "FAILED_PRECONDITION",
                "Batched output tensor's 0th dimension does not equal the sum of the 0th dimension sizes of the input "
                "tensors",
            )
    start = 0
    for task in batch:
        task.outputs = [output[start : start + task.size] for output in outputs]
        start += task.size
