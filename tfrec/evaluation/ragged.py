"""Ragged lists: (values int32 [total], offsets int64 [Q+1]); list q is values[offsets[q]:offsets[q+1]]."""

from __future__ import annotations

import numpy as np

from tfrec.errors import DataError

Ragged = tuple[np.ndarray, np.ndarray]


def lengths(lists: Ragged) -> np.ndarray:
    """How many values each list has, int64 [Q]."""
    return np.diff(lists[1])


def owners(lists: Ragged) -> np.ndarray:
    """The list that each value belongs to, int64 [total]."""
    return np.repeat(np.arange(len(lists[1]) - 1), lengths(lists))


def ages(lists: Ragged) -> np.ndarray:
    """How many values follow each one in its list, int64 [total]: the last has age 0."""
    return np.repeat(lists[1][1:], lengths(lists)) - 1 - np.arange(len(lists[0]))


def take(lists: Ragged, rows: np.ndarray) -> Ragged:
    """The lists of these rows, in this order; a row may be asked for twice."""
    values, offsets = lists
    sizes = offsets[rows + 1] - offsets[rows]
    taken = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
    place = np.arange(taken[-1]) + np.repeat(offsets[rows] - taken[:-1], sizes)
    return values[place], taken


def span(lists: Ragged, low: int, high: int) -> Ragged:
    """The lists low, …, high - 1; their values are a view."""
    values, offsets = lists
    return values[offsets[low] : offsets[high]], offsets[low : high + 1] - offsets[low]


def last(lists: Ragged, length: int) -> Ragged:
    """The last ``length`` values of each list."""
    kept = ages(lists) < length
    sizes = np.minimum(lengths(lists), length)
    return lists[0][kept], np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])


def check(lists: Ragged, name: str) -> None:
    """Raises DataError unless offsets rise from 0 to the number of values."""
    values, offsets = lists
    rising = len(offsets) > 0 and offsets[0] == 0 and offsets[-1] == len(values) and bool(np.all(np.diff(offsets) >= 0))
    if not rising:
        received = f"{len(offsets)} offsets for {len(values)} values"
        raise DataError(f"offsets of {name} must rise from 0 to the number of values", received)
