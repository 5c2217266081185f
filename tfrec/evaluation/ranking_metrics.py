"""Metrics of scored rows: pure functions of labels and scores in which equal scores share their places.

Labels and scores are float arrays [R]; a binary label is 0 or 1, a probability lies in [0, 1].
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from tfrec.errors import DataError

_SMALLEST = 1e-7  # a float32 probability cannot tell 1 - p from 1 below this


class Reliability(NamedTuple):
    """Bins of equal width in probability: what was predicted and what happened.

    Args:
        predicted: mean probability of each bin that has rows, float64 [b].
        observed: share of positives in it, float64 [b].
        rows: how many rows it has, int64 [b].
    """

    predicted: np.ndarray
    observed: np.ndarray
    rows: np.ndarray


def auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve: the chance that a positive is above a negative, ties counting half.

        AUC = (Σ_{positives} rank − P (P + 1) / 2) / (P · N)   with average ranks from 1

    Raises:
        DataError: there are no positives or no negatives.
    """
    labels, scores = same_rows(labels, scores)
    _need_binary(labels)
    positives = float(labels.sum())
    negatives = len(labels) - positives
    if not positives or not negatives:
        raise DataError("AUC needs positives and negatives", {"positives": int(positives), "negatives": int(negatives)})
    above = average_ranks(scores)[labels == 1].sum() - positives * (positives + 1) / 2
    return float(above / (positives * negatives))


def gauc(labels: np.ndarray, scores: np.ndarray, groups: np.ndarray) -> float:
    """Mean AUC of each group, weighted by its rows; groups of one class have no AUC and are left out.

    Source: Zhou et al. 2018, Deep interest network, arXiv 1706.06978.

    Args:
        labels, scores: [R].
        groups: whose row it is, such as the user, int [R].

    Raises:
        DataError: no group has positives and negatives.
    """
    labels, scores = same_rows(labels, scores)
    _need_binary(labels)
    _, group = np.unique(groups, return_inverse=True)
    rank = _ranks_within(group, scores)
    rows, positives = np.bincount(group), np.bincount(group, labels)
    negatives = rows - positives
    above = np.bincount(group, rank * labels) - positives * (positives + 1) / 2
    both = (positives > 0) & (negatives > 0)
    if not both.any():
        raise DataError("GAUC needs a group with positives and negatives", f"{len(rows)} groups of one class")
    areas = above[both] / (positives[both] * negatives[both])
    return float(np.average(areas, weights=rows[both]))


def row_logloss(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """−y log p − (1 − y) log(1 − p) of each row, float64 [R]; p is kept 1e-7 away from 0 and 1."""
    labels, probabilities = _probabilities(labels, probabilities)
    p = np.clip(probabilities, _SMALLEST, 1 - _SMALLEST)
    return -(labels * np.log(p) + (1 - labels) * np.log1p(-p))


def logloss(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean binary cross-entropy in nats."""
    return float(row_logloss(labels, probabilities).mean())


def normalised_entropy(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Logloss / logloss of the base rate: 1 is what a constant reaches.

    Source: He et al. 2014, Practical lessons from predicting clicks on ads at Facebook.

    Raises:
        DataError: there are no positives or no negatives.
    """
    loss, base = logloss(labels, probabilities), float(np.mean(labels))
    if base in (0.0, 1.0):
        raise DataError("normalised entropy needs positives and negatives", f"a base rate of {base:g}")
    return loss / float(-(base * np.log(base) + (1 - base) * np.log1p(-base)))


def reliability(labels: np.ndarray, probabilities: np.ndarray, bins: int = 15) -> Reliability:
    """The reliability curve: bins [i / b, (i + 1) / b), the last closed, without those that have no row."""
    labels, probabilities = _probabilities(labels, probabilities)
    place = np.minimum((probabilities * bins).astype(np.int64), bins - 1)
    rows = np.bincount(place, minlength=bins)
    some = rows > 0
    predicted, observed = (np.bincount(place, values, minlength=bins)[some] for values in (probabilities, labels))
    return Reliability(predicted / rows[some], observed / rows[some], rows[some])


def ece(labels: np.ndarray, probabilities: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error: Σ rows_b / R · |predicted_b − observed_b|.

    Source: Guo et al. 2017, On calibration of modern neural networks, arXiv 1706.04599.
    """
    curve = reliability(labels, probabilities, bins)
    return float(np.average(np.abs(curve.predicted - curve.observed), weights=curve.rows))


def rmse(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Root of the mean squared difference."""
    labels, predictions = same_rows(labels, predictions)
    return float(np.sqrt(np.mean(np.square(labels - predictions))))


def mae(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Mean absolute difference."""
    labels, predictions = same_rows(labels, predictions)
    return float(np.mean(np.abs(labels - predictions)))


def ndcg(gains: np.ndarray, scores: np.ndarray, groups: np.ndarray, k: int) -> np.ndarray:
    """NDCG@K of candidates re-ranked by their scores, one number a group that has a gain, float64 [G].

    DCG@K = Σ gain / log2(position + 2) over the first K; of candidates with equal scores each has the mean
    discount of the positions that they take together.
    Source: McSherry and Najork 2008, Computing information retrieval performance measures efficiently in the
    presence of tied scores.

    Args:
        gains: not negative, [R].
        scores: [R].
        groups: whose candidate it is, int [R].
        k: K.

    Raises:
        DataError: K < 1, a gain is negative, or no group has one above 0.
    """
    gains, scores = same_rows(gains, scores)
    if k < 1 or gains.min() < 0:
        raise DataError("NDCG needs K of at least 1 and gains of at least 0", (k, float(gains.min())))
    _, group = np.unique(groups, return_inverse=True)
    dcg, ideal = _dcg(gains, scores, group, k), _dcg(gains, gains, group, k)
    if not ideal.any():
        raise DataError("NDCG needs a group with a gain above 0", f"{len(ideal)} groups without")
    return dcg[ideal > 0] / ideal[ideal > 0]


def gini(values: np.ndarray, predictions: np.ndarray) -> float:
    """Normalised Gini: how well predictions order the values, 1 for the order of the values themselves.

        G = Σ_i (v_i / Σ v) · (R + 1 − 2 · place_i) / R,   normalised by the G of the values' own order

    Places are 1 for the highest prediction and shared by equal ones.
    Source: Wang et al. 2019, arXiv 1912.07753, section 4.

    Raises:
        DataError: a value is negative, or all are equal.
    """
    values, predictions = same_rows(values, predictions)
    if values.min() < 0 or values.min() == values.max():
        raise DataError("Gini needs values that are not negative and not all equal", float(values.min()))
    return _lorenz(values, predictions) / _lorenz(values, values)


def top_capture(values: np.ndarray, predictions: np.ndarray, share: float = 0.1) -> float:
    """Share of the total value held by the rows with the highest predictions.

    Rows that tie at the border count in part, so that the rows taken are exactly ``share`` · R.

    Args:
        values: not negative, [R].
        predictions: [R].
        share: of the rows, in (0, 1]; a tenth gives the top-decile capture.

    Raises:
        DataError: a value is negative, all are 0, or share is out of range.
    """
    values, predictions = same_rows(values, predictions)
    if values.min() < 0 or not values.sum() or not 0 < share <= 1:
        received = {"least value": float(values.min()), "sum": float(values.sum()), "share": share}
        raise DataError("capture needs values >= 0 with a sum above 0 and a share in (0, 1]", received)
    wanted = share * len(values)
    _, block = np.unique(-predictions, return_inverse=True)  # block 0 has the highest prediction
    rows = np.bincount(block)
    before = np.cumsum(rows) - rows
    part = np.clip((wanted - before) / rows, 0, 1)
    return float(np.sum(part[block] * values) / values.sum())


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Rank correlation: Pearson's of average ranks.

    Raises:
        DataError: one of the two is constant.
    """
    first, second = same_rows(first, second)
    a, b = (average_ranks(x) - (len(x) + 1) / 2 for x in (first, second))
    scale = np.sqrt(np.sum(a * a) * np.sum(b * b))
    if not scale:
        raise DataError("a rank correlation needs two arrays that vary", f"{len(first)} equal values")
    return float(np.sum(a * b) / scale)


def precision_recall_f1(labels: np.ndarray, scores: np.ndarray, threshold: float = 0.5) -> tuple[float, float, float]:
    """Precision, recall and F1 of calling positive what scores at least ``threshold``; 0 / 0 counts as 0."""
    labels, scores = same_rows(labels, scores)
    _need_binary(labels)
    called = scores >= threshold
    hits = float(labels[called].sum())
    precision = hits / max(float(called.sum()), 1.0)
    recall = hits / max(float(labels.sum()), 1.0)
    return precision, recall, 2 * precision * recall / (precision + recall) if hits else 0.0


def summarize_binary(labels: np.ndarray, probabilities: np.ndarray, groups: np.ndarray) -> dict[str, float]:
    """Every metric of a binary task.

    auc, normalised_entropy, gauc are left out where a class has no rows (of any group, for gauc).
    """
    precision, recall, f1 = precision_recall_f1(labels, probabilities)
    out = {"logloss": logloss(labels, probabilities), "ece": ece(labels, probabilities)}
    out |= {"precision": precision, "recall": recall, "f1": f1, "positives": float(np.mean(labels))}
    if 0 < np.mean(labels) < 1:
        out |= {"auc": auc(labels, probabilities), "normalised_entropy": normalised_entropy(labels, probabilities)}
        if has_both_classes(labels, groups):
            out["gauc"] = gauc(labels, probabilities, groups)
    return out


def summarize_value(values: np.ndarray, predictions: np.ndarray) -> dict[str, float]:
    """Every metric of a task with numbers; those of order are left out where nothing varies or values are negative."""
    out: dict[str, float] = {"rmse": rmse(values, predictions), "mae": mae(values, predictions)}
    varied = np.ptp(values) > 0
    if varied and np.ptp(predictions) > 0:
        out["spearman"] = spearman(values, predictions)
    if varied and np.min(values) >= 0:
        out |= {"gini": gini(values, predictions), "top_decile": top_capture(values, predictions)}
    return out


def has_both_classes(labels: np.ndarray, groups: np.ndarray) -> bool:
    """Whether any group has positives and negatives."""
    _, group = np.unique(groups, return_inverse=True)
    share = np.bincount(group, labels) / np.bincount(group)
    return bool(np.any((share > 0) & (share < 1)))


def paired_bootstrap(
    labels: np.ndarray, first: np.ndarray, second: np.ndarray, resamples: int = 1000, seed: int = 0
) -> Mapping[str, dict[str, float]]:
    """AUC and logloss of one model minus another's, with 95 % percentile intervals over resampled rows.

    Args:
        labels: 0 or 1, with both classes, [R].
        first, second: probabilities of the two models on the same rows, [R].
        resamples: samples of R rows drawn with replacement; those of one class are left out.
        seed: of the draws.

    Returns:
        {"auc": {"mean", "low", "high"}, "logloss": …}; the mean is the difference on all rows.
    """
    losses = row_logloss(labels, first) - row_logloss(labels, second)
    random = np.random.default_rng(seed)
    areas, means = [], []
    for _ in range(resamples):
        rows = random.integers(0, len(labels), len(labels))
        means.append(float(losses[rows].mean()))
        if 0 < labels[rows].mean() < 1:
            areas.append(auc(labels[rows], first[rows]) - auc(labels[rows], second[rows]))
    whole = {"auc": auc(labels, first) - auc(labels, second), "logloss": float(losses.mean())}
    return {name: _interval(whole[name], drawn) for name, drawn in (("auc", areas), ("logloss", means))}


def average_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1, ascending; equal values share their mean rank, float64 [R]."""
    return _ranks_within(np.zeros(len(values), np.int64), values)


def _interval(mean: float, drawn: list[float]) -> dict[str, float]:
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {"mean": mean, "low": float(low), "high": float(high)}


def _ranks_within(group: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Average ranks from 1 among the rows of the same group."""
    order, block = _blocks(group, values)
    rows = np.bincount(block)
    start = np.cumsum(rows) - rows  # of each block of equals, among all rows
    group_start = np.concatenate([[0], np.cumsum(np.bincount(group))])[group[order]]
    out = np.empty(len(values), np.float64)
    out[order] = (start + (rows + 1) / 2)[block] - group_start
    return out


def _blocks(group: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Order by group and value, and the block of equals of each ordered row."""
    order = np.lexsort((values, group))
    g, v = group[order], values[order]
    first = np.concatenate([[True], (g[1:] != g[:-1]) | (v[1:] != v[:-1])]) if len(g) else np.zeros(0, bool)
    return order, np.cumsum(first) - 1


def _dcg(gains: np.ndarray, scores: np.ndarray, group: np.ndarray, k: int) -> np.ndarray:
    order, block = _blocks(group, -scores)
    place = np.arange(len(order)) - np.concatenate([[0], np.cumsum(np.bincount(group))])[group[order]]
    discount = np.where(place < k, 1 / np.log2(place + 2), 0.0)
    shared = (np.bincount(block, discount) / np.bincount(block))[block]
    return np.bincount(group[order], gains[order] * shared)


def _lorenz(values: np.ndarray, predictions: np.ndarray) -> float:
    rows = len(values)
    place = rows + 1 - average_ranks(predictions)
    return float(np.sum(values / values.sum() * (rows + 1 - 2 * place) / rows))


def same_rows(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64 [R]; refused where their lengths differ."""
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if first.ndim != 1 or first.shape != second.shape or not len(first):
        raise DataError("a metric needs two arrays [R] of one length, R >= 1", (first.shape, second.shape))
    for name, values in (("labels", first), ("scores", second)):
        if not np.isfinite(values).all():
            bad = values[~np.isfinite(values)][0]
            raise DataError(f"{name} must be finite", f"{bad} in row {int(np.argmin(np.isfinite(values)))}")
    return first, second


def _probabilities(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    labels, probabilities = same_rows(labels, probabilities)
    _need_binary(labels)
    outside = (probabilities < 0) | (probabilities > 1)
    if outside.any():
        raise DataError("probabilities must lie in [0, 1]", float(probabilities[outside][0]), "Apply the sigmoid")
    return labels, probabilities


def _need_binary(labels: np.ndarray) -> None:
    other = labels[(labels != 0) & (labels != 1)]
    if len(other):
        raise DataError("binary labels must be 0 or 1", float(other[0]))
