"""Metrics of how long somebody stays, where some are lost sight of before they leave."""

from __future__ import annotations

import numpy as np

from tfrec.errors import DataError
from tfrec.evaluation.ranking_metrics import auc, same_rows, summarize_binary


def concordance(stayed: np.ndarray, observed: np.ndarray, scores: np.ndarray) -> float:
    """Chance that of two rows the one that stayed longer scores higher, ties of scores counting half.

        C = mean over pairs (i, j) of [s_i < s_j];   a pair: i was seen to leave, and j stayed more periods than i

    Source: Harrell et al. 1982, Evaluating the yield of medical tests.

    Args:
        stayed: whole periods that each row stayed, [R].
        observed: whether it was seen to leave in the period after them, bool [R].
        scores: higher = stays longer, [R].

    Raises:
        DataError: there is no pair.
    """
    stayed, scores = same_rows(stayed, scores)
    pairs = right = 0.0
    for period in np.unique(stayed[observed]):
        left, longer = scores[observed & (stayed == period)], scores[stayed > period]
        if len(longer):
            both = np.concatenate([np.zeros(len(left)), np.ones(len(longer))]), np.concatenate([left, longer])
            pairs += len(left) * len(longer)
            right += len(left) * len(longer) * auc(*both)
    if not pairs:
        raise DataError("concordance needs a row that was seen to leave and one that stayed longer", len(stayed))
    return right / pairs


def summarize_survival(
    stayed: np.ndarray, observed: np.ndarray, retention: np.ndarray, groups: np.ndarray, horizon: int
) -> dict[str, float]:
    """Concordance, and every metric of a binary task over the rows whose fate at the horizon is known.

    A row that is lost sight of before the horizon is left out of the latter; what has no pair or row is left out.

    Args:
        stayed, observed: of :func:`concordance`.
        retention: predicted chance to stay through the horizon, [R].
        groups: whose row it is, int [R].
        horizon: periods.
    """
    out: dict[str, float] = {}
    if observed.any() and stayed.max() > stayed[observed].min():
        out["concordance"] = concordance(stayed, observed, retention)
    stays = stayed >= horizon
    known = stays | observed
    if known.any():
        out |= summarize_binary(stays[known].astype(np.float64), retention[known], groups[known])
    return out
