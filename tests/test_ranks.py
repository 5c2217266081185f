from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ragged_lists import holdout, lists

from tfrec.errors import DataError, TfrecError
from tfrec.evaluation import ragged, ranks
from tfrec.evaluation.ranks import Holdout, rank

N = 6


def scorer(scores: np.ndarray):
    return lambda rows: scores[rows]


def by_sorting(scores: np.ndarray, targets: Sequence[int], masked: Sequence[int]) -> list[float]:
    """The twin: sort the whole catalogue and take the middle of the target's ties."""
    allowed = [i for i in range(1, scores.shape[0]) if i not in masked or i in targets]
    ordered = sorted((float(scores[i]) for i in allowed), reverse=True)
    return [float(np.mean([p for p, s in enumerate(ordered) if s == scores[t]])) for t in targets]


@st.composite
def worlds(draw):
    queries, n = draw(st.integers(1, 5)), draw(st.integers(1, 9))
    items = st.lists(st.integers(1, n), unique=True)
    targets = [draw(st.lists(st.integers(1, n), unique=True, min_size=1)) for _ in range(queries)]
    mask = [draw(items) for _ in range(queries)]
    row = st.lists(st.integers(-3, 3), min_size=n + 1, max_size=n + 1)  # few values, many ties
    return np.array([draw(row) for _ in range(queries)], np.float32), targets, mask


def test_rank_by_hand():
    scores = np.array([[99, 1, 5, 3, 5, 0, 2]], np.float32)
    assert rank(scorer(scores), holdout([[3]]), N).values.tolist() == [2]
    assert rank(scorer(scores), holdout([[2]]), N).values.tolist() == [0.5]  # shares the first two positions
    assert rank(scorer(scores), holdout([[3]], [[2]]), N).values.tolist() == [1]


def test_the_target_is_never_masked():
    scores = np.array([[0, 1, 5, 3, 4, 0, 2]], np.float32)
    ranks = rank(scorer(scores), holdout([[3]], [[2, 3, 4]]), N, top=3)
    assert ranks.values.tolist() == [0]
    assert ranks.top.tolist() == [[3, 6, 1]]


def test_targets_of_a_basket_compete():
    scores = np.array([[0, 6, 5, 4, 3, 2, 1]], np.float32)
    assert rank(scorer(scores), holdout([[1, 2, 4]]), N).values.tolist() == [0, 1, 3]


def test_top_is_best_first_and_padded_when_few_may_rank():
    scores = np.array([[9, 1, 5, 3, 5, 0, 2]], np.float32)
    assert rank(scorer(scores), holdout([[3]], [[1, 5, 6]]), N, top=5).top.tolist() == [[2, 4, 3, 0, 0]]
    assert rank(scorer(scores), holdout([[3]]), N, top=20).top.tolist() == [[2, 4, 3, 6, 1, 5] + [0] * 14]


@settings(max_examples=200, deadline=None)
@given(worlds(), st.integers(1, 4))
def test_counting_equals_sorting(world, batch):
    scores, targets, mask = world
    expected = [by_sorting(s, t, m) for s, t, m in zip(scores, targets, mask, strict=True)]
    ranks = rank(scorer(scores), holdout(targets, mask), scores.shape[1] - 1, batch=batch)
    assert ranks.values.tolist() == [value for query in expected for value in query]


@settings(max_examples=100, deadline=None)
@given(worlds(), st.randoms(use_true_random=False))
def test_item_numbers_do_not_matter(world, random):
    scores, targets, mask = world
    n = scores.shape[1] - 1
    new = np.array([0, *random.sample(range(1, n + 1), n)])
    renamed = np.empty_like(scores)
    renamed[:, new] = scores
    moved = holdout([list(new[t]) for t in targets], [[int(new[i]) for i in m] for m in mask])
    before = rank(scorer(scores), holdout(targets, mask), n)
    assert rank(scorer(renamed), moved, n).values.tolist() == before.values.tolist()


@settings(max_examples=100, deadline=None)
@given(worlds(), st.integers(-4, 4))
def test_one_more_item_never_improves_a_target_and_costs_one_place_at_most(world, score):
    scores, targets, mask = world
    n = scores.shape[1] - 1
    before = rank(scorer(scores), holdout(targets, mask), n).values
    more = np.concatenate([scores, np.full((len(scores), 1), score, np.float32)], axis=1)
    lost = rank(scorer(more), holdout(targets, mask), n + 1).values - before
    target = np.concatenate([s[t] for s, t in zip(scores, targets, strict=True)])
    assert lost.tolist() == [1.0 if score > s else 0.5 if score == s else 0.0 for s in target]


def test_scores_of_the_scorer_stay_as_they_were():
    scores = np.array([[9, 1, 5, 3, 5, 0, 2]], np.float32)
    before = scores.copy()
    rank(lambda rows: scores, holdout([[3]], [[2, 4]]), N)
    assert (scores == before).all()


def test_take_keeps_the_queries_asked_for():
    whole = holdout([[1], [2, 3], [4]], [[5], [], [6, 1]])
    part = whole.take(np.array([2, 1]))
    assert part.users.tolist() == [3, 2]
    assert part.targets[0].tolist() == [4, 2, 3]
    assert part.mask[1].tolist() == [0, 2, 2]


def test_ages_count_back_from_the_last():
    assert ragged.ages(lists([7, 8, 9], [], [5])).tolist() == [2, 1, 0, 0]


def test_great_finite_scores_are_not_taken_for_infinite_ones():
    scores = np.array([[0, 3e38, 1e38, 2e38, -3e38, 1, 2]], np.float32)  # their squares overflow
    assert rank(scorer(scores), holdout([[3]]), N).values.tolist() == [1]


def test_parts_and_blocks_do_not_matter(monkeypatch):
    random = np.random.default_rng(0)
    n, queries = 2100, 40  # more words than one byte can count
    scores = random.integers(0, 9, (queries, n + 1)).astype(np.float32)
    asked = holdout([[q + 1] for q in range(queries)], [[1, 1, 2, n]] * queries)
    whole = rank(scorer(scores), asked, n)
    assert whole.values.tolist() == [by_sorting(s, [q + 1], [1, 2, n])[0] for q, s in enumerate(scores)]
    monkeypatch.setattr(ranks, "_CACHE_FLOATS", 3 * (n + 1))
    parts = rank(scorer(scores), asked, n, batch=16)
    np.testing.assert_array_equal(parts.values, whole.values)
    np.testing.assert_array_equal(parts.top, whole.top)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_name_their_query(bad):
    scores = np.zeros((3, N + 1), np.float32)
    scores[2, 4] = bad
    with pytest.raises(TfrecError, match=r"finite; got '.*item 4 in query 2'"):
        rank(scorer(scores), holdout([[1], [2], [3]]), N, batch=1)


def test_column_0_may_hold_anything():
    scores = np.array([[np.nan, 1, 5, 3, 4, 0, 2]], np.float32)
    assert rank(scorer(scores), holdout([[2]]), N).values.tolist() == [0]


def test_scores_of_a_wrong_shape_are_refused():
    with pytest.raises(TfrecError, match=r"shape \(1, 7\)"):
        rank(lambda rows: np.zeros((len(rows), N)), holdout([[1]]), N)


@pytest.mark.parametrize("target", [0, N + 1, -1])
def test_a_target_outside_the_catalogue_is_refused(target):
    with pytest.raises(DataError, match=f"targets must be items 1..6; got '{target} in query 1'"):
        rank(scorer(np.zeros((2, N + 1))), holdout([[1], [target]]), N)


def test_a_query_without_target_is_refused():
    with pytest.raises(DataError, match="none for query 1"):
        holdout([[1], [], [2]])


def test_a_target_given_twice_is_refused():
    with pytest.raises(DataError, match="twice in query 1"):
        holdout([[1, 2], [3, 4, 3]])


def test_lists_that_do_not_fit_are_refused():
    one = lists([1])
    with pytest.raises(DataError, match="mask must have one list per user"):
        Holdout(np.array([1], np.int32), one, one, lists([1], [2]))
    with pytest.raises(DataError, match="offsets of history must rise"):
        Holdout(np.array([1], np.int32), (np.array([1, 2]), np.array([0, 1])), one, one)
