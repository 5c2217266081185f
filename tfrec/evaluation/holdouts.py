"""Held-out queries from prepared events."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tfrec.evaluation import ragged
from tfrec.evaluation.ragged import Ragged
from tfrec.evaluation.ranks import Holdout


def make_holdout(events: Mapping[str, np.ndarray], users: int, split: int, repeats: str) -> Holdout:
    """One query a user that has events in ``split``: what came before is its history.

    Args:
        events: "user" int32, "item" int32 and "split" int8, sorted by user and time.
        users: U.
        split: 1 (valid) or 2 (test).
        repeats: "mask" (the history may not rank) or "keep".
    """
    before = lists_of(events, users, tuple(range(split)))
    wanted = lists_of(events, users, (split,))
    asked = np.flatnonzero(np.diff(wanted[1]))
    history, targets = ragged.take(before, asked), _distinct(ragged.take(wanted, asked))
    nothing = np.zeros(0, np.int32), np.zeros(len(asked) + 1, np.int64)
    return Holdout(asked.astype(np.int32), history, targets, history if repeats == "mask" else nothing)


def lists_of(events: Mapping[str, np.ndarray], users: int, splits: tuple[int, ...]) -> Ragged:
    """Items of each user in these splits, oldest first; list 0, of unknown users, is empty."""
    kept = np.isin(events["split"], splits) & (events["user"] > 0)
    counts = np.bincount(events["user"][kept], minlength=users + 1)
    return events["item"][kept].astype(np.int32), np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def baskets(events: Mapping[str, np.ndarray], splits: tuple[int, ...], holdout: str) -> np.ndarray:
    """A number for each event of :func:`lists_of`, int64 [E], equal for neighbours in one basket.

    Args:
        events: as in :func:`make_holdout`, with "timestamp" where ``holdout`` is "basket".
        splits: as in :func:`lists_of`.
        holdout: "basket" (a user's events of one time) or "item" (every event is a basket of its own).
    """
    kept = np.isin(events["split"], splits) & (events["user"] > 0)
    if holdout == "item":
        return np.arange(np.count_nonzero(kept))
    user, time = events["user"][kept], events["timestamp"][kept]
    return np.cumsum(np.diff(user, prepend=user[:1]).astype(bool) | np.diff(time, prepend=time[:1]).astype(bool))


def _distinct(lists: Ragged) -> Ragged:
    values, offsets = lists
    pairs = np.unique(np.stack([ragged.owners(lists), values], axis=1), axis=0)
    counts = np.bincount(pairs[:, 0], minlength=len(offsets) - 1)
    return pairs[:, 1].astype(np.int32), np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def last_items(lists: Ragged, length: int) -> np.ndarray:
    """The last ``length`` items of each list, int32 [Q, length], zeros on the left."""
    values, offsets = lists
    place = offsets[1:, None] + np.arange(-length, 0)[None]
    inside = place >= offsets[:-1, None]
    padded = values if len(values) else np.zeros(1, np.int32)
    return np.where(inside, padded[np.maximum(place, 0)], 0).astype(np.int32)
