"""Metrics of scored rows against numbers made by hand and against definitions written as loops."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfrec.errors import DataError
from tfrec.evaluation import ranking_metrics as m


def array(*values: float) -> np.ndarray:
    return np.array(values, np.float64)


# By hand


def test_auc_by_hand_with_a_tie() -> None:
    # Pairs (positive, negative): .9 beats both; .4 ties with .4 and beats .1.
    assert m.auc(array(1, 0, 1, 0), array(0.9, 0.4, 0.4, 0.1)) == pytest.approx((1 + 1 + 0.5 + 1) / 4)


def test_gauc_weighs_users_by_their_rows_and_skips_those_of_one_class() -> None:
    labels, scores = array(1, 0, 0, 1, 1, 1), array(0.2, 0.8, 0.1, 0.3, 0.2, 0.9)
    users = np.array([7, 7, 7, 2, 2, 5])  # 7: one of two pairs right; 2 and 5: positives only
    assert m.gauc(labels, scores, users) == pytest.approx(0.5)
    users = np.array([7, 7, 7, 7, 2, 5])
    assert m.gauc(labels, scores, users) == pytest.approx(3 / 4 - 0.25)  # .2 and .3 beat .1, neither beats .8


def test_logloss_and_normalised_entropy_by_hand() -> None:
    labels, p = array(1, 0, 0, 0), array(0.5, 0.5, 0.25, 0.25)
    expected = (2 * math.log(2) + 2 * math.log(4 / 3)) / 4
    assert m.logloss(labels, p) == pytest.approx(expected)
    base = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert m.normalised_entropy(labels, p) == pytest.approx(expected / base)
    assert m.normalised_entropy(labels, np.full(4, 0.25)) == pytest.approx(1)


def test_a_certain_mistake_costs_a_finite_amount() -> None:
    assert m.logloss(array(1), array(0)) == pytest.approx(-math.log(1e-7))


def test_calibration_by_hand() -> None:
    labels, p = array(1, 0, 1, 1), array(0.1, 0.3, 0.9, 1.0)
    curve = m.reliability(labels, p, bins=2)
    np.testing.assert_allclose(curve.predicted, [0.2, 0.95])
    np.testing.assert_allclose(curve.observed, [0.5, 1.0])
    assert curve.rows.tolist() == [2, 2]
    assert m.ece(labels, p, bins=2) == pytest.approx((0.3 + 0.05) / 2)


def test_errors_of_numbers_by_hand() -> None:
    assert m.rmse(array(0, 0), array(3, 4)) == pytest.approx(math.sqrt(12.5))
    assert m.mae(array(0, 0), array(3, -4)) == 3.5


def test_ndcg_by_hand() -> None:
    gains, scores = array(3, 0, 1), array(0.1, 0.9, 0.5)
    dcg, ideal = 1 / math.log2(3) + 3 / 2, 3 + 1 / math.log2(3)
    assert m.ndcg(gains, scores, np.zeros(3, int), 3) == pytest.approx([dcg / ideal])
    assert m.ndcg(gains, scores, np.zeros(3, int), 1) == pytest.approx([0])


def test_gini_and_capture_by_hand() -> None:
    values = array(*[0] * 9, 10)
    assert m.gini(values, np.arange(10.0)) == pytest.approx(1)
    assert m.gini(values, -np.arange(10.0)) == pytest.approx(-1)
    assert m.gini(values, np.zeros(10)) == pytest.approx(0)
    assert m.top_capture(values, np.arange(10.0)) == pytest.approx(1)
    assert m.top_capture(values, np.zeros(10)) == pytest.approx(0.1)
    # The best two rows hold 6 of 10; half of the next pair's 4 comes with a share of 3 rows.
    assert m.top_capture(array(4, 2, 3, 1), array(9, 8, 5, 5), 0.75) == pytest.approx(0.8)


def test_spearman_by_hand() -> None:
    assert m.spearman(array(1, 2, 3), array(10, 20, 15)) == pytest.approx(0.5)
    assert m.spearman(array(1, 2, 2, 3), array(1, 2, 2, 9)) == pytest.approx(1)


def test_precision_recall_and_f1_by_hand() -> None:
    got = m.precision_recall_f1(array(1, 1, 0, 0, 1), array(0.9, 0.2, 0.7, 0.1, 0.5))
    assert got == pytest.approx((2 / 3, 2 / 3, 2 / 3))
    assert m.precision_recall_f1(array(1, 1), array(0.1, 0.2)) == (0, 0, 0)


def test_the_bootstrap_of_a_model_against_itself_is_0_and_against_noise_is_not() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, 300).astype(float)
    good, noise = np.clip(labels * 0.6 + 0.2, 0, 1), random.random(300)
    same = m.paired_bootstrap(labels, good, good, 20)
    assert same["auc"] == same["logloss"] == {"mean": 0, "low": 0, "high": 0}
    better = m.paired_bootstrap(labels, good, noise, 50)
    assert better["auc"]["low"] > 0.3 and better["logloss"]["high"] < 0


def test_summaries_leave_out_what_has_no_meaning() -> None:
    users = np.array([0, 0, 1, 1])
    assert {"auc", "gauc", "normalised_entropy"} <= m.summarize_binary(array(1, 0, 1, 0), np.full(4, 0.5), users).keys()
    assert not {"auc", "gauc"} & m.summarize_binary(np.ones(4), np.full(4, 0.5), users).keys()
    assert "gauc" not in m.summarize_binary(array(1, 1, 0, 0), np.full(4, 0.5), users)
    assert m.summarize_value(array(-1, 2), array(0, 1)).keys() == {"rmse", "mae", "spearman"}
    assert m.summarize_value(array(1, 1), array(0, 1)).keys() == {"rmse", "mae"}
    assert m.summarize_value(array(1, 2), array(3, 3)).keys() == {"rmse", "mae", "gini", "top_decile"}


# Against loops

_rows = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 4), st.integers(0, 2)), min_size=1, max_size=12)


def pairs_auc(labels: np.ndarray, scores: np.ndarray) -> float:
    won = [
        1.0 if p > n else 0.5 if p == n else 0.0 for p, n in itertools.product(scores[labels == 1], scores[labels == 0])
    ]
    return float(np.mean(won))


@settings(max_examples=200, deadline=None)
@given(_rows)
def test_auc_and_gauc_count_pairs(rows: list[tuple[int, int, int]]) -> None:
    labels, scores, users = (np.array(column) for column in zip(*rows, strict=True))
    if 0 < labels.mean() < 1:
        assert m.auc(labels, scores) == pytest.approx(pairs_auc(labels, scores))
    mixed = [u for u in set(users) if 0 < labels[users == u].mean() < 1]
    if mixed:
        each = [pairs_auc(labels[users == u], scores[users == u]) for u in mixed]
        expected = np.average(each, weights=[np.sum(users == u) for u in mixed])
        assert m.gauc(labels, scores, users) == pytest.approx(expected)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=5), st.integers(1, 6))
def test_ndcg_is_the_mean_over_every_order_of_the_ties(rows: list[tuple[int, int]], k: int) -> None:
    gains, scores = (np.array(column, float) for column in zip(*rows, strict=True))
    if not gains.any():
        return
    orders = [o for o in itertools.permutations(range(len(rows))) if all(np.diff(scores[list(o)]) <= 0)]
    dcg = np.mean([sum(gains[i] / math.log2(place + 2) for place, i in enumerate(o[:k])) for o in orders])
    ideal = sum(gain / math.log2(place + 2) for place, gain in enumerate(sorted(gains, reverse=True)[:k]))
    assert m.ndcg(gains, scores, np.zeros(len(rows), int), k) == pytest.approx([dcg / ideal])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2)), min_size=2, max_size=5), st.integers(1, 4))
def test_capture_and_gini_are_means_over_every_order_of_the_ties(rows: list[tuple[int, int]], taken: int) -> None:
    values, scores = (np.array(column, float) for column in zip(*rows, strict=True))
    if np.ptp(values) == 0 or taken > len(rows):
        return
    orders = [list(o) for o in itertools.permutations(range(len(rows))) if all(np.diff(scores[list(o)]) <= 0)]
    capture = np.mean([values[o[:taken]].sum() for o in orders]) / values.sum()
    assert m.top_capture(values, scores, taken / len(rows)) == pytest.approx(capture)

    def area(order: list[int]) -> float:  # between the curve of cumulated value and the diagonal
        cumulated = np.cumsum(values[order]) / values.sum()
        return float(np.sum(cumulated - np.arange(1, len(rows) + 1) / len(rows)))

    best = area(list(np.argsort(-values)))
    assert m.gini(values, scores) == pytest.approx(np.mean([area(o) for o in orders]) / best)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), st.floats(0, 1)), min_size=1, max_size=30), st.integers(1, 20))
def test_calibration_bins_hold_every_row(rows: list[tuple[int, float]], bins: int) -> None:
    labels, p = (np.array(column, float) for column in zip(*rows, strict=True))
    curve = m.reliability(labels, p, bins)
    assert curve.rows.sum() == len(rows)
    assert np.sum(curve.observed * curve.rows) == pytest.approx(labels.sum())
    assert 0 <= m.ece(labels, p, bins) <= 1 + 1e-12


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=10))
def test_average_ranks_count_what_is_below(values: list[int]) -> None:
    expected = [sum(x < y for x in values) + (sum(x == y for x in values) + 1) / 2 for y in values]
    assert m.average_ranks(np.array(values)).tolist() == expected


# Refusals


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: m.auc(array(1, 1), array(0, 1)), "AUC needs positives and negatives; got {'positives': 2"),
        (lambda: m.auc(array(1, 2), array(0, 1)), "binary labels must be 0 or 1; got 2.0"),
        (lambda: m.auc(array(1, 0), array(0, math.nan)), "scores must be finite; got 'nan in row 1'"),
        (lambda: m.gauc(array(1, 0), array(0, 1), np.array([1, 2])), "a group with positives and negatives"),
        (lambda: m.logloss(array(1, 0), array(0, 1.5)), r"probabilities must lie in \[0, 1\]; got 1.5"),
        (lambda: m.logloss(array(), array()), "R >= 1"),
        (lambda: m.rmse(array(1), array(1, 2)), "one length"),
        (lambda: m.normalised_entropy(array(0, 0), array(0.1, 0.1)), "a base rate of 0"),
        (lambda: m.ndcg(array(0, 0), array(1, 2), np.array([0, 0]), 1), "a group with a gain above 0"),
        (lambda: m.ndcg(array(1, 0), array(1, 2), np.array([0, 0]), 0), "K of at least 1"),
        (lambda: m.gini(array(1, 1), array(1, 2)), "not all equal"),
        (lambda: m.top_capture(array(1, 0), array(1, 2), 0), r"a share in \(0, 1\]"),
        (lambda: m.spearman(array(1, 1), array(1, 2)), "two arrays that vary"),
    ],
)
def test_what_has_no_meaning_is_refused(call, message: str) -> None:
    with pytest.raises(DataError, match=message):
        call()
