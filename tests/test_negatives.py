"""Negatives are drawn with the chances that their papers state, and accidental hits are gone."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfrec.errors import TrainingError
from tfrec.models import negatives
from tfrec.models.blocked_softmax import in_batch

DRAWS = 40_000


def frequencies(drawn: tf.Tensor, items: int) -> np.ndarray:
    return np.bincount(np.ravel(drawn), minlength=items + 1) / np.size(drawn)


def near(found: np.ndarray, expected: np.ndarray) -> None:
    """Within five standard deviations of the expected frequency."""
    assert (np.abs(found - expected) <= 5 * np.sqrt(np.maximum(expected, 1e-9) / DRAWS)).all(), found


def test_uniform_draws_every_item_alike_and_never_padding() -> None:
    drawn = negatives.uniform([200, DRAWS // 200], 4, (1, 2))
    assert drawn.shape == (200, 200)
    assert drawn.dtype == tf.int32
    near(frequencies(drawn, 4), np.array([0, 0.25, 0.25, 0.25, 0.25]))


@pytest.mark.parametrize(("power", "expected"), [(1.0, [0, 0.1, 0, 0.9, 0]), (0.5, [0, 0.25, 0, 0.75, 0])])
def test_popular_items_are_drawn_by_a_power_of_their_counts(power: float, expected: list[float]) -> None:
    """Counts 1 and 9; row 0's own count and items that nobody took do not matter."""
    counts = tf.constant([50.0, 1.0, 0.0, 9.0, 0.0])
    near(frequencies(negatives.by_popularity([DRAWS], counts, (3, 4), power), 4), np.array(expected))
    np.testing.assert_allclose(negatives.popularity_share(counts, power), expected, rtol=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=8).filter(any), st.integers(0, 1000))
def test_only_items_with_a_count_are_drawn(counts: list[int], seed: int) -> None:
    drawn = negatives.by_popularity([100], tf.constant([0, *counts], tf.float32), (seed, 0)).numpy()
    assert {counts[item - 1] > 0 for item in drawn} == {True}


def test_equal_seeds_draw_equal_items() -> None:
    draws = [negatives.uniform([50], 1000, seed).numpy().tolist() for seed in [(1, 1), (1, 1), (1, 2)]]
    assert draws[0] == draws[1] != draws[2]


def test_mixed_probabilities_by_hand() -> None:
    """Two of the batch and six uniform of 4 items: q = (2 p + 6 / 4) / 8."""
    share = tf.constant([0.0, 0.5, 0.25, 0.25, 0.0])
    ids, q = negatives.mixed(tf.constant([1, 2]), share, 6, (1, 2))
    assert ids.shape == (8,)
    assert ids.numpy()[:2].tolist() == [1, 2]
    by_item = np.array([np.nan, 2.5 / 8, 2.0 / 8, 2.0 / 8, 1.5 / 8])
    np.testing.assert_allclose(q, by_item[ids.numpy()], rtol=1e-6)


def test_mixed_probabilities_are_the_frequencies_of_the_mixture() -> None:
    share = tf.constant([0.0, 0.7, 0.2, 0.1, 0.0])
    batch = negatives.by_popularity([DRAWS // 4], share, (5, 6))
    ids, q = negatives.mixed(batch, share, DRAWS - DRAWS // 4, (7, 8))
    expected = np.zeros(5)
    expected[ids.numpy()] = q.numpy()
    assert abs(expected.sum() - 1) < 1e-6
    near(frequencies(ids, 4), expected)


def test_mixed_candidates_of_items_that_no_batch_holds_are_negatives() -> None:
    """An item without any interaction is pushed away: in-batch negatives alone never do that."""
    share, table = tf.constant([0.0, 1.0, 0.0]), tf.constant([[0.0], [1.0], [0.5]])
    ids, q = negatives.mixed(tf.constant([1]), share, 8, (1, 2))
    assert 2 in ids.numpy()
    with tf.GradientTape() as tape:
        tape.watch(table)
        loss = in_batch(tf.ones([1, 1]), tf.gather(table, ids), tf.constant([0]), ids, q, 1.0).losses()
    slope = tf.convert_to_tensor(tape.gradient(loss, table)).numpy()[:, 0]
    assert slope[2] > 0 > slope[1]


def test_targets_and_padding_among_negatives_are_lowered() -> None:
    logits = tf.constant([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    shared = negatives.remove_hits(logits, tf.constant([7, 0, 8]), tf.constant([8, 9]))
    np.testing.assert_array_equal(shared, [[1.0, -1e9, -1e9], [4.0, -1e9, 6.0]])
    own = negatives.remove_hits(logits, tf.constant([[8, 7, 7], [8, 9, 9]]), tf.constant([8, 9]))
    np.testing.assert_array_equal(own, [[-1e9, 2.0, 3.0], [4.0, -1e9, -1e9]])


def test_the_hardest_are_the_best_scored_that_are_not_the_target() -> None:
    logits = tf.constant([[0.1, 0.9, 0.5, 0.7], [0.4, 0.3, 0.2, 0.1]])
    columns, values = negatives.hardest(logits, tf.constant([1, 2, 3, 2]), tf.constant([2, 9]), 2)
    assert columns.numpy().tolist() == [[2, 0], [0, 1]]
    np.testing.assert_allclose(values, [[0.5, 0.1], [0.4, 0.3]])


def test_missing_hard_negatives_add_nothing_to_a_loss() -> None:
    _, values = negatives.hardest(tf.constant([[3.0, 1.0]]), tf.constant([5, 6]), tf.constant([5]), 2)
    assert values.numpy().tolist() == [[1.0, -1e9]]
    loss = negatives.gbce_loss(tf.constant([0.0]), values, 101, 0.0)
    np.testing.assert_allclose(loss, [(np.log(2.0) + np.log(1 + np.e)) / 3], rtol=1e-6)


def test_gbce_by_hand() -> None:
    """N = 101 and K = 10 give α = 0.1; t = 0.75 gives β = 0.1 (0.75 (1 − 10) + 10) = 0.325."""
    loss = negatives.gbce_loss(tf.constant([2.0]), tf.zeros([1, 10]), 101, 0.75)
    expected = (0.325 * np.log(1 + np.exp(-2.0)) + 10 * np.log(2.0)) / 11
    np.testing.assert_allclose(loss, [expected], rtol=1e-6)


@pytest.mark.parametrize(("calibration", "count", "beta"), [(0.0, 10, 1.0), (1.0, 10, 0.1), (1.0, 100, 1.0)])
def test_gbce_spans_from_binary_cross_entropy_to_the_sampling_rate(calibration: float, count: int, beta: float) -> None:
    loss = negatives.gbce_loss(tf.constant([-1.0]), tf.fill([1, count], -1e9), 101, calibration)
    np.testing.assert_allclose(loss, [beta * np.log(1 + np.e) / (count + 1)], rtol=1e-5)


def test_calibrated_gbce_is_least_at_the_softmax_probability() -> None:
    """One user context whose items have chances p: with t = 1 the best logits are σ(s) = p (theorem of the paper)."""
    chances, items, count = np.array([0.6, 0.3, 0.1]), 3, 2
    negative = tf.constant(np.array([[1, 2], [0, 2], [0, 1]]))  # all others: K = N − 1, α = 1
    logits = tf.Variable(tf.zeros(3))
    for _ in range(400):
        with tf.GradientTape() as tape:
            losses = negatives.gbce_loss(logits[:], tf.gather(logits, negative), items, 1.0)
            loss = tf.reduce_sum(tf.constant(chances, tf.float32) * losses) * (count + 1)
        logits.assign_sub(2.0 * tf.convert_to_tensor(tape.gradient(loss, logits)))
    np.testing.assert_allclose(tf.sigmoid(logits), chances, atol=1e-3)


@pytest.mark.parametrize(("count", "calibration"), [(0, 0.5), (101, 0.5), (10, 1.5), (10, -0.1)])
def test_gbce_refuses_what_its_formula_does_not_cover(count: int, calibration: float) -> None:
    with pytest.raises(TrainingError):
        negatives.gbce_loss(tf.zeros([1]), tf.zeros([1, count]), 101, calibration)


def test_more_hard_negatives_than_candidates_are_refused() -> None:
    with pytest.raises(TrainingError, match="at most the candidates; got 3"):
        negatives.hardest(tf.zeros([1, 2]), tf.constant([1, 2]), tf.constant([3]), 3)
