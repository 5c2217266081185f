"""Fields of packed rows are the products of the rounded vectors, whatever the vectors."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfrec.artifact.packing import LONGEST, NONE, NOTHING, WIDTH, fields, length, pack, rounded, scale


def fields_of(query: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Fields [Q, W, 3] as the graph has them."""
    products = tf.matmul(rounded(tf.constant(query), length(query.shape[1])), tf.constant(rows), transpose_b=True)
    return np.stack([field.numpy() for field in fields(products)], axis=-1)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 70), st.sampled_from([1e-3, 1.0, 50.0]), st.booleans(), st.integers(0, 99))
def test_fields_are_products_of_whole_numbers(count: int, width: int, size: float, longer: bool, seed: int) -> None:
    random = np.random.default_rng(seed)
    vectors = (random.normal(size=(count, width)) * size).astype(np.float32)
    vectors[0] = 0
    if longer:
        vectors[-1] *= 100
    chosen = random.integers(0, count, (7, WIDTH))
    query = np.concatenate([vectors[:3], -vectors[-1:], random.normal(size=(2, width)).astype(np.float32)])
    whole = np.rint(vectors * np.float32(scale(vectors))).astype(np.int64)
    asked = rounded(tf.constant(query), length(query.shape[1])).numpy().astype(np.int64)
    assert (np.linalg.norm(whole, axis=1) <= LONGEST).all() and (np.linalg.norm(asked, axis=1) <= LONGEST).all()
    got = fields_of(query, pack(vectors, chosen))
    np.testing.assert_array_equal(got, 512 + np.einsum("qd,wjd->qwj", asked, whole[chosen]))
    assert got.min() > NONE


@pytest.mark.parametrize("width", [1, 204, 384, 511, 2000])
@pytest.mark.parametrize("sign", [1, -1])
def test_vectors_in_one_direction_do_not_reach_the_next_field(width: int, sign: int) -> None:
    """At width 204 each coordinate, 1.58, would be rounded up: the whole would be too long, and is cut instead."""
    vectors = np.ones((2, width), np.float32)
    got = fields_of(sign * vectors[:1], pack(vectors, np.array([[0, 1, 0]])))[0, 0]
    asked = rounded(tf.constant(vectors[:1]), length(width)).numpy()
    whole = np.rint(vectors[0] * np.float32(scale(vectors)))
    assert (got == 512 + sign * int((asked[0] * whole).sum())).all()
    assert np.linalg.norm(asked) <= LONGEST and 1 <= got.min() <= got.max() <= 1023


@pytest.mark.parametrize("width", [64, 384])
def test_rounding_moves_products_of_unit_vectors_little(width: int) -> None:
    random = np.random.default_rng(0)
    vectors = random.normal(size=(3000, width)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    query = vectors[:200] * 7
    whole = rounded(tf.constant(query), length(query.shape[1])).numpy()
    shrunk = np.linalg.norm(whole, axis=1) < length(width) - 1
    assert shrunk.mean() < 0.1  # so few are cut
    got = (fields_of(query, pack(vectors, np.arange(3000).reshape(-1, 3))) - 512) / (length(width) * scale(vectors))
    error = (got.reshape(200, -1) - query @ vectors.T / 7)[~shrunk]
    error[query[~shrunk] @ vectors.T > 6.9] = 0  # a vector with itself has two equal errors
    assert np.abs(error).max() < 0.12 and error.std() < 0.023


def test_products_of_nothing_are_below_all_others() -> None:
    assert [int(field) for field in fields(tf.constant(NOTHING))] == [NONE] * WIDTH
    assert (
        fields_of(np.zeros((1, 5), np.float32), pack(np.ones((3, 5), np.float32), np.array([[0, 1, 2]]))).min() == 512
    )
