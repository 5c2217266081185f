"""The blend at chosen items equals the blend of all."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfrec.artifact.blended import moments
from tfrec.models.blend import COMPONENTS, LINEAR, Blend
from tfrec.models.blend_at import BlendAt, Table, at, largest, sum_up

ITEMS, NEW, WIDTH = 12, 3, 4
RANDOM = np.random.default_rng(0)
VECTORS = RANDOM.normal(size=(ITEMS + NEW + 1, WIDTH)).astype(np.float32)
TEXTS = RANDOM.normal(size=(ITEMS + NEW + 1, 5)).astype(np.float32)
VECTORS[0] = TEXTS[0] = 0
LINEARS = RANDOM.normal(size=(2, ITEMS + 1, ITEMS + 1)).astype(np.float32)
LINEARS[:, 0] = LINEARS[:, :, 0] = 0
WEIGHTS = {"model": 0.4, "neighbours": 0.3, "transitions": 0.2, "text": 0.3, "popularity": 0.1, "frequency": 0.2}


def make(names: tuple[str, ...], neighbours: int) -> Blend:
    weights = {name: WEIGHTS[name] for name in names}
    blend = Blend(weights, dict.fromkeys(names, 0.8), ITEMS, neighbours, 5)
    blend.build()
    blend.fill(dict(zip(LINEAR, LINEARS, strict=True)), TEXTS[: ITEMS + 1], np.arange(ITEMS + 1, dtype=np.float32))
    return blend


def table(vectors: np.ndarray) -> Table:
    return Table(tf.constant(vectors), tf.constant(moments(vectors)))


_ALL = ("model", *COMPONENTS)
BLENDS = [make(names, m) for names in ((_ALL), *((name,) for name in _ALL)) for m in (ITEMS + 1, 3)]


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(BLENDS),
    st.sampled_from([0, NEW]),
    st.integers(0, 3),
    st.integers(0, 6),
    st.integers(0, 99),
)
def test_it_equals_the_blend_of_all_items(blend: Blend, new: int, rows: int, length: int, seed: int) -> None:
    random, size = np.random.default_rng(seed), ITEMS + new
    history = random.integers(0, size + 1, (rows, length)).astype(np.int32)
    query = random.normal(size=(rows, WIDTH)).astype(np.float32)
    items = np.tile(random.permutation(size).astype(np.int32) + 1, (rows, 1))
    own, texts = table(VECTORS[: size + 1]), table(TEXTS[: size + 1])
    dense = blend(query @ VECTORS[: size + 1].T, history, texts.vectors).numpy()
    some = BlendAt(blend)
    read = tf.constant(history)
    got = some.total(some.parts(tf.constant(query), read, tf.constant(items), some.sums(read), own, texts))
    np.testing.assert_allclose(got, np.take_along_axis(dense, items, axis=1), rtol=1e-4, atol=1e-5)


def test_sums_by_hand() -> None:
    sums = sum_up(tf.constant([[7, 2, 0, 7], [0, 0, 0, 0]]), tf.constant([[1.0, 2, 9, 3], [1, 1, 1, 1]]))
    np.testing.assert_allclose(at(sums, tf.constant([[7, 2, 5, 0, 8], [7, 2, 5, 0, 8]])), [[4, 2, 0, 0, 0], [0] * 5])
    assert largest(sums, tf.constant(3)).numpy().tolist() == [[7, 2, 0], [0, 0, 0]]


def test_moments_give_mean_and_deviation() -> None:
    query = np.array([0.3, -1, 2, 0.5])
    scores, (*covariance, mean) = VECTORS[1:] @ query, moments(VECTORS)
    assert mean @ query == pytest.approx(scores.mean(), rel=1e-5)
    assert query @ np.array(covariance) @ query == pytest.approx(scores.var(), rel=1e-5)
