"""What a ranker compares a candidate with: the rare words of texts, and what the past took soon after what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tfrec.training.neighbours import Neighbours, keep_largest

WORDS = 32  # of an item, the rarest
VOCABULARY = 2**15
FOLLOWERS = 50
_REACH = 7  # places between two events
_FADE = 0.6
_SHRINK = 3.0


class ItemWords(NamedTuple):
    """ids int32 [N+1, w], 0 = none, their weights float32 [N+1, w], and the largest id."""

    ids: np.ndarray
    weights: np.ndarray
    size: int


def item_words(tokens: np.ndarray) -> ItemWords:
    """The rarest words of every item, weighed so that an item's vector has length 1.

        weight = log(N / items that have the word), over the norm of the item's

    Words of one item alone compare nothing and those of every item tell nothing; of the others the most frequent
    32,768 are kept. Source: Spärck Jones 1972, doi 10.1108/eb026526.

    Args:
        tokens: int32 [N+1, S], 0 = padding; row 0 is the unknown item's.
    """
    items = len(tokens) - 1
    row, place = np.nonzero(tokens > 0)
    row, token = np.unique(np.stack([row, tokens[row, place]]), axis=1)  # each word once an item
    frequency = np.bincount(token, minlength=1)
    usable = np.flatnonzero((frequency > 1) & (frequency < items))
    kept = usable[np.argsort(-frequency[usable], kind="stable")[:VOCABULARY]]
    number = np.zeros(len(frequency), np.int32)
    number[kept] = np.arange(1, len(kept) + 1)
    row, token = (x[number[token] > 0] for x in (row, token))
    ids, weights = np.zeros((items + 1, WORDS), np.int32), np.zeros((items + 1, WORDS), np.float32)
    keep_largest(row, number[token], np.log(items / frequency[token]).astype(np.float32), ids, weights)
    norm = np.linalg.norm(weights, axis=1, keepdims=True)
    return ItemWords(ids, weights / np.where(norm > 0, norm, 1), len(kept))


def followers(events: Mapping[str, np.ndarray], items: int, splits: Sequence[int]) -> Neighbours:
    """What comes soon after each item, of each the 50 of largest weight.

        F_ij = Σ 0.6^(d−1) / (√(c_i c_j) + 3) over events of j that are d ≤ 7 places after one of i, i ≠ j

    with c how often an item was taken.

    Args:
        events: "user", "item" and "split", [E], sorted by user and time.
        items: N.
        splits: what is past.
    """
    past = np.isin(events["split"], splits)
    user, item = events["user"][past], events["item"][past].astype(np.int64)
    parts = []
    for distance in range(1, _REACH + 1):
        before, after = item[:-distance], item[distance:]
        kept = (user[:-distance] == user[distance:]) & (before != after)
        pairs, count = np.unique(before[kept] * (items + 1) + after[kept], return_counts=True)
        parts.append((pairs, count * _FADE ** (distance - 1)))
    pairs, where = np.unique(np.concatenate([pairs for pairs, _ in parts]), return_inverse=True)
    total = np.bincount(where, np.concatenate([weight for _, weight in parts]), minlength=len(pairs))
    first, second = np.divmod(pairs, items + 1)
    taken = np.bincount(item, minlength=items + 1)
    weight = (total / (np.sqrt(taken[first] * taken[second]) + _SHRINK)).astype(np.float32)
    shape = (items + 1, FOLLOWERS)
    found = Neighbours(np.zeros(shape, np.int32), np.zeros(shape, np.float32))
    keep_largest(first, second, weight, *found)
    return found
