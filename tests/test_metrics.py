from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfrec.errors import DataError
from tfrec.evaluation import metrics
from tfrec.evaluation.ranks import Ranks


def of(*queries: Sequence[float], top: Sequence[Sequence[int]] | None = None, n_items: int = 100) -> Ranks:
    offsets = np.concatenate([[0], np.cumsum([len(q) for q in queries])]).astype(np.int64)
    lists = np.zeros((len(queries), 0)) if top is None else np.array(top)
    return Ranks(np.array([r for q in queries for r in q], np.float64), offsets, lists.astype(np.int32), n_items)


def test_one_target_by_hand():
    ranks = of([0], [2], [9], [10])
    assert metrics.hr(ranks, 10).tolist() == [1, 1, 1, 0]
    assert metrics.recall(ranks, 10).tolist() == [1, 1, 1, 0]
    assert metrics.mrr(ranks, 10).tolist() == [1, 1 / 3, 1 / 10, 0]
    assert metrics.map_(ranks, 10).tolist() == [1, 1 / 3, 1 / 10, 0]
    assert metrics.ndcg(ranks, 10) == pytest.approx([1, 0.5, 1 / math.log2(11), 0])


def test_a_basket_by_hand():
    # Targets at positions 1, 3 and 6; of three, two are in the first five.
    ranks = of([5, 0, 2])
    assert metrics.hr(ranks, 5).tolist() == [1]
    assert metrics.recall(ranks, 5) == pytest.approx([2 / 3])
    assert metrics.mrr(ranks, 5).tolist() == [1]
    assert metrics.map_(ranks, 5) == pytest.approx([(1 + 2 / 3) / 3])
    ideal = 1 + 1 / math.log2(3) + 1 / 2
    assert metrics.ndcg(ranks, 5) == pytest.approx([(1 + 1 / 2) / ideal])


def test_a_basket_larger_than_k_can_be_perfect():
    ranks = of([0, 1, 2, 3])
    assert metrics.ndcg(ranks, 2) == pytest.approx([1])
    assert metrics.map_(ranks, 2) == pytest.approx([1])
    assert metrics.recall(ranks, 2) == pytest.approx([0.5])


def test_targets_that_tie_cannot_share_a_position():
    ranks = of([1, 1, 1])  # three targets tie at positions 0 to 2
    assert metrics.recall(ranks, 2) == pytest.approx([2 / 3])
    assert metrics.map_(ranks, 2) == pytest.approx([(1 / 2 + 2 / 2) / 2])


def naive(queries: Sequence[Sequence[int]], k: int) -> dict[str, list[float]]:
    """The twin: walks each list of K positions."""
    out: dict[str, list[float]] = {name: [] for name in ("hr", "recall", "mrr", "map", "ndcg")}
    for query in queries:
        hits, precision, dcg, first = 0, 0.0, 0.0, 0.0
        for place in range(k):
            if place in query:
                hits += 1
                precision += hits / (place + 1)
                dcg += 1 / math.log2(place + 2)
                first = first or 1 / (place + 1)
        most = min(k, len(query))
        out["hr"].append(float(hits > 0))
        out["recall"].append(hits / len(query))
        out["mrr"].append(first)
        out["map"].append(precision / most)
        out["ndcg"].append(dcg / sum(1 / math.log2(place + 2) for place in range(most)))
    return out


baskets = st.lists(st.lists(st.integers(0, 12), unique=True, min_size=1, max_size=8), min_size=1, max_size=6)


@settings(max_examples=200, deadline=None)
@given(baskets, st.integers(1, 14))
def test_metrics_equal_a_walk_over_the_list(queries, k):
    found = metrics.per_query(of(*queries), [k])
    for name, values in naive(queries, k).items():
        assert found[f"{name}@{k}"] == pytest.approx(values), name


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.integers(-2, 2), min_size=1, max_size=8), min_size=1, max_size=5), st.integers(1, 9))
def test_metrics_stay_within_0_and_1_when_scores_tie(scores, k):
    # Every item is a target, so ranks among them are as tied as they can be.
    ranks = of(*[[sum(x > y for x in q) + (sum(x == y for x in q) - 1) / 2 for y in q] for q in scores])
    for name, values in metrics.per_query(ranks, [k]).items():
        assert values.min() >= 0, name
        assert values.max() <= 1 + 1e-12, name


@settings(max_examples=100, deadline=None)
@given(baskets)
def test_metrics_grow_with_k_except_the_normalised_ones(queries):
    found = metrics.per_query(of(*queries), [1, 5, 10])
    for name in ("hr", "recall", "mrr"):
        assert (found[f"{name}@1"] <= found[f"{name}@5"]).all()
        assert (found[f"{name}@5"] <= found[f"{name}@10"]).all()


def test_coverage_counts_distinct_items_without_padding():
    ranks = of([0], [1], top=[[1, 2, 0], [2, 3, 4]], n_items=8)
    assert metrics.coverage(ranks, 3) == 4 / 8
    assert metrics.coverage(ranks, 1) == 2 / 8


def test_novelty_is_mean_self_information():
    counts = np.array([0, 1, 0, 2, 4])  # item 2 counts as one event: shares 1/8, 1/8, 1/4, 1/2
    assert metrics.novelty(of([0], top=[[4, 3]]), 2, counts) == pytest.approx((1 + 2) / 2)
    assert metrics.novelty(of([0], top=[[2, 0]]), 2, counts) == pytest.approx(3)


def test_summary_has_every_metric_as_a_plain_number():
    counts = np.array([0, 4, 2, 1, 1])
    summary = metrics.summarize(of([0], [3], top=[[1, 2], [2, 3]], n_items=4), [1, 2], counts)
    names = ("hr", "ndcg", "mrr", "recall", "map", "coverage", "novelty")
    assert set(summary) == {f"{name}@{k}" for name in names for k in (1, 2)}
    assert all(type(value) is float for value in summary.values())
    assert summary["hr@2"] == 0.5
    assert summary["coverage@1"] == 0.5


def test_a_summary_of_nothing_is_refused():
    with pytest.raises(DataError, match="at least one query"):
        metrics.summarize(of(), [10], np.ones(5))


def test_top_lists_shorter_than_k_are_refused():
    with pytest.raises(DataError, match="at least 3 items; got 2"):
        metrics.coverage(of([0], top=[[1, 2]]), 3)


def test_k_below_1_is_refused():
    with pytest.raises(DataError, match="K must be at least 1; got 0"):
        metrics.per_query(of([0]), [0])
