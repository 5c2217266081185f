"""Events → rows of a ranker: what was shown to whom, what came of it, and what the user had done before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from tfrec.errors import DataError
from tfrec.ranker_config import Task


class History(NamedTuple):
    """Events that rows may look back on, users one after the other, oldest first.

    Args:
        items: int32 [E].
        kinds: int32 [E], 0 = unknown kind of event.
        times: seconds, int64 [E]; 0 = unknown.
    """

    items: np.ndarray
    kinds: np.ndarray
    times: np.ndarray


@dataclass(frozen=True)
class Impressions:
    """Rows with labels.

    Args:
        columns: "user" and "item" int32 [R] and context features [R, …].
        labels: float32 [R, T]; NaN = the row says nothing of this task. Of survival: how many periods somebody stayed,
            and ½ more where leaving was not seen.
        weights: float32 [R].
        history: of all rows.
        start, end: int64 [R]; a row may look back on history[start:end].
        times: seconds, int64 [R]; 0 = unknown.
        vectors: what columns of row numbers stand for, name -> float32 [T+1, t].
    """

    columns: Mapping[str, np.ndarray]
    labels: np.ndarray
    weights: np.ndarray
    history: History
    start: np.ndarray
    end: np.ndarray
    times: np.ndarray
    vectors: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: np.ndarray) -> Impressions:
        """These rows; the history stays."""
        columns = {name: column[rows] for name, column in self.columns.items()}
        chosen = {name: getattr(self, name)[rows] for name in ("labels", "weights", "start", "end", "times")}
        return replace(self, columns=columns, **chosen)


def make_labels(events: Mapping[str, np.ndarray], tasks: Sequence[Task]) -> np.ndarray:
    """Labels of every event, float32 [E, T]; NaN where the column is empty.

    Raises:
        DataError: a column does not hold what its task reads.
    """
    return np.stack([_survival(events, task) if task.observed else _label(events, task) for task in tasks], axis=1)


def _numbers(events: Mapping[str, np.ndarray], name: str, task: Task) -> tuple[np.ndarray, np.ndarray]:
    """A column as float64, and what of it is not NaN."""
    column = events[name]
    if column.dtype.kind not in "iufb":
        raise DataError(f"task {task.name} reads numbers; {name} does not hold any", str(column[:1].tolist()))
    values = column.astype(np.float64)
    given = values[~np.isnan(values)]
    if np.isinf(given).any():
        raise DataError(f"labels of task {task.name} must be finite", float(given[np.isinf(given)][0]))
    return values, given


def _survival(events: Mapping[str, np.ndarray], task: Task) -> np.ndarray:
    assert task.observed
    times, given = _numbers(events, task.column, task)
    if np.any(given < 0):
        raise DataError(f"times of task {task.name} must not be negative", float(given[given < 0][0]))
    observed, given = _numbers(events, task.observed, task)
    wrong = given[~np.isin(given, (0, 1))]
    if len(wrong):
        raise DataError(f"{task.observed} of task {task.name} must be 0 or 1", float(wrong[0]))
    stayed = np.floor(times / task.period)
    labels = np.where(stayed >= task.periods, task.periods + 0.5, stayed + (1 - observed) / 2)
    return np.where(np.isnan(observed), np.nan, labels).astype(np.float32)


def _label(events: Mapping[str, np.ndarray], task: Task) -> np.ndarray:
    values, given = _numbers(events, task.column, task)
    if task.positive is not None:
        return np.where(np.isnan(values), np.nan, values >= task.positive).astype(np.float32)
    wrong = given[~np.isin(given, (0, 1))] if task.kind == "binary" else given[given < 0]
    if task.kind == "binary" and len(wrong):
        advice = "Set positive, the least value of a positive row"
        raise DataError(f"labels of task {task.name} must be 0 or 1", float(wrong[0]), advice)
    if task.kind == "value" and len(wrong):
        raise DataError(f"money of task {task.name} must not be negative", float(wrong[0]))
    return values.astype(np.float32)


def check_classes(labels: np.ndarray, tasks: Sequence[Task], where: str) -> None:
    """Refuses a binary task without positives or negatives, and survival in which nobody is seen to leave or to stay.

    Raises:
        DataError: it has one class only.
    """
    for task, column in zip(tasks, labels.T, strict=True):
        given = column[~np.isnan(column)]
        if task.kind == "binary":
            _need_both(task, where, positives=given == 1, negatives=given == 0)
        if task.kind == "survival":
            _need_both(task, where, leavings=given == np.floor(given), stays=given >= 1)


def _need_both(task: Task, where: str, **rows: np.ndarray) -> None:
    if not all(part.any() for part in rows.values()):
        counts = {name: int(part.sum()) for name, part in rows.items()}
        raise DataError(f"task {task.name} needs {' and '.join(rows)} in {where}", counts)


def event_names(column: np.ndarray) -> np.ndarray:
    """Kinds of events as strings: numbers without a needless ``.0``, "" where nothing is known."""
    if column.dtype.kind in "iufb":
        return np.array(["" if np.isnan(x) else f"{x:g}" for x in column.astype(np.float64)], object)
    return np.array(["" if x is None else str(x).strip() for x in column], object)


def history_of(
    events: Mapping[str, np.ndarray], kinds: np.ndarray, splits: Sequence[int]
) -> tuple[History, np.ndarray]:
    """Events of some splits as a history, and where each user's begins: int64 [U + 2], users by index."""
    kept = np.isin(events["split"], splits)
    users = events["user"][kept]
    counts = np.bincount(users, minlength=int(events["user"].max(initial=0)) + 1)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    columns = events["item"].astype(np.int32), kinds.astype(np.int32), event_times(events)
    return History(*(column[kept] for column in columns)), offsets


def event_times(events: Mapping[str, np.ndarray]) -> np.ndarray:
    """Seconds of every event, int64 [E]; 0 where there are none."""
    times = events.get("timestamp")
    return np.zeros(len(events["user"]), np.int64) if times is None else times.astype(np.int64)


@dataclass(frozen=True)
class EventLog:
    """Prepared events with what a ranker reads of each.

    Args:
        events: "user", "item" int32 and "split" int8 [E], sorted by user and time.
        columns: context features of every event, [E, …].
        labels: float32 [E, T].
        weights: of training rows, float32 [E].
        kinds: int32 [E], 0 = unknown kind of event.
        vectors: of :class:`Impressions`.
    """

    events: Mapping[str, np.ndarray]
    columns: Mapping[str, np.ndarray]
    labels: np.ndarray
    weights: np.ndarray
    kinds: np.ndarray
    vectors: Mapping[str, np.ndarray] = field(default_factory=dict)

    def training_rows(self, splits: Sequence[int]) -> Impressions:
        """Rows of these splits, such as (0, 1); each looks back on the rows of the same user before it."""
        rows = np.flatnonzero(np.isin(self.events["split"], splits))
        history, offsets = history_of(self.events, self.kinds, splits)
        start, end = offsets[self.events["user"][rows]], np.arange(len(rows))
        return self._rows(rows, history, start, end, self.weights[rows])

    def held_out_rows(self, split: int) -> Impressions:
        """Rows of one split; each looks back on its user's rows of earlier splits, never on another held-out row."""
        rows = np.flatnonzero(self.events["split"] == split)
        history, offsets = history_of(self.events, self.kinds, range(split))
        start, end = (offsets[self.events["user"][rows] + more] for more in (0, 1))
        return self._rows(rows, history, start, end, np.ones(len(rows)))

    def _rows(
        self, rows: np.ndarray, history: History, start: np.ndarray, end: np.ndarray, weights: np.ndarray
    ) -> Impressions:
        end = np.where(self.events["user"][rows] > 0, end, start)  # strangers share index 0, not a history
        own: dict[str, Any] = {name: self.events[name][rows].astype(np.int32) for name in ("user", "item")}
        own |= {name: column[rows] for name, column in self.columns.items()}
        times = event_times(self.events)[rows]
        return Impressions(own, self.labels[rows], weights.astype(np.float32), history, start, end, times, self.vectors)


def row_weights(
    events: Mapping[str, np.ndarray],
    names: np.ndarray | None,
    event_weights: Mapping[str, float],
    half_life_days: float | None,
) -> np.ndarray:
    """Weights of training rows by kind of event and by age, float32 [E].

        w = event weight · ½^(age / half-life),   age from the newest event of the train split

    Args:
        events: "split", and "timestamp" (seconds) where there is a half-life.
        names: kind of each event; None = all alike.
        event_weights: of kinds; others weigh 1.
        half_life_days: None = age does not count.

    Raises:
        DataError: a half-life without times.
    """
    weights = np.ones(len(events["split"]), np.float64)
    if names is not None:
        for name, weight in event_weights.items():
            weights[names == name] = weight
    if half_life_days is not None:
        if "timestamp" not in events:
            raise DataError("ranker.half_life_days needs a column timestamp in the interactions", sorted(events))
        newest = events["timestamp"][events["split"] == 0].max()
        age = np.maximum(newest - events["timestamp"], 0) / 86_400
        weights *= 0.5 ** (age / half_life_days)
    return weights.astype(np.float32)
