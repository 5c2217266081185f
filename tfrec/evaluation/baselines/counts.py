"""Counts of events and of co-occurrences, from ragged lists of items per user."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tfrec.errors import DataError, TrainingError
from tfrec.evaluation import ragged
from tfrec.evaluation.ragged import Ragged

MOST_ITEMS = 20_000
_PAIRS = 2**22  # item pairs expanded at a time: about 100 MB
_BLOCK_FLOATS = 2**24  # 64 MB of float32 rows at a time


def events(train: Ragged, n_items: int) -> np.ndarray:
    """Train events per item, int64 [N+1]; item 0 has none.

    Raises:
        DataError: the lists are not ragged, or hold an item outside 0..N.
    """
    ragged.check(train, "train")
    items = train[0]
    if len(items) and not 0 <= items.min() <= items.max() <= n_items:
        raise DataError(f"train items must lie in 0..{n_items}", (int(items.min()), int(items.max())))
    counts = np.bincount(items, minlength=n_items + 1)
    counts[0] = 0
    return counts


def distinct(train: Ragged, n_items: int) -> Ragged:
    """Each user's known items, once each and sorted."""
    keys = np.unique(ragged.owners(train) * (n_items + 1) + train[0])
    user, item = np.divmod(keys, n_items + 1)
    sizes = np.bincount(user[item > 0], minlength=len(train[1]) - 1)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
    return item[item > 0].astype(np.int32), offsets


def refuse_large(n_items: int) -> None:
    """Raises TrainingError when there are too many items to count each pair of them."""
    if n_items > MOST_ITEMS:
        raise TrainingError(f"pairs of items are counted for at most {MOST_ITEMS} items", n_items)


def co_occurrence(train: Ragged, n_items: int) -> Iterator[tuple[slice, np.ndarray]]:
    """Rows of XᵀX, for X the 0/1 matrix of users × items: users that have both items.

    X is never dense: the cost is the sum over users of the squared length of their list.

    Yields:
        A slice of items and their rows, float32 [rows, N+1]; together they cover 0..N.
    """
    known = distinct(train, n_items)
    by_item = np.argsort(known[0], kind="stable")
    users = ragged.owners(known)[by_item]
    starts = np.searchsorted(known[0][by_item], np.arange(n_items + 2))
    rows = max(1, _BLOCK_FLOATS // (n_items + 1))
    for low in range(0, n_items + 1, rows):
        high = min(low + rows, n_items + 1)
        events_ = slice(starts[low], starts[high])
        yield (
            slice(low, high),
            _rows(known, known[0][by_item][events_] - low, users[events_], (high - low, n_items + 1)),
        )


def _rows(known: Ragged, row: np.ndarray, users: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    out = np.zeros(shape, np.float32)
    pairs = np.cumsum(ragged.lengths(known)[users])
    total = int(pairs[-1]) if len(pairs) else 0
    cuts = np.searchsorted(pairs, np.arange(_PAIRS, total + _PAIRS, _PAIRS), side="right")
    low = 0
    for high in np.unique(np.append(cuts, len(users))):
        others, offsets = ragged.take(known, users[low:high])
        place = np.repeat(row[low:high].astype(np.int64), np.diff(offsets)) * shape[1] + others
        np.add.at(out.reshape(-1), place, np.float32(1))
        low = high
    return out
