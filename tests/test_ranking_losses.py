"""Losses of rankers against numbers made by hand and against definitions written as loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfrec.models import ranking_losses as losses

LOG2, LOG4 = math.log(2), math.log(4)


def floats(*values: object) -> tf.Tensor:
    return tf.constant(values, tf.float32)


def test_cross_entropy_by_hand() -> None:
    logits, labels = floats(0, 0, math.log(3), math.log(3)), floats(1, 0, 1, 0)
    np.testing.assert_allclose(losses.bce(logits, labels), [LOG2, LOG2, math.log(4 / 3), LOG4], rtol=1e-6)
    np.testing.assert_allclose(losses.bce(logits, labels, 3)[:2], [3 * LOG2, LOG2], rtol=1e-6)


def test_the_gradient_of_cross_entropy_at_0_is_a_half() -> None:
    logits = tf.Variable([0.0, 0.0])
    with tf.GradientTape() as tape:
        loss = losses.bce(logits, floats(0, 1))
    np.testing.assert_allclose(tape.gradient(loss, logits), [0.5, -0.5])


def test_focal_by_hand_and_without_focus_it_is_cross_entropy() -> None:
    logits, labels = floats(0, math.log(3), math.log(3)), floats(1, 1, 0)
    expected = [LOG2 / 4, math.log(4 / 3) / 16, LOG4 * 9 / 16]
    np.testing.assert_allclose(losses.focal(logits, labels, 2), expected, rtol=1e-6)
    np.testing.assert_allclose(losses.focal(logits, labels, 0), losses.bce(logits, labels), rtol=1e-6)


def test_bpr_by_hand() -> None:
    logits, labels = floats([math.log(3), 0, 0], [1, 2, 3]), floats([1, 0, 0], [1, 1, 1])
    np.testing.assert_allclose(losses.bpr(logits, labels), [math.log(4 / 3), 0], rtol=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(-5, 5), st.booleans()), min_size=1, max_size=6))
def test_bpr_is_the_mean_over_pairs(row: list[tuple[float, bool]]) -> None:
    pairs = [math.log1p(math.exp(y - x)) for x, good in row if good for y, other in row if not other]
    logits, labels = floats([x for x, _ in row]), floats([float(good) for _, good in row])
    assert float(losses.bpr(logits, labels)[0]) == pytest.approx(np.mean(pairs) if pairs else 0, rel=1e-4)


def test_listwise_by_hand() -> None:
    logits, labels = floats([math.log(2), 0, 0], [0, 0, 0], [0, 0, 0]), floats([1, 0, 0], [1, 1, 0], [0, 0, 0])
    np.testing.assert_allclose(losses.listwise(logits, labels), [LOG2, math.log(3), 0], rtol=1e-6)


def test_squared_difference() -> None:
    np.testing.assert_allclose(losses.mse(floats(1, 2), floats(3, 2)), [4, 0])


def ziln_by_hand(logit: float, mean: float, raw: float, value: float) -> float:
    p, scale = 1 / (1 + math.exp(-logit)), max(math.log1p(math.exp(raw)), 1e-3)
    if value == 0:
        return -math.log(1 - p)
    density = math.exp(-((math.log(value) - mean) ** 2) / (2 * scale**2)) / (value * scale * math.sqrt(2 * math.pi))
    return -math.log(p) - math.log(density)


@settings(max_examples=60, deadline=None)
@given(st.floats(-4, 4), st.floats(-2, 2), st.floats(-1, 3), st.one_of(st.just(0.0), st.floats(0.1, 50)))
def test_ziln_is_minus_the_log_of_the_density(logit: float, mean: float, raw: float, value: float) -> None:
    got = float(losses.ziln(floats([logit, mean, raw]), floats(value))[0])
    assert got == pytest.approx(ziln_by_hand(logit, mean, raw, value), rel=1e-3, abs=1e-4)


def test_the_mean_of_ziln_is_that_of_samples_and_does_not_overflow() -> None:
    random = np.random.default_rng(0)
    outputs = floats([0.5, 1.0, 0.2])
    scale = math.log1p(math.exp(0.2))
    paid = random.random(400_000) < 1 / (1 + math.exp(-0.5))
    samples = paid * random.lognormal(1.0, scale, 400_000)
    assert float(losses.ziln_mean(outputs)[0]) == pytest.approx(samples.mean(), rel=0.02)
    assert np.isfinite(losses.ziln_mean(floats([0, 1e9, 1e9]))).all()


def test_gradients_of_ziln_are_finite_without_payment() -> None:
    outputs = tf.Variable([[0.0, 3.0, -20.0]])
    with tf.GradientTape() as tape:
        loss = losses.ziln(outputs, floats(0.0))
    np.testing.assert_allclose(tape.gradient(loss, outputs), [[0.5, 0, 0]])


def test_survival_by_hand() -> None:
    hazards = floats([0, math.log(3), 0])  # hazards 1/2, 3/4, 1/2
    hazards = tf.tile(hazards, [4, 1])
    period, observed = tf.constant([0, 1, 1, 2]), tf.constant([True, True, False, False])
    stayed = [0.5, 0.5 * 0.75, 0.5 * 0.25, 0.5 * 0.25 * 0.5]
    np.testing.assert_allclose(losses.survival(hazards, period, observed), -np.log(stayed), rtol=1e-6)


def test_nothing_is_known_of_who_was_lost_in_the_first_period() -> None:
    np.testing.assert_array_equal(losses.survival(floats([1, 2]), tf.constant([-1]), tf.constant([False])), [0])


def test_retention_by_hand() -> None:
    hazards = floats([0, math.log(3), 0])  # hazards 1/2, 3/4, 1/2
    got = [float(losses.retention(hazards, horizon)[0]) for horizon in (1, 2, 3)]
    np.testing.assert_allclose(got, [0.5, 0.5 * 0.25, 0.5 * 0.25 * 0.5], rtol=1e-6)


def test_uncertainties_by_hand() -> None:
    got = losses.uncertainty_weighted(floats([8.0, 3.0], [1.0, 1.0]), floats(LOG4, 0.0))
    np.testing.assert_allclose(got, [8 / 4 + 3 + LOG2, 1 / 4 + 1 + LOG2], rtol=1e-6)
