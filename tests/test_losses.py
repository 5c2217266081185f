from __future__ import annotations

import math

import numpy as np
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfrec.models.losses import in_batch_loss, softmax_loss

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
