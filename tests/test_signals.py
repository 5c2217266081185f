"""Signals against plain Python, and evidence against the blend that it takes apart."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfrec.models.blend import Blend
from tfrec.models.ranking.signals import RETRIEVAL, Catalogue, evidence_of, scaled, signals
from tfrec.training.item_statistics import item_statistics

N = 5
VECTORS = np.concatenate([np.zeros((1, 2)), np.stack([np.cos(np.arange(N)), np.sin(np.arange(N))], 1)]).astype(
    np.float32
)
PRICES = np.array([np.nan, 1, 3, np.nan, 7, 0], np.float32)
CATEGORIES = np.array([[0, 0], [1, 2], [2, 0], [0, 0], [1, 0], [3, 0]], np.int32)
CATALOGUE = Catalogue(*(tf.constant(x) for x in (VECTORS, VECTORS, PRICES, CATEGORIES)))
items = st.lists(st.integers(1, N), max_size=8)


def plain(history: list[int], item: int) -> dict[str, float]:
    """The signals of one candidate."""
    ages = [len(history) - 1 - i for i, j in enumerate(history) if j == item]
    found = {"times": np.log1p(len(ages)), "fade_0": sum(0.8**a for a in ages), "fade_1": sum(0.98**a for a in ages)}
    found |= {"length": np.log1p(len(history)), "variety": len({*history}) / len(history) if history else 1.0}
    near = [float(VECTORS[item] @ VECTORS[j]) for j in history if j != item]
    last = float(VECTORS[item] @ VECTORS[history[-1]]) if history else 0.0
    for name in ("item", "text"):
        found |= {f"{name}_last": last, f"{name}_near": max(near, default=0.0)}
    known = [np.log1p(PRICES[j]) for j in history if np.isfinite(PRICES[j])]
    priced = bool(known) and np.isfinite(PRICES[item])
    found["price"] = float(np.log1p(PRICES[item]) - np.mean(known)) if priced else 0.0
    found["price_distance"] = abs(found["price"])
    own = {*CATEGORIES[item]} - {0}
    found["category"] = float(np.mean([bool(own & {*CATEGORIES[j]}) for j in history])) if history else 0.0
    return found


@settings(max_examples=40, deadline=None)
@given(history=items, padding=st.integers(0, 2), candidates=st.lists(st.integers(1, N), min_size=1, max_size=4))
def test_signals_are_what_plain_python_says(history: list[int], padding: int, candidates: list[int]) -> None:
    read = np.array([[0] * padding + history], np.int32)
    found = signals(
        {RETRIEVAL: tf.constant([[0.5] * len(candidates)])}, read, np.array([candidates], np.int32), CATALOGUE
    )
    wanted = [plain(history, item) | {RETRIEVAL: 0.5} for item in candidates]
    assert found.keys() == wanted[0].keys()
    for name, value in found.items():
        np.testing.assert_allclose(value[0], [row[name] for row in wanted], rtol=1e-4, atol=1e-5, err_msg=name)


def test_an_item_that_is_newer_than_prices_and_categories_has_none() -> None:
    vectors = np.concatenate([VECTORS, VECTORS[1:2]])
    catalogue = CATALOGUE._replace(vectors=tf.constant(vectors), texts=None)
    found = signals({}, np.array([[1, N + 1]], np.int32), np.array([[N + 1, 2]], np.int32), catalogue)
    assert float(found["price"][0, 0]) == 0 and float(found["category"][0, 0]) == 0
    assert float(found["price"][0, 1]) == pytest.approx(np.log(4 / 2))
    assert float(found["item_near"][0, 0]) == pytest.approx(1)


def test_rows_of_one_batch_do_not_see_one_another() -> None:
    both = signals({}, np.array([[0, 0, 4], [1, 2, 2]], np.int32), np.array([[1, 2], [2, 3]], np.int32), CATALOGUE)
    alone = signals({}, np.array([[1, 2, 2]], np.int32), np.array([[2, 3]], np.int32), CATALOGUE)
    for name, value in alone.items():
        np.testing.assert_allclose(both[name][1], value[0], rtol=1e-6, atol=1e-6)


def test_evidence_adds_up_to_the_blend() -> None:
    blend = Blend({"model": 0.6, "popularity": 0.3, "frequency": 0.1}, {"frequency": 0.9}, N)
    blend.build()
    blend.fill({}, None, np.log1p(np.arange(N + 1)).astype(np.float32))
    cosine, history = tf.constant([[0, 0.1, 0.5, -0.2, 0.3, 0.9]]), tf.constant([[0, 2, 5]])
    found = evidence_of(blend, cosine, history, None)
    assert [*found] == [RETRIEVAL, "cosine", "popularity", "frequency"]
    np.testing.assert_array_equal(found[RETRIEVAL], blend(cosine, history))
    np.testing.assert_array_equal(evidence_of(None, cosine, history, None)[RETRIEVAL], cosine)


def test_scaled_signals_are_named_as_no_feature_can_be() -> None:
    assert float(scaled({"times": tf.constant(3.0)}, {"times": (1.0, 4.0)})["signal.times"]) == 0.5


def test_item_statistics_count_the_past_alone() -> None:
    events = {
        "user": np.array([1, 1, 2, 2, 2]),
        "item": np.array([1, 1, 1, 2, 3]),
        "split": np.array([0, 0, 0, 0, 2]),
        "timestamp": np.array([0, 5, 5, 10, 99]),
    }
    found = item_statistics(events, 3, (0,))
    # Of two items with events each number is one deviation from the mean.
    np.testing.assert_allclose(found["stat.count"][1:3], [1, -1], atol=1e-6)
    np.testing.assert_allclose(found["stat.again"][1:3], [1, -1], atol=1e-6)
    np.testing.assert_allclose(found["stat.last"][1:3], [-1, 1], atol=1e-6)
    assert found["stat.count"][3] == found["stat.count"][0] < -1
    assert item_statistics({k: v for k, v in events.items() if k != "timestamp"}, 3, (0,)).keys() == {
        "stat.count",
        "stat.again",
    }
