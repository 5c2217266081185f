"""Negatives are drawn with the chances that their papers state, and accidental hits are gone."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfrec.models.negatives import Negatives, alias_table, mixed_chances, remove_hits

DRAWS = 40_000


def clock(epoch: int, step: int) -> tf.Tensor:
    return tf.constant([epoch, step], tf.int64)


def near(found: np.ndarray, expected: np.ndarray) -> None:
    """Within five standard deviations of the expected frequency."""
    assert (np.abs(found - expected) <= 5 * np.sqrt(np.maximum(expected, 1e-9) / DRAWS)).all(), found


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([1, 1, 1, 1, 1], [0, 0.25, 0.25, 0.25, 0.25]),
        ([50, 1, 0, 9, 0], [0, 0.1, 0, 0.9, 0]),  # row 0's own count does not matter
        ([0, 7], [0, 1]),
    ],
)
def test_items_are_drawn_as_often_as_they_count(counts: list[int], expected: list[float]) -> None:
    negatives = Negatives(DRAWS, np.array(counts), 3)
    np.testing.assert_allclose(negatives.chances, expected, rtol=1e-6)
    drawn = negatives.draw(clock(0, 0))
    assert (drawn.shape, drawn.dtype) == ((DRAWS,), tf.int32)
    near(np.bincount(drawn, minlength=len(counts)) / DRAWS, np.array(expected))


def test_an_alias_table_by_hand() -> None:
    """Weights 1, 2, 3 of 6: places of 1/3 each. The first keeps 1/2 and gives the rest to the third."""
    keep, alias = alias_table(np.array([1.0, 2.0, 3.0]))
    np.testing.assert_allclose(keep, [0.5, 1.0, 1.0])
    assert alias.tolist() == [2, 1, 2]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([0, 1, 2, 3, 10, 12345]), min_size=1, max_size=40).filter(any))
def test_an_alias_table_holds_the_chances_exactly(weights: list[int]) -> None:
    keep, alias = alias_table(np.array(weights, np.float64))
    chances = keep.copy()
    np.add.at(chances, alias, 1 - keep)
    np.testing.assert_allclose(chances / len(weights), np.array(weights) / sum(weights), atol=1e-12)
    assert keep.min() >= 0 and keep.max() <= 1


def test_a_draw_is_a_function_of_seed_epoch_and_step() -> None:
    keys = [(1, 0, 0), (2, 0, 0), (1, 1, 0), (1, 0, 1), (1, 2**20, 2**33)]
    draws = [Negatives(50, np.ones(1001), seed).draw(clock(epoch, step)).numpy().tolist() for seed, epoch, step in keys]
    again = [Negatives(50, np.ones(1001), seed).draw(clock(epoch, step)).numpy().tolist() for seed, epoch, step in keys]
    assert draws == again
    assert len({tuple(draw) for draw in draws}) == len(keys)


def test_xla_draws_the_same_items() -> None:
    negatives = Negatives(200, np.random.default_rng(0).integers(0, 9, 501), 5)
    compiled = tf.function(negatives.draw, jit_compile=True)
    np.testing.assert_array_equal(compiled(clock(3, 4)), negatives.draw(clock(3, 4)))


def test_mixed_chances_by_hand() -> None:
    """Two targets of the batch and six uniform ones of 4 items: q = (2 p + 6 / 4) / 8."""
    q = mixed_chances(tf.constant([0.5, 0.25, 0.0]), tf.constant(2.0), tf.constant([0.25, 0.25, 0.25]), 6)
    np.testing.assert_allclose(q, [2.5 / 8, 2.0 / 8, 1.5 / 8], rtol=1e-6)


def test_mixed_chances_are_the_frequencies_of_the_mixture() -> None:
    targets = Negatives(DRAWS // 4, np.array([0, 7, 2, 1, 0]), 5)
    uniform = Negatives(DRAWS - DRAWS // 4, np.ones(5), 6)
    drawn = np.concatenate([targets.draw(clock(0, 0)), uniform.draw(clock(0, 1))])
    expected = mixed_chances(targets.chances, tf.constant(float(targets.number)), uniform.chances, uniform.number)
    near(np.bincount(drawn, minlength=5) / DRAWS, expected.numpy())


def test_targets_among_negatives_are_lowered() -> None:
    logits = tf.constant([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]])
    lowered = remove_hits(logits, tf.constant([7, 5, 7]), tf.constant([7, 9, 5]))
    np.testing.assert_array_equal(lowered, [[-1e9, 2.0, -1e9], [4.0, 5.0, 6.0], [7.0, -1e9, 9.0]])
