"""Buckets hold every item once, are bounded, and keep near what is near."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfrec.artifact.buckets import MOST, Buckets, behind, build, from_rows, in_rows, insert, reaches, remove


def vectors(rows: int, width: int = 4, seed: int = 0) -> np.ndarray:
    """A row of zeros and random ones, some of them equal."""
    drawn = np.random.default_rng(seed).integers(-2, 3, (rows + 1, width)).astype(np.float32)
    drawn[0] = 0
    return drawn


def held(buckets: Buckets) -> list[int]:
    assert buckets.starts[0] == 0 and buckets.starts[-1] == len(buckets.items)
    assert len(buckets.centroids) == len(buckets.sizes) and buckets.sizes.min() >= 0
    assert buckets.sizes.max() <= MOST
    return sorted(buckets.items.tolist())


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 300), st.integers(1, 40), st.integers(0, 5), st.data())
def test_items_come_and_go_and_each_lies_in_the_nearest_bucket(
    rows: int, size: int, seed: int, data: st.DataObject
) -> None:
    table = vectors(rows, seed=seed)
    every = np.random.default_rng(seed).permutation(np.arange(1, rows + 1, dtype=np.int32))
    first = data.draw(st.integers(0, rows))
    buckets = build(table, every[:first], size)
    assert held(buckets) == sorted(every[:first].tolist())
    gone, before = every[: first // 3], buckets
    buckets = insert(remove(buckets, gone), table, every[first:])
    assert held(buckets) == sorted(every[first // 3 :].tolist())
    np.testing.assert_array_equal(buckets.centroids, before.centroids)
    new = np.isin(buckets.items, every[first:])
    products = table[buckets.items[new]] @ buckets.centroids.T
    np.testing.assert_array_equal(products.max(axis=1), products[np.arange(new.sum()), buckets.labels[new]])


def test_what_has_one_direction_is_divided_by_number() -> None:
    table = np.ones((3 * MOST + 2, 3), np.float32)
    buckets = build(table, np.arange(1, 3 * MOST + 1, dtype=np.int32), 16)
    assert held(buckets) == list(range(1, 3 * MOST + 1))
    assert buckets.sizes.tolist() == [MOST] * 3
    np.testing.assert_allclose(buckets.centroids, np.full((3, 3), 3**-0.5), rtol=1e-6)
    more = insert(buckets, table, np.array([3 * MOST + 1], np.int32))
    assert len(more.centroids) == 4 and held(more)[-1] == 3 * MOST + 1


def test_zeros_have_buckets_of_their_own() -> None:
    table = vectors(400)
    table[1::2] = 0
    buckets = build(table, np.arange(1, 401, dtype=np.int32), 20)
    nothing = ~table[buckets.items].any(axis=1)
    assert not buckets.centroids[buckets.labels[nothing]].any()
    assert buckets.centroids[buckets.labels[~nothing]].any(axis=1).all()
    assert held(build(np.zeros((5, 2), np.float32), np.arange(1, 5, dtype=np.int32), 2)) == [1, 2, 3, 4]


def test_clusters_have_buckets_of_their_own() -> None:
    """Eight clusters that are far apart, of less than a bucket each: no bucket mixes two of them."""
    random = np.random.default_rng(0)
    label = np.repeat(np.arange(8), 40)
    table = np.concatenate([np.zeros((1, 8)), np.eye(8)[label] + random.normal(size=(320, 8)) * 0.02])
    buckets = build(table.astype(np.float32), np.arange(1, 321, dtype=np.int32), 20)
    rows = np.split(buckets.items, buckets.starts[1:-1])
    assert not [row for row in rows if len(set(label[row - 1])) > 1]


def test_buckets_have_about_the_size() -> None:
    table = np.random.default_rng(0).normal(size=(5001, 16)).astype(np.float32)
    buckets = build(table, np.arange(1, 5001, dtype=np.int32), 60)
    assert 30 < buckets.sizes.mean() < 90


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 100), st.integers(1, 30), st.integers(1, 4), st.integers(0, 5))
def test_rows_hold_the_items_of_one_bucket_each(rows: int, size: int, width: int, seed: int) -> None:
    table = vectors(rows, seed=seed)
    buckets = build(table, np.arange(1, rows + 1, dtype=np.int32), size)
    items, starts = in_rows(buckets, width)
    assert items.shape == (starts[-1], width)
    for bucket in range(len(buckets.centroids)):
        held = items[starts[bucket] : starts[bucket + 1]].reshape(-1)
        first, last = buckets.starts[bucket : bucket + 2]
        assert held.tolist() == buckets.items[first:last].tolist() + [0] * (-(last - first) % width)
    again = from_rows(buckets.centroids, items, starts)
    np.testing.assert_array_equal(again.items, buckets.items)
    np.testing.assert_array_equal(again.starts, buckets.starts)


def test_distances_are_counted_from_the_fourth_product() -> None:
    angles = np.deg2rad([0, 10, 20, 30, 60, 90])
    centroids = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    far = behind(centroids, np.array([[5, 0], [0, 0.1]], np.float32))
    np.testing.assert_allclose(far[0], [0, 0, 0, 0, np.cos(angles[3]) - 0.5, np.cos(angles[3])], atol=1e-6)
    np.testing.assert_allclose(far[1, :2], [np.sin(angles[2]), np.sin(angles[2]) - np.sin(angles[1])], atol=1e-6)
    assert not far[1, 2:].any()


def test_within_a_reach_queries_have_that_many_buckets_on_average() -> None:
    random = np.random.default_rng(0)
    centroids = random.normal(size=(40, 8)).astype(np.float32)
    centroids /= np.linalg.norm(centroids, axis=1, keepdims=True)
    queries = random.normal(size=(30, 8)).astype(np.float32)
    far, reach = behind(centroids, queries), reaches(centroids, queries)
    assert not reach[:4].any() and (np.diff(reach) >= 0).all() and far.max() < reach[-1]
    assert [(far <= r).mean() * 40 for r in reach[4:-1]] == pytest.approx(range(5, 40))
