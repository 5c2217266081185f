"""Neighbours by co-occurrence in bounded memory, and weights chosen on a sample of a large catalogue."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ragged_lists import holdout as make_holdout
from ragged_lists import lists

from tfrec.evaluation.ranks import Holdout, rank
from tfrec.training import blending, sampled
from tfrec.training import neighbours as module
from tfrec.training.neighbours import neighbours
from tfrec.training.sampled import Sample, recency

ITEMS = 9


def cosines(rows: list[list[int]], shrink: float) -> np.ndarray:
    users = np.zeros((len(rows), ITEMS + 1))
    for row, items in zip(users, rows, strict=True):
        row[items] = 1
    users[:, 0] = 0
    both, counts = users.T @ users, users.sum(axis=0)
    weights = both / np.maximum(np.sqrt(np.outer(counts, counts)) + shrink, 1e-9)
    np.fill_diagonal(weights, 0)
    return weights


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, ITEMS), max_size=6), max_size=8), st.integers(1, 10), st.sampled_from([0.0, 2.5]),
    st.sampled_from([1, 7, 2**22]),
)  # fmt: skip
def test_they_are_the_largest_cosines(users: list[list[int]], count: int, shrink: float, block: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_PAIRS", block)
        ids, values = neighbours(lists(*users), ITEMS, count, shrink)
    expected = cosines(users, shrink)
    np.testing.assert_allclose(values, -np.sort(-np.pad(expected, [(0, 0), (0, 9)]), axis=1)[:, :count], rtol=1e-6)
    there = values > 0
    np.testing.assert_allclose(np.take_along_axis(expected, ids, axis=1)[there], values[there], rtol=1e-6)
    assert np.all(ids[~there] == 0)


def test_of_a_long_list_the_last_items_count() -> None:
    ids, _ = neighbours(lists([1, 2, 3, 4]), ITEMS, 3, 0.0, most=2)
    assert ids[1].tolist() == [0, 0, 0] and ids[3].tolist() == [4, 0, 0]


def test_a_sample_has_the_scores_of_its_items() -> None:
    random = np.random.default_rng(0)
    history = random.integers(0, ITEMS + 1, (4, 5)).astype(np.int32)
    holdout = make_holdout([[3], [3, 5], [1], [9]], mask=[[1, 2, 4], [], [7], [8]])
    sample = Sample(holdout, ITEMS, 6)
    assert {1, 3, 5, 9} < set(sample.items.tolist()) and len(sample.items) == 7
    scores, vectors = random.normal(size=(4, ITEMS + 1)), random.normal(size=(ITEMS + 1, 3))
    np.testing.assert_array_equal(sample.scores(lambda rows: scores[rows], np.arange(4)), scores[:, sample.items])
    weights = recency(history, 0.7, distinct=True)
    np.testing.assert_allclose(
        blending.profile(history, 0.7, ITEMS, distinct=True)[:, 1:],
        np.stack([np.bincount(*pair, minlength=ITEMS + 1) for pair in zip(history, weights, strict=True)])[:, 1:],
        rtol=1e-6,
    )
    near = neighbours(lists([1, 2, 3], [2, 3, 5], [1, 9, 5]), ITEMS, ITEMS, 1.0)
    dense = np.zeros((ITEMS + 1, ITEMS + 1))
    np.put_along_axis(dense, near.ids, near.values, axis=1)
    profile = blending.profile(history, 0.7, ITEMS, distinct=True)
    vectors[0] = 0
    for got, wanted in (
        (sample.linear(history, weights, near), profile @ dense),
        (sample.text(history, weights, vectors), profile @ vectors @ vectors.T),
    ):
        np.testing.assert_allclose(got[:, 1:], wanted[:, sample.items[1:]], rtol=1e-5, atol=1e-6)
    mapped = sample.holdout(holdout)
    np.testing.assert_array_equal(sample.items[mapped.targets[0]], holdout.targets[0])
    assert set(sample.items[mapped.mask[0]]) == {1, 2, 4, 7, 8} & set(sample.items.tolist())


def test_recency_counts_repeats_where_they_are_wanted() -> None:
    history = np.array([[0, 4, 2, 4]])
    np.testing.assert_allclose(recency(history, 0.5, distinct=False), [[0, 0.25, 0.5, 1]])
    np.testing.assert_allclose(recency(history, 0.5, distinct=True), [[0, 0, 0.5, 1]])


def test_a_large_catalogue_is_blended_with_its_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next item is one that users of the history's last have too; the model says nothing."""
    monkeypatch.setattr(blending, "MOST_ITEMS", 60)
    monkeypatch.setattr(sampled, "_FLOATS", 500)
    random = np.random.default_rng(2)
    items, users = 120, 300
    starts = random.integers(0, items // 3, users) * 3 + 1
    bought = np.stack([starts, starts + 1, starts + 2], axis=1)
    ends = np.arange(users + 1)
    train = bought.ravel().astype(np.int32), np.concatenate([[0, 0], 3 * ends[1:]])
    history = np.pad(bought[:, :2], [(0, 0), (2, 0)]).astype(np.int32)
    before = bought[:, :2].ravel().astype(np.int32), 2 * ends
    valid = Holdout(ends[1:].astype(np.int32), before, (bought[:, 2].astype(np.int32), ends), before)
    sources = blending.Sources(("neighbours", "transitions", "frequency", "popularity"), items, None, 10)
    noise = random.normal(size=(users, items + 1)).astype(np.float32)
    lists_ = blending.Lists(train, np.arange(len(train[0])))
    chosen = blending.choose(lambda rows: noise[rows], valid, history, lists_, sources)
    assert chosen["neighbours"]["weight"] > 3 * chosen.get("model", {"weight": 0.0})["weight"]
    assert "shrink" in chosen["neighbours"]
    blend = sources.make(chosen, lists_)
    better = rank(blending.blended(lambda rows: noise[rows], blend, history), valid, items)
    assert better.values.mean() < 2
