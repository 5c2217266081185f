"""How sure a mean over users is, and a difference of two."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tfrec.errors import DataError

_BLOCK = 2**22  # counts drawn at a time, 32 MB


class Interval(NamedTuple):
    """A mean with its percentile interval."""

    mean: float
    low: float
    high: float


class Difference(NamedTuple):
    """A mean difference with its percentile interval, and the share of resamples where it is not above 0."""

    mean: float
    low: float
    high: float
    share_not_above: float


def interval(values: np.ndarray, resamples: int = 1000, level: float = 0.95, seed: int = 0) -> Interval:
    """Percentile bootstrap of the mean over users.

    Source: Efron and Tibshirani 1993, chapter 13.

    Args:
        values: one number per user, float [Q], finite.
        resamples: how many samples of Q users are drawn with replacement.
        level: share of resamples inside the interval.
        seed: of the draws.

    Raises:
        DataError: no values, values that are not finite, or settings out of range.
    """
    means = _means(values, resamples, level, seed)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(np.mean(values)), float(low), float(high))


def paired(
    first: np.ndarray, second: np.ndarray, resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> Difference:
    """Paired bootstrap of mean(first - second): both are resampled at the same users.

    Args:
        first: one number per user, float [Q], finite.
        second: the same users in the same order, float [Q].
        resamples: how many samples of Q users are drawn with replacement.
        level: share of resamples inside the interval.
        seed: of the draws.

    Raises:
        DataError: different lengths, no values, values that are not finite, or settings out of range.
    """
    if np.shape(first) != np.shape(second):
        raise DataError("a paired bootstrap needs the same users in both", (np.shape(first), np.shape(second)))
    difference = np.subtract(first, second, dtype=np.float64)
    means = _means(difference, resamples, level, seed)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Difference(float(difference.mean()), float(low), float(high), float(np.mean(means <= 0)))


def _means(values: np.ndarray, resamples: int, level: float, seed: int) -> np.ndarray:
    """Means of resamples, [resamples].

    How often each distinct value is drawn is multinomial: metrics at K have few distinct values, so this costs far
    less than drawing users.
    """
    if np.ndim(values) != 1 or not len(values) or not np.isfinite(values).all():
        raise DataError("a bootstrap needs one finite number per user", f"an array of shape {np.shape(values)}")
    if resamples < 1 or not 0 < level < 1:
        raise DataError("a bootstrap needs resamples >= 1 and a level in (0, 1)", (resamples, level))
    distinct, counts = np.unique(values, return_counts=True)
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK // len(distinct))
    sizes = [min(block, resamples - done) for done in range(0, resamples, block)]
    shares = counts / len(values)
    return np.concatenate([rng.multinomial(len(values), shares, size) @ distinct for size in sizes]) / len(values)
