"""Neighbours of items by co-occurrence, for catalogues where a matrix of all pairs is impossible."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tfrec.evaluation import ragged
from tfrec.evaluation.baselines.counts import distinct
from tfrec.evaluation.ragged import Ragged

_PAIRS = 2**22  # item pairs expanded at a time: about 200 MB


class Neighbours(NamedTuple):
    """The m largest weights of each item: ids int32 [N+1, m] and values float32 [N+1, m], 0 where there are fewer."""

    ids: np.ndarray
    values: np.ndarray


def neighbours(train: Ragged, items: int, count: int, shrink: float, most: int = 200) -> Neighbours:
    """The nearest items by the cosine of their users, shrunk where few users have both.

        B_ij = c_ij / (√(c_i c_j) + λ) for i ≠ j,   c_ij: users that have both

    Memory is bounded by the result and a block of pairs, time by Σ_u n_u². Source: item-based neighbours of Sarwar et
    al. 2001, doi 10.1145/371920.372071, with the shrinkage of Bell and Koren 2007, doi 10.1109/ICDM.2007.90.

    Args:
        train: ragged, items of each user, oldest first.
        items: N.
        count: m.
        shrink: λ ≥ 0.
        most: last items of a user that count, so that no user has more pairs than its square.
    """
    known = distinct(ragged.last(train, most), items)
    by_item = np.argsort(known[0], kind="stable")
    item, user = known[0][by_item].astype(np.int64), ragged.owners(known)[by_item]
    counts = np.bincount(item, minlength=items + 1)
    ids, values = np.zeros((items + 1, count), np.int32), np.zeros((items + 1, count), np.float32)
    for block in _blocks(item, ragged.lengths(known)[user]):
        others, offsets = ragged.take(known, user[block])
        pairs = np.repeat(item[block], np.diff(offsets)) * (items + 1) + others
        keys, both = np.unique(pairs, return_counts=True)
        first, second = np.divmod(keys, items + 1)
        weight = both / (np.sqrt(counts[first] * counts[second]) + shrink)
        keep_largest(first, second, np.where(first == second, 0, weight), ids, values)
    return Neighbours(ids, values)


def _blocks(item: np.ndarray, pairs: np.ndarray) -> list[slice]:
    """Whole items at a time, of about as many pairs as may be expanded."""
    if not len(item):
        return []
    starts = np.flatnonzero(np.diff(item, prepend=-1))
    before = np.concatenate([[0], np.cumsum(pairs)])[starts]
    cuts = starts[np.flatnonzero(np.diff(before // _PAIRS, prepend=-1))]
    return [slice(low, high) for low, high in zip(cuts, [*cuts[1:], len(item)], strict=True)]


def keep_largest(
    first: np.ndarray, second: np.ndarray, weight: np.ndarray, ids: np.ndarray, values: np.ndarray
) -> None:
    """Writes the largest weights of each item into its row; of equal ones the smaller id."""
    order = np.lexsort((second, -weight, first))
    first, second, weight = first[order], second[order], weight[order]
    place = np.arange(len(first)) - np.searchsorted(first, first)
    kept = (place < ids.shape[1]) & (weight > 0)
    ids[first[kept], place[kept]] = second[kept]
    values[first[kept], place[kept]] = weight[kept]
