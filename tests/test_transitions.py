"""The linear next-basket model against its definition, position by position."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfrec.evaluation.ragged import Ragged
from tfrec.training.transitions import Transitions

ITEMS = 5


def by_definition(train: Ragged, baskets: np.ndarray, decay: float, ridge: float, window: int) -> np.ndarray:
    values, offsets = train
    sources, targets = [], []
    for low, high in pairwise(offsets[1:]):
        firsts = [i for i in range(low, high) if i == low or baskets[i] != baskets[i - 1]]
        for first in firsts[1:]:
            source, target = np.zeros(ITEMS + 1), np.zeros(ITEMS + 1)
            for place in range(max(low, first - window), first):
                weight = decay ** (first - 1 - place)
                source[values[place]] += weight if weight >= 1e-3 else 0
            for place in range(first, high):
                if baskets[place] != baskets[first]:
                    break
                target[values[place]] += 1
            sources.append(source)
            targets.append(target)
    s, t = (np.array(rows).reshape(-1, ITEMS + 1) for rows in (sources, targets))
    gram = s.T @ s
    weights = np.linalg.solve(gram + (ridge * np.diag(gram).mean() + 1e-6) * np.eye(ITEMS + 1), s.T @ t)
    weights[0] = weights[:, 0] = 0
    return weights


@st.composite
def histories(draw: st.DrawFn) -> tuple[Ragged, np.ndarray]:
    lists = draw(st.lists(st.lists(st.lists(st.integers(1, ITEMS), min_size=1, max_size=4), max_size=5), max_size=4))
    baskets = [(user, number) for user, rows in enumerate(lists) for number, row in enumerate(rows) for _ in row]
    values = [item for rows in lists for row in rows for item in row]
    sizes = [sum(len(row) for row in rows) for rows in lists]
    offsets = np.concatenate([[0, 0], np.cumsum(sizes)]).astype(np.int64)
    numbers = np.array([user * 100 + number for user, number in baskets], np.int64)
    return (np.array(values, np.int32), offsets), numbers


@settings(deadline=None, max_examples=60)
@given(histories(), st.sampled_from([0.3, 0.9, 1.0]), st.sampled_from([0.1, 3.0]), st.integers(1, 12))
def test_weights_equal_the_definition(
    world: tuple[Ragged, np.ndarray], decay: float, ridge: float, window: int
) -> None:
    train, baskets = world
    got = Transitions(train, baskets, ITEMS, window).fit(decay, ridge)
    np.testing.assert_allclose(got, by_definition(train, baskets, decay, ridge, window), rtol=2e-3, atol=2e-3)


def test_an_event_of_a_small_weight_is_left_out() -> None:
    values = np.array([2, 1, 1, 1, 1, 1, 1, 1], np.int32)
    train, baskets = (values, np.array([0, 0, 8])), np.array([0, 0, 0, 0, 1, 1, 1, 2])
    got = Transitions(train, baskets, ITEMS, 7).fit(0.3, 0.1)
    np.testing.assert_allclose(got, by_definition(train, baskets, 0.3, 0.1, 7), rtol=1e-4, atol=1e-5)


def test_long_histories_are_summed_in_blocks() -> None:
    random = np.random.default_rng(0)
    values = random.integers(1, ITEMS + 1, 700).astype(np.int32)
    train, baskets = (values, np.array([0, 0, 700])), np.arange(700) // 3
    got = Transitions(train, baskets, ITEMS, 50).fit(0.95, 1.0)
    np.testing.assert_allclose(got, by_definition(train, baskets, 0.95, 1.0, 50), rtol=1e-3, atol=1e-3)


def test_order_tells_and_repetition_is_learnt() -> None:
    """1 leads to 2 and never back; 3 is bought again and again."""
    lists = [[1, 2]] * 30 + [[3, 3, 3]] * 30
    values = np.array([item for row in lists for item in row], np.int32)
    offsets = np.concatenate([[0, 0], np.cumsum([len(row) for row in lists])])
    weights = Transitions((values, offsets), np.arange(len(values)), ITEMS, 10).fit(0.5, 0.1)
    assert weights[1, 2] > 0.5 and abs(weights[2, 1]) < 1e-3
    assert weights[3, 3] > 0.5 and weights[1, 1] < 1e-3


@pytest.mark.parametrize("values", [[], [2]])
def test_without_a_second_basket_there_is_nothing_to_say(values: list[int]) -> None:
    train = np.array(values, np.int32), np.array([0, 0, len(values)])
    assert not Transitions(train, np.arange(len(values)), ITEMS, 10).fit(0.9, 1.0).any()
