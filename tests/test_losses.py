from __future__ import annotations

import math

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfrec.errors import TrainingError
from tfrec.models.losses import gbce_loss, in_batch_loss, sampled_softmax_loss, softmax_loss

E1, E2 = [1.0, 0.0], [0.0, 1.0]


def softmax_twin(users: np.ndarray, items: np.ndarray, targets: np.ndarray, temperature: float) -> list[float]:
    losses = []
    for user, target in zip(users, targets, strict=True):
        logits = [temperature * float(user @ item) for item in items]
        losses.append(math.log(sum(math.exp(x) for x in logits[1:])) - logits[target])
    return losses


def in_batch_twin(users, candidates, labels, ids, q, temperature) -> list[float]:
    losses = []
    for user, label in zip(users, labels, strict=True):
        others = [
            n
            for n in range(len(ids))
            if n == label or (ids[n] != 0 and ids[n] != ids[label])  # neither padding nor an accidental hit
        ]
        logits = {n: temperature * float(user @ candidates[n]) - math.log(max(q[n], 1e-6)) for n in others}
        losses.append(math.log(sum(math.exp(x) for x in logits.values())) - logits[label])
    return losses


def test_softmax_by_hand() -> None:
    items = tf.constant([[9.0, 9.0], E1, E2, [0.0, 0.0]])  # row 0 is no item
    losses = softmax_loss(tf.constant([E1, E1]), items, tf.constant([1, 2]), tf.constant(2.0))
    total = math.log(math.exp(2) + 2)
    np.testing.assert_allclose(losses, [total - 2, total], rtol=1e-6)


def test_row_0_is_never_a_negative() -> None:
    users, targets, temperature = tf.constant([E1]), tf.constant([2]), tf.constant(5.0)
    one = softmax_loss(users, tf.constant([[0.0, 0.0], E1, E2]), targets, temperature)
    other = softmax_loss(users, tf.constant([[50.0, 0.0], E1, E2]), targets, temperature)
    np.testing.assert_array_equal(one, other)


def test_in_batch_by_hand() -> None:
    # User 0's item 7 comes twice: the other one is no negative. The last candidate is padding.
    users = tf.constant([E1, E2, E1, E1])
    candidates = tf.constant([E1, E2, E1, [9.0, 9.0]])
    losses = in_batch_loss(
        users,
        candidates,
        tf.range(4),
        tf.constant([7, 8, 7, 0]),
        tf.constant([0.5, 0.25, 0.5, 1.0]),
        tf.constant(3.0),
    )
    mine, negative = math.exp(3) / 0.5, math.exp(0) / 0.25
    first = math.log((mine + negative) / mine)
    own, twice = math.exp(3) / 0.25, 2 * math.exp(0) / 0.5
    np.testing.assert_allclose(losses[:3], [first, math.log((own + twice) / own), first], rtol=1e-5)


def test_in_batch_without_correction_is_the_softmax_of_the_batch() -> None:
    users, items = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)
    losses = in_batch_loss(users, items, tf.range(5), tf.range(1, 6), tf.ones(5), tf.constant(1.5))
    table = np.concatenate([np.zeros((1, 3), np.float32), items])
    np.testing.assert_allclose(losses, softmax_twin(users, table, np.arange(1, 6), 1.5), rtol=1e-5)


def test_gradients_stay_finite_when_everything_is_padding() -> None:
    users = tf.Variable(np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32))
    with tf.GradientTape() as tape:
        losses = in_batch_loss(users, users, tf.range(3), tf.zeros(3, tf.int32), tf.zeros(3), tf.constant(1.0))
        loss = tf.reduce_sum(tf.where(tf.zeros(3, tf.bool), losses, 0.0))
    assert np.all(tape.gradient(loss, users).numpy() == 0)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 6), st.integers(1, 8), st.sampled_from([0.5, 4.0, 20.0]))
def test_losses_equal_brute_force(seed: int, rows: int, candidates: int, temperature: float) -> None:
    random = np.random.default_rng(seed)
    users = random.normal(size=(rows, 3)).astype(np.float32) / 2
    vectors = random.normal(size=(candidates, 3)).astype(np.float32) / 2
    labels = random.integers(0, candidates, rows).astype(np.int32)
    ids = random.integers(0, 4, candidates).astype(np.int32)
    ids[labels] = np.maximum(ids[labels], 1)
    q = random.choice([0.0, 1e-3, 0.2, 1.0], candidates).astype(np.float32)
    got = in_batch_loss(users, vectors, labels, ids, q, tf.constant(temperature))
    np.testing.assert_allclose(got, in_batch_twin(users, vectors, labels, ids, q, temperature), rtol=1e-3, atol=1e-4)
    table = np.concatenate([np.zeros((1, 3), np.float32), vectors])
    got = softmax_loss(users, table, labels + 1, tf.constant(temperature))
    np.testing.assert_allclose(got, softmax_twin(users, table, labels + 1, temperature), rtol=1e-3, atol=1e-4)


def test_hard_negatives_are_the_highest_and_the_positive_stays() -> None:
    users = tf.constant([E1])
    candidates = tf.constant([[0.1, 0.0], [0.9, 0.0], [0.5, 0.0], [0.7, 0.0]])
    ids, q = tf.constant([1, 2, 3, 4]), tf.ones([4])
    loss = in_batch_loss(users, candidates, tf.constant([0]), ids, q, tf.constant(1.0), hard_negatives=2)
    np.testing.assert_allclose(loss, [math.log(sum(map(math.exp, (0.1, 0.9, 0.7)))) - 0.1], rtol=1e-6)


def test_all_negatives_as_hard_ones_are_the_whole_batch() -> None:
    random = np.random.default_rng(0)
    vectors = [tf.constant(random.normal(size=(5, 3)), tf.float32) for _ in range(2)]
    given = *vectors, tf.range(5), tf.constant([1, 2, 2, 3, 4]), tf.ones([5]) / 5, tf.constant(2.0)
    np.testing.assert_allclose(in_batch_loss(*given, hard_negatives=4), in_batch_loss(*given), rtol=1e-5)


def test_sampled_softmax_by_hand() -> None:
    """Twice as likely to be drawn is half the weight; a negative that is the target adds nothing."""
    loss = sampled_softmax_loss(
        tf.constant([1.0]), tf.constant([[2.0, -1e9, 0.5]]), tf.constant([0.5]), tf.constant([0.25, 0.5, 0.1])
    )
    own, others = math.exp(1.0) / 0.5, math.exp(2.0) / 0.25 + math.exp(0.5) / 0.1
    np.testing.assert_allclose(loss, [math.log((own + others) / own)], rtol=1e-6)


def test_sampled_softmax_of_every_other_item_is_the_softmax() -> None:
    logits = tf.constant([0.3, -1.0, 2.0, 0.7])
    loss = sampled_softmax_loss(logits[:1], logits[None, 1:], tf.constant([0.25]), tf.fill([3], 0.25))
    expected = tf.nn.sparse_softmax_cross_entropy_with_logits([0], logits[None])
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


@pytest.mark.parametrize(("corrected", "still"), [(True, True), (False, False)])
def test_sampled_softmax_is_least_at_the_chances_of_items(corrected: bool, still: bool) -> None:
    """With the correction, and only with it, popular negatives do not bend the logits that are learned."""
    chances, q = np.array([0.5, 0.3, 0.2]), np.array([0.7, 0.2, 0.1])
    logits = tf.constant(np.log(chances), tf.float32)
    given = tf.constant(q if corrected else np.ones(3) / 3, tf.float32)
    pairs = [(t, n) for t in range(3) for n in range(3) if n != t]
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = sum(
            chances[t] * q[n] * sampled_softmax_loss(logits[t : t + 1], logits[None, n : n + 1], *_at(given, t, n))
            for t, n in pairs
        )
    slope = tape.gradient(loss, logits).numpy()
    assert (np.abs(slope).max() < 1e-7) == still, slope


def _at(values: tf.Tensor, target: int, negative: int) -> tuple[tf.Tensor, tf.Tensor]:
    return values[target : target + 1], values[negative : negative + 1]


def test_gbce_by_hand() -> None:
    """N = 101 and K = 10 give α = 0.1; t = 0.75 gives β = 0.1 (0.75 (1 − 10) + 10) = 0.325."""
    loss = gbce_loss(tf.constant([2.0]), tf.zeros([1, 10]), 101, 0.75)
    np.testing.assert_allclose(loss, [(0.325 * np.log(1 + np.exp(-2.0)) + 10 * np.log(2.0)) / 11], rtol=1e-6)


@pytest.mark.parametrize(("calibration", "count", "beta"), [(0.0, 10, 1.0), (1.0, 10, 0.1), (1.0, 100, 1.0)])
def test_gbce_spans_from_binary_cross_entropy_to_the_sampling_rate(calibration: float, count: int, beta: float) -> None:
    loss = gbce_loss(tf.constant([-1.0]), tf.fill([1, count], -1e9), 101, calibration)
    np.testing.assert_allclose(loss, [beta * np.log(1 + np.e) / (count + 1)], rtol=1e-5)


def test_calibrated_gbce_is_least_at_the_softmax_probability() -> None:
    """One user context whose items have chances p: with t = 1 the best logits are σ(s) = p (theorem of the paper)."""
    chances, items, count = np.array([0.6, 0.3, 0.1]), 3, 2
    negative = tf.constant(np.array([[1, 2], [0, 2], [0, 1]]))  # all others: K = N − 1, α = 1
    logits = tf.Variable(tf.zeros(3))
    for _ in range(400):
        with tf.GradientTape() as tape:
            losses = gbce_loss(logits[:], tf.gather(logits, negative), items, 1.0)
            loss = tf.reduce_sum(tf.constant(chances, tf.float32) * losses) * (count + 1)
        logits.assign_sub(2.0 * tf.convert_to_tensor(tape.gradient(loss, logits)))
    np.testing.assert_allclose(tf.sigmoid(logits), chances, atol=1e-3)


@pytest.mark.parametrize("count", [0, 101])
def test_gbce_refuses_what_its_formula_does_not_cover(count: int) -> None:
    with pytest.raises(TrainingError, match=f"gbce must draw 1 to 100 negatives from a catalogue of 101; got {count}"):
        gbce_loss(tf.zeros([1]), tf.zeros([1, count]), 101, 0.5)
