"""The closed form equals autodiff of the plain loss, in value, gradient and under XLA."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfrec.models import blocked_softmax
from tfrec.models.blocked_softmax import LOWEST, Softmax, in_batch, in_batch_counted, over_catalogue

Arrays = dict[str, Any]


def problem(users: int, candidates: int, width: int = 4, seed: int = 0) -> Arrays:
    random = np.random.default_rng(seed)
    return {
        "users": tf.constant(random.normal(size=(users, width)), tf.float32),
        "candidates": tf.constant(random.normal(size=(candidates, width)), tf.float32),
        "labels": tf.constant(random.integers(0, candidates, users), tf.int32),
        "weights": tf.constant(random.integers(0, 3, users), tf.float32),
    }


def plain_losses(softmax: Softmax) -> tf.Tensor:
    """The definition, with the whole matrix."""
    logits = tf.matmul(softmax.users, softmax.candidates, transpose_b=True)
    unbiased, columns = logits, softmax.candidates.shape[0]
    one_hot = tf.one_hot(softmax.labels, columns)
    if softmax.bias is not None:
        logits += softmax.bias
    if softmax.hits is not None:
        logits = tf.where(softmax.hits[0][:, None] == softmax.hits[1][None], LOWEST, logits)
    if softmax.own_bias is not None:
        logits = tf.where(one_hot > 0, unbiased + softmax.own_bias[:, None], logits)
    valid = tf.cast(logits > LOWEST / 2, tf.float32)
    wanted = (1 - softmax.smoothing) * one_hot + softmax.smoothing * valid / tf.reduce_sum(valid, 1, keepdims=True)
    return tf.reduce_logsumexp(logits, axis=1) - tf.reduce_sum(wanted * tf.where(valid > 0, logits, 0.0), axis=1)


def gradients(function: Callable[[], tf.Tensor], *inputs: Any) -> list[np.ndarray]:
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        value = function()
    return [value.numpy(), *(tf.convert_to_tensor(g).numpy() for g in tape.gradient(value, inputs))]


def close(left: list[np.ndarray], right: list[np.ndarray]) -> None:
    for a, b in zip(left, right, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * max(np.abs(b).max(), 1.0))


@pytest.fixture(params=[2**20, 64], ids=["one block", "blocks"])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(blocked_softmax, "_BLOCK_ELEMENTS", request.param)
    monkeypatch.setattr(blocked_softmax, "_LEAST_ROWS", 3)
    return request.param


def variants(p: Arrays) -> dict[str, Callable[[tf.Tensor, tf.Tensor], Softmax]]:
    columns = p["candidates"].shape[0]
    bias = tf.constant(np.random.default_rng(1).normal(size=columns), tf.float32)
    masked = tf.where(tf.range(columns) % 5 == 2, LOWEST, bias)
    own = tf.gather(bias, p["labels"])
    hits = tf.gather(tf.range(columns) % 7, p["labels"]), tf.range(columns) % 7
    return {
        "plain": lambda u, v: Softmax(u, v, p["labels"]),
        "bias": lambda u, v: Softmax(u, v, p["labels"], bias),
        "mask": lambda u, v: Softmax(u, v, p["labels"], masked, own),
        "hits": lambda u, v: Softmax(u, v, p["labels"], masked, own, hits),
        "smooth": lambda u, v: Softmax(u, v, p["labels"], masked, own, hits, smoothing=0.2),
    }


@pytest.mark.parametrize("name", ["plain", "bias", "mask", "hits", "smooth"])
def test_values_and_gradients_equal_autodiff(block: int, name: str) -> None:
    p = problem(users=23, candidates=17)
    make = variants(p)[name]
    u, v, w = p["users"], p["candidates"], p["weights"]
    expected = gradients(lambda: tf.reduce_sum(w * plain_losses(make(u, v))), u, v)
    close(gradients(lambda: tf.reduce_sum(w * make(u, v).losses()), u, v), expected)
    close(gradients(lambda: make(u, v).weighted_sum(w), u, v), expected)
    np.testing.assert_allclose(make(u, v).losses(), plain_losses(make(u, v)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["plain", "smooth"])
def test_compiles_under_xla_with_equal_results(name: str) -> None:
    p = problem(users=24, candidates=17)
    make = variants(p)[name]

    def step(u: tf.Tensor, v: tf.Tensor, w: tf.Tensor) -> tuple[tf.Tensor, ...]:
        with tf.GradientTape(persistent=True) as tape:
            tape.watch([u, v])
            one, other = make(u, v).weighted_sum(w), tf.reduce_sum(w * make(u, v).losses())
        return one, *tape.gradient(one, [u, v]), other, *tape.gradient(other, [u, v])

    args = p["users"], p["candidates"], p["weights"]
    compiled = tf.function(step, jit_compile=True)(*args)
    close([x.numpy() for x in compiled], [x.numpy() for x in step(*args)])


def test_unknown_shapes_equal_known_ones(block: int) -> None:
    p = problem(users=23, candidates=17)
    spec = [tf.TensorSpec([None, 4]), tf.TensorSpec([None, 4]), tf.TensorSpec([None], tf.int32), tf.TensorSpec([None])]

    @tf.function(input_signature=spec)
    def step(u: tf.Tensor, v: tf.Tensor, labels: tf.Tensor, w: tf.Tensor) -> tuple[tf.Tensor, ...]:
        with tf.GradientTape() as tape:
            tape.watch([u, v])
            loss = Softmax(u, v, labels).weighted_sum(w)
        return loss, *tape.gradient(loss, [u, v])

    u, v, labels, w = p["users"], p["candidates"], p["labels"], p["weights"]
    expected = gradients(lambda: Softmax(u, v, labels).weighted_sum(w), u, v)
    close([x.numpy() for x in step(u, v, labels, w)], expected)


def test_the_gradient_is_scaled_by_what_comes_after() -> None:
    p = problem(users=6, candidates=5)
    u, v, w = p["users"], p["candidates"], p["weights"]
    once = gradients(lambda: Softmax(u, v, p["labels"]).weighted_sum(w), u, v)
    thrice = gradients(lambda: 3.0 * Softmax(u, v, p["labels"]).weighted_sum(w), u, v)
    close(thrice, [3.0 * x for x in once])


def test_two_candidates_by_hand() -> None:
    users, items = tf.constant([[1.0, 0.0]]), tf.constant([[9.0, 9.0], [1.0, 0.0], [0.0, 1.0]])
    loss = over_catalogue(users, items, tf.constant([1]), tf.constant(2.0)).losses()
    np.testing.assert_allclose(loss, [np.log(np.exp(2.0) + 1.0) - 2.0], rtol=1e-6)  # row 0 takes no part


def test_temperature_has_its_gradient() -> None:
    p = problem(users=9, candidates=7)
    t = tf.constant(1.7)
    targets = tf.maximum(p["labels"], 1)

    def plain() -> tf.Tensor:
        logits = t * tf.matmul(p["users"], p["candidates"][1:], transpose_b=True)
        return tf.reduce_sum(tf.nn.sparse_softmax_cross_entropy_with_logits(targets - 1, logits))

    close(
        gradients(lambda: tf.reduce_sum(over_catalogue(p["users"], p["candidates"], targets, t).losses()), t),
        gradients(plain, t),
    )


def test_in_batch_by_hand() -> None:
    """Candidates a, b, a, padding: the user of the first a meets only b, corrected by log q."""
    users, vectors = tf.constant([[1.0]]), tf.constant([[1.0], [2.0], [1.0], [50.0]])
    ids, q = tf.constant([7, 8, 7, 0]), tf.constant([0.5, 0.25, 0.5, 1.0])
    loss = in_batch(users, vectors, tf.constant([0]), ids, q, 1.0).losses()
    np.testing.assert_allclose(loss, [np.log(np.exp(1.0) / 0.5 + np.exp(2.0) / 0.25) - 1.0 - np.log(2.0)], rtol=1e-6)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=20), st.integers(0, 99))
def test_counted_candidates_equal_repeated_ones(drawn: list[int], seed: int) -> None:
    """Also where a target is padding, whose weight is 0."""
    random = np.random.default_rng(seed)
    table, ids = tf.constant(random.normal(size=(7, 3)), tf.float32), tf.constant(drawn, tf.int32)
    users, q = tf.constant(random.normal(size=(len(drawn), 3)), tf.float32), tf.constant(random.random(7), tf.float32)
    weights = tf.cast(ids > 0, tf.float32)
    labels = tf.range(len(drawn))
    counts = tf.math.unsorted_segment_sum(weights, ids, 7)

    def repeated() -> tf.Tensor:
        return in_batch(users, tf.gather(table, ids), labels, ids, tf.gather(q, ids), 1.5).weighted_sum(weights)

    close(
        gradients(lambda: in_batch_counted(users, table, ids, counts, q, 1.5).weighted_sum(weights), users, table),
        gradients(repeated, users, table),
    )


def test_counted_candidates_that_nobody_drew_are_no_negatives() -> None:
    users, table = tf.constant([[1.0]]), tf.constant([[3.0], [1.0], [40.0]])
    loss = in_batch_counted(users, table, tf.constant([1]), tf.constant([0.0, 2.0, 0.0]), tf.ones(3), 1.0).losses()
    np.testing.assert_allclose(loss, [0.0], atol=1e-6)


def test_a_probability_that_underflows_has_its_loss_and_gradient() -> None:
    users, candidates = tf.constant([[1.0]]), tf.constant([[0.0], [500.0]])
    loss, by_user = gradients(lambda: Softmax(users, candidates, tf.constant([0])).losses(), users)
    assert loss.tolist() == [500.0]
    assert by_user.tolist() == [[500.0]]


def test_a_user_of_weight_zero_takes_no_part() -> None:
    users = tf.constant([[1.0], [np.nan]])
    softmax = Softmax(users, tf.constant([[1.0], [1.0]]), tf.constant([0, 0]))
    np.testing.assert_allclose(softmax.weighted_sum(tf.constant([1.0, 0.0])), np.log(2.0), rtol=1e-6)


def test_no_matrix_of_users_by_candidates_is_ever_whole() -> None:
    """Of all tensors in the compiled graph, loop bodies included, the largest is a block."""
    p = problem(users=3000, candidates=2999)

    @tf.function
    def step(u: tf.Tensor, v: tf.Tensor) -> Any:
        with tf.GradientTape() as tape:
            tape.watch([u, v])
            loss = Softmax(u, v, p["labels"]).weighted_sum(p["weights"])
        return tape.gradient(loss, [u, v])

    graph = step.get_concrete_function(p["users"], p["candidates"]).graph
    graphs = [graph, *(function.graph for function in graph._functions.values() if hasattr(function, "graph"))]
    sizes = [
        output.shape.num_elements()
        for one in graphs
        for operation in one.get_operations()
        for output in operation.outputs
        if output.shape.is_fully_defined()
    ]
    assert 2999 * 300 < max(sizes) <= 2**20


def test_a_wrong_label_is_refused() -> None:
    p = problem(users=2, candidates=3)
    with pytest.raises(tf.errors.InvalidArgumentError):
        Softmax(p["users"], p["candidates"], tf.constant([0, 3])).losses()
