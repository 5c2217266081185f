"""Two scorers as one."""

from __future__ import annotations

import numpy as np

from tfrec.evaluation.ranks import Scorer


def blend(first: Scorer, second: Scorer, weight: float) -> Scorer:
    """z(first) + weight · z(second), with z the score's distance from the query's mean in standard deviations.

    A query whose scores are all equal gives zeros, so the other scorer decides alone.
    """
    return lambda rows: standardize(first(rows)) + np.float32(weight) * standardize(second(rows))


def standardize(scores: np.ndarray) -> np.ndarray:
    """z-scores of each row over items 1..N, float32 [b, N+1]."""
    known = scores[:, 1:]
    mean, deviation = known.mean(axis=1, keepdims=True), known.std(axis=1, keepdims=True)
    usable = deviation > 1e-7 * np.abs(mean)
    return np.where(usable, (scores - mean) / np.where(usable, deviation, 1), 0).astype(np.float32)
