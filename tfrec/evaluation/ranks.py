"""The rank of each held-out item in the whole catalogue, by counting."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tfrec.errors import DataError, TfrecError
from tfrec.evaluation import ragged
from tfrec.evaluation.ragged import Ragged

Scorer = Callable[[np.ndarray], np.ndarray]
"""Rows of a Holdout, int64 [b], to finite scores, float32 [b, N+1]; column 0 is never read."""

_BLOCK_FLOATS = 16 * 2**20  # 64 MB of float32 scores at a time
_CACHE_FLOATS = 2**19  # 2 MB: what is read several times stays near the processor


@dataclass(frozen=True)
class Holdout:
    """What is asked: Q queries, each with a known history and held-out items.

    Args:
        users: int32 [Q], 0 = unknown.
        history: ragged, Q lists of the items known before the targets, oldest first.
        targets: ragged, Q lists of distinct items 1..N, at least one each.
        mask: ragged, Q lists of items that may not rank; a target is never masked.

    Raises:
        DataError: the lists do not fit together, or a query has no target or one target twice.
    """

    users: np.ndarray
    history: Ragged
    targets: Ragged
    mask: Ragged

    def __post_init__(self) -> None:
        for name in ("history", "targets", "mask"):
            lists = getattr(self, name)
            ragged.check(lists, name)
            if len(lists[1]) != len(self.users) + 1:
                raise DataError(f"{name} must have one list per user, {len(self.users)}", len(lists[1]) - 1)
        empty = np.flatnonzero(ragged.lengths(self.targets) == 0)
        if len(empty):
            raise DataError("each query must have a target", f"none for query {empty[0]}", "Leave such users out.")
        self._refuse_repeated_targets()

    def _refuse_repeated_targets(self) -> None:
        owner, items = ragged.owners(self.targets), self.targets[0]
        order = np.lexsort((items, owner))
        twice = (np.diff(owner[order]) == 0) & (np.diff(items[order]) == 0)
        if twice.any():
            query = owner[order][:-1][twice][0]
            raise DataError("the targets of a query must be distinct", f"one item twice in query {query}")

    def __len__(self) -> int:
        return len(self.users)

    def take(self, rows: np.ndarray) -> Holdout:
        """The queries of these rows."""
        lists = (ragged.take(x, rows) for x in (self.history, self.targets, self.mask))
        return Holdout(self.users[rows], *lists)


@dataclass(frozen=True)
class Ranks:
    """What a scorer answered.

    Args:
        values: float64 [T], 0-based rank of each target; ties count half.
        offsets: int64 [Q+1], the targets of each query, as in the Holdout.
        top: int32 [Q, K], the best items, best first; 0 where fewer than K items may rank.
        n_items: N, the size of the catalogue.
    """

    values: np.ndarray
    offsets: np.ndarray
    top: np.ndarray
    n_items: int

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def sizes(self) -> np.ndarray:
        """Targets of each query, int64 [Q]."""
        return np.diff(self.offsets)

    @cached_property
    def nth(self) -> np.ndarray:
        """Place of each value within its query, from 0, int64 [T]."""
        return np.arange(len(self.values)) - np.repeat(self.offsets[:-1], self.sizes)

    @cached_property
    def positions(self) -> np.ndarray:
        """The ranks of each query in rising order, the j-th at least j: targets share no place, float64 [T]."""
        owner = ragged.owners((self.values, self.offsets))
        return np.maximum(self.values[np.lexsort((self.values, owner))], self.nth)


def rank(scorer: Scorer, holdout: Holdout, n_items: int, batch: int = 256, top: int = 50) -> Ranks:
    """Ranks every target among all items that may rank, without sorting the catalogue.

    rank = #(score > target's) + ½ #(score == target's, others), over items 1..N that are not masked. The other
    targets of a basket compete, because they take positions.

    Args:
        scorer: gives the scores of a block of queries, [b, N+1].
        holdout: the Q queries.
        n_items: N.
        batch: most queries at a time; fewer when b × N scores would pass 64 MB.
        top: K, the length of the lists kept; 0 keeps none.

    Returns:
        Ranks with values float64 [T] and top int32 [Q, K].

    Raises:
        DataError: an item of the holdout lies outside the catalogue.
        TfrecError: scores of a wrong shape, or not finite.
    """
    _check_items(holdout, n_items)
    block = max(1, min(batch, _BLOCK_FLOATS // (n_items + 1)))
    part = max(1, min(block, _CACHE_FLOATS // (n_items + 1)))
    flags = np.zeros((part, -(-(n_items + 1) // 8) * 8), bool)  # whole words, so that they are counted as words
    values = np.empty(len(holdout.targets[0]), np.float64)
    best = np.zeros((len(holdout), top), np.int32)
    offsets = holdout.targets[1]
    for low, scores in _scores(scorer, len(holdout), n_items, block, part):
        high = low + len(scores)
        targets = ragged.span(holdout.targets, low, high)
        _mask(scores, ragged.span(holdout.mask, low, high), targets)
        values[offsets[low] : offsets[high]] = _count(scores, targets, flags)
        if top:
            best[low:high] = _best(scores, top)
    return Ranks(values, offsets, best, n_items)


def _check_items(holdout: Holdout, n_items: int) -> None:
    for name, lists, lowest in (
        ("history", holdout.history, 0),
        ("targets", holdout.targets, 1),
        ("mask", holdout.mask, 0),
    ):
        if lists[0].min(initial=lowest) < lowest or lists[0].max(initial=lowest) > n_items:
            wrong = np.flatnonzero((lists[0] < lowest) | (lists[0] > n_items))
            item, query = int(lists[0][wrong[0]]), int(ragged.owners(lists)[wrong[0]])
            raise DataError(f"{name} must be items {lowest}..{n_items}", f"{item} in query {query}")


def _scores(scorer: Scorer, queries: int, n_items: int, block: int, part: int) -> Iterator[tuple[int, np.ndarray]]:
    """Scores of a part of the queries with the first of them, in one array that the next part overwrites.

    They are copies, because masking must not write into the scorer's own arrays; new memory for each would cost more
    than to copy.
    """
    copy = np.empty((0, 0))
    for low in range(0, queries, block):
        rows = np.arange(low, min(low + block, queries))
        scores = np.asarray(scorer(rows))
        if scores.shape != (len(rows), n_items + 1):
            raise TfrecError(f"a scorer must return shape {(len(rows), n_items + 1)}", scores.shape)
        if not low:
            copy = np.empty((part, n_items + 1), scores.dtype)
        for start in range(0, len(rows), part):
            taken = copy[: len(rows) - start]
            np.copyto(taken, scores[start : start + part])
            taken[:, 0] = 0
            _check_finite(taken, low + start)
            yield low + start, taken


def _check_finite(scores: np.ndarray, first: int) -> None:
    with np.errstate(all="ignore"):
        if np.isfinite(np.vdot(scores, scores)):  # one fast pass; a sum that only overflows is looked at below
            return
    wrong = np.argwhere(~np.isfinite(scores))
    if len(wrong):
        row, item = wrong[0]
        received = f"{scores[row, item]} for item {item} in query {first + row}"
        raise TfrecError("scores must be finite", received, "The model has probably diverged.")


def _mask(scores: np.ndarray, mask: Ragged, targets: Ragged) -> None:
    place = ragged.owners(targets), targets[0]
    kept = scores[place]
    scores[:, 0] = -np.inf
    scores.reshape(-1)[ragged.owners(mask) * scores.shape[1] + mask[0]] = -np.inf
    scores[place] = kept


def _count(scores: np.ndarray, targets: Ragged, flags: np.ndarray) -> np.ndarray:
    items, offsets = targets
    sizes = ragged.lengths(targets)
    out = np.empty(len(items), np.float64)
    for nth in range(int(sizes.max())):  # the nth target of every query that has one
        rows = np.flatnonzero(sizes > nth)
        place = offsets[rows] + nth
        theirs = scores if len(rows) == len(scores) else scores[rows]
        score = theirs[np.arange(len(rows)), items[place]][:, None]
        above, not_below = (
            _true(compare, theirs, score, flags[: len(rows)]) for compare in (np.greater, np.greater_equal)
        )
        out[place] = (above + not_below - 1) / 2
    return out


def _true(compare: np.ufunc, scores: np.ndarray, score: np.ndarray, flags: np.ndarray) -> np.ndarray:
    """In how many columns each row compares so, int64 [b]; flags have a width that eight divides and end with False.

    Eight flags are added at a time, as the bytes of a word, each of which can count to 255: five times faster than
    count_nonzero by rows, which makes every flag an int64 first.
    """
    compare(scores, score, out=flags[:, : scores.shape[1]])
    words = flags.view(np.uint64)
    sums = np.add.reduceat(words, np.arange(0, words.shape[1], 255), axis=1)
    return sums.view(np.uint8).sum(axis=1, dtype=np.int64)


def _best(scores: np.ndarray, top: int) -> np.ndarray:
    width = min(top, scores.shape[1])
    found = np.argpartition(-scores, width - 1, axis=1)[:, :width]
    score = np.take_along_axis(scores, found, axis=1)
    order = np.lexsort((found, -score), axis=1)  # equal scores by item index, so that runs agree
    found = np.where(np.isneginf(score), 0, found)
    out = np.zeros((len(scores), top), np.int32)
    out[:, :width] = np.take_along_axis(found, order, axis=1)
    return out
