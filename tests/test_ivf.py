"""The inverted file in the graph against a scan in plain numpy."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfrec.artifact.buckets import SURE, build, reaches, remove
from tfrec.artifact.ivf import IVF, among
from tfrec.artifact.stored import LOWEST, Storage

ITEMS, WIDTH, SIZE = 300, 6, 8


def whole_numbers(rows: int, seed: int) -> np.ndarray:
    """Vectors whose products are exact in float32, and in bfloat16 but for the sums."""
    return np.random.default_rng(seed).integers(-5, 6, (rows, WIDTH)).astype(np.float32)


def table() -> np.ndarray:
    rows = whole_numbers(ITEMS + 1, 0)
    rows[0] = 0
    return rows


BUCKETS = build(table(), np.arange(1, ITEMS + 1, dtype=np.int32), SIZE)
STORAGES: tuple[Storage, ...] = ("packed", "float32", "bfloat16")
INDEXES = {storage: IVF(tf.Variable(table()), BUCKETS, storage) for storage in STORAGES}
ALL = tf.constant(10_000)


def scan(query: np.ndarray, dropped: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """Scores [B, N+1] of every item; the lowest float32 where it may not be returned."""
    scores = query @ table().T
    scores[:, ~allowed] = LOWEST
    np.put_along_axis(scores, dropped, LOWEST, axis=1)
    scores[:, 0] = LOWEST
    return scores


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(list(INDEXES)), st.integers(0, 4), st.integers(0, 40), st.integers(1, 320), st.integers(0, 3),
    st.integers(0, 9),
)  # fmt: skip
def test_all_buckets_are_a_scan(storage: Storage, rows: int, excluded: int, count: int, odd: int, seed: int) -> None:
    query = whole_numbers(rows, seed + 1)
    dropped = np.random.default_rng(seed).integers(0, ITEMS + 1, (rows, excluded)).astype(np.int32)
    allowed = np.arange(ITEMS + 1) % 4 >= odd
    expected = scan(query, dropped, allowed)

    def may(items: tf.Tensor) -> tf.Tensor:
        return tf.gather(tf.constant(allowed), items)

    found, items = INDEXES[storage].search(
        tf.constant(query), tf.constant(dropped), tf.constant(count), ALL, may if odd else None
    )
    wanted = -np.sort(-expected, axis=1)[:, :count]
    wide = min(found.shape[1], wanted.shape[1])
    np.testing.assert_array_equal(found[:, :wide], wanted[:, :wide])
    assert np.all(found[:, wide:] == LOWEST) and np.all(wanted[:, wide:] == LOWEST)
    for row, (scores, chosen) in enumerate(zip(found.numpy(), items.numpy(), strict=True)):
        there = chosen[scores > LOWEST]
        assert len(set(there.tolist())) == len(there)
        np.testing.assert_array_equal(expected[row, there], scores[scores > LOWEST])
        assert np.all(chosen[scores == LOWEST] == 0)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 40), st.integers(0, 9))
def test_more_buckets_never_find_worse(nprobe: int, seed: int) -> None:
    query, nothing = tf.constant(whole_numbers(3, seed)), tf.zeros([3, 0], tf.int32)
    few, more = (
        INDEXES["float32"].search(query, nothing, tf.constant(5), tf.constant(n))[0] for n in (nprobe, nprobe + 1)
    )
    assert np.all(few <= more)


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("nprobe", [1, 3, 6, 12, 30, 999])
def test_near_buckets_are_looked_into(nprobe: int, rows: int) -> None:
    index, query, count = INDEXES["float32"], whole_numbers(rows, 3), len(BUCKETS.centroids)
    _, items = index.search(tf.constant(query), tf.zeros([rows, 0], tf.int32), tf.constant(ITEMS), tf.constant(nprobe))
    reach = reaches(BUCKETS.centroids, BUCKETS.centroids)[min(nprobe, count) - 1]
    products = query @ BUCKETS.centroids.T
    for row, found, norm in zip(products, items.numpy(), np.linalg.norm(query, axis=1), strict=True):
        near = np.flatnonzero(row >= np.sort(row)[-min(nprobe, SURE)] - reach * norm)
        assert len(near) >= min(nprobe, SURE) and (nprobe < count or len(near) == count)
        assert sorted(found[found > 0].tolist()) == sorted(BUCKETS.items[np.isin(BUCKETS.labels, near)].tolist())


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("rows", [1, 3])
def test_a_query_of_zeros_looks_into_as_many_buckets_as_told(storage: Storage, rows: int) -> None:
    query, nothing = np.zeros((rows, WIDTH), np.float32), tf.zeros([rows, 0], tf.int32)
    for nprobe in (1, 7, 999):
        found, items = INDEXES[storage].search(tf.constant(query), nothing, tf.constant(ITEMS), tf.constant(nprobe))
        wanted = BUCKETS.items[BUCKETS.labels < nprobe]
        for row, scores in zip(items.numpy(), found.numpy(), strict=True):
            assert sorted(row[row > 0].tolist()) == sorted(wanted.tolist()) and not scores[row > 0].any()


@pytest.mark.parametrize("storage", list(INDEXES))
def test_a_query_alone_is_answered_as_among_others(storage: Storage) -> None:
    query, dropped = whole_numbers(4, 7), np.arange(8, dtype=np.int32).reshape(4, 2)
    together = INDEXES[storage].search(tf.constant(query), tf.constant(dropped), tf.constant(9), tf.constant(5))
    for row in range(4):
        alone = INDEXES[storage].search(
            tf.constant(query[row : row + 1]), tf.constant(dropped[row : row + 1]), tf.constant(9), tf.constant(5)
        )
        np.testing.assert_array_equal(alone[0][0], together[0][row, : alone[0].shape[1]])


@pytest.mark.parametrize("storage", STORAGES)
def test_a_query_that_finds_empty_buckets_gets_nothing(storage: Storage) -> None:
    rows, items = table(), np.arange(1, ITEMS + 1, dtype=np.int32)
    before = build(rows, items, SIZE)
    query = whole_numbers(1, 0)
    far = before.items[before.labels == (query @ before.centroids.T).argmin()]
    left = remove(before, np.setdiff1d(items, far))
    index = IVF(tf.Variable(rows), left, storage)
    for count in (1, 3):
        asked, nothing = tf.constant(np.tile(query, (count, 1))), tf.zeros([count, 0], tf.int32)
        found, chosen = index.search(asked, nothing, tf.constant(5), tf.constant(3))
        assert not np.any(chosen) and np.all(found == LOWEST)


@pytest.mark.parametrize("storage", STORAGES)
def test_recall_rises_to_one(storage: Storage) -> None:
    random = np.random.default_rng(0)
    centres = random.normal(size=(20, 16))
    points = centres[random.integers(0, 20, 2050)] + random.normal(size=(2050, 16))
    points = (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)
    rows, query = np.concatenate([np.zeros((1, 16), np.float32), points[50:]]), points[:50]
    index = IVF(tf.Variable(rows), build(rows, np.arange(1, 2001, dtype=np.int32), 32), storage)
    best = np.argsort(-(query @ rows[1:].T), axis=1)[:, :20] + 1
    recall = []
    for nprobe in (2, 8, 24, 1000):
        _, items = index.search(tf.constant(query), tf.zeros([50, 0], tf.int32), tf.constant(20), tf.constant(nprobe))
        recall.append(np.mean([len(np.intersect1d(*pair)) / 20 for pair in zip(items.numpy(), best, strict=True)]))
    assert recall == sorted(recall)
    assert recall[0] < 0.8 and recall[1] > 0.7 and recall[2] > 0.95 and recall[3] == 1


@pytest.mark.parametrize(("storage", "dtype"), [("packed", tf.int32), ("bfloat16", tf.bfloat16)])
def test_what_is_rounded_returns_exact_scores(storage: Storage, dtype: tf.DType) -> None:
    random = np.random.default_rng(0)
    rows = random.normal(size=(501, 16)).astype(np.float32)
    rows[0] = 0
    index = IVF(tf.Variable(rows), build(rows, np.arange(1, 501, dtype=np.int32), 16), storage)
    query = random.normal(size=(4, 16)).astype(np.float32)
    found, _ = index.search(tf.constant(query), tf.zeros([4, 0], tf.int32), tf.constant(10), ALL)
    np.testing.assert_allclose(found, -np.sort(-(query @ rows[1:].T), axis=1)[:, :10], rtol=1e-5)
    assert index.rows.dtype == dtype


@pytest.mark.parametrize("width", [0, 1, 5])
def test_among(width: int) -> None:
    random = np.random.default_rng(width)
    items, dropped = random.integers(0, 7, (3, 20)).astype(np.int32), random.integers(0, 7, (3, width)).astype(np.int32)
    expected = [np.isin(row, [0, *gone]) for row, gone in zip(items, dropped, strict=True)]
    np.testing.assert_array_equal(among(tf.constant(items), tf.constant(dropped)), expected)
