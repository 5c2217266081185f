"""Buckets hold every item once, are never too full, and keep near what is near."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfrec.artifact.buckets import Buckets, build, insert, remove


def vectors(rows: int, width: int = 4, seed: int = 0) -> np.ndarray:
    """A row of zeros and random ones, some of them equal."""
    drawn = np.random.default_rng(seed).integers(-2, 3, (rows + 1, width)).astype(np.float32)
    drawn[0] = 0
    return drawn


def held(buckets: Buckets) -> list[int]:
    return sorted(buckets.items[buckets.items > 0].tolist())


def room_is_at_the_end(buckets: Buckets) -> bool:
    taken = buckets.items > 0
    return bool(np.all(taken[:, :-1] >= taken[:, 1:]))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 300), st.integers(1, 40), st.integers(0, 5), st.data())
def test_items_come_and_go_and_each_lies_in_one_bucket(rows: int, cap: int, seed: int, data: st.DataObject) -> None:
    table = vectors(rows, seed=seed)
    every = np.random.default_rng(seed).permutation(np.arange(1, rows + 1, dtype=np.int32))
    first = data.draw(st.integers(0, rows))
    buckets = build(table, every[:first], cap)
    assert held(buckets) == sorted(every[:first].tolist())
    gone = every[: first // 3]
    buckets = insert(remove(buckets, gone), table, every[first:])
    assert held(buckets) == sorted(every[first // 3 :].tolist())
    assert room_is_at_the_end(buckets) and buckets.items.shape[1] == cap
    assert len(buckets.centroids) == len(buckets.items)


def test_equal_vectors_are_divided_by_number() -> None:
    table = np.ones((1001, 3), np.float32)
    buckets = build(table, np.arange(1, 1001, dtype=np.int32), 16)
    assert held(buckets) == list(range(1, 1001))
    np.testing.assert_allclose(buckets.centroids, np.full_like(buckets.centroids, 3**-0.5), rtol=1e-6)


def test_clusters_have_buckets_of_their_own() -> None:
    """Eight clusters that are far apart, of less than a bucket each: no bucket mixes two of them."""
    random = np.random.default_rng(0)
    label = np.repeat(np.arange(8), 40)
    table = np.concatenate([np.zeros((1, 8)), np.eye(8)[label] + random.normal(size=(320, 8)) * 0.02])
    buckets = build(table.astype(np.float32), np.arange(1, 321, dtype=np.int32), 20)
    mixed = [row for row in buckets.items if len(set(label[row[row > 0] - 1])) > 1]
    assert not mixed


def test_buckets_are_well_filled() -> None:
    table = np.random.default_rng(0).normal(size=(5001, 16)).astype(np.float32)
    buckets = build(table, np.arange(1, 5001, dtype=np.int32), 64)
    assert np.mean(buckets.items > 0) > 0.65


@pytest.mark.parametrize("cap", [8, 64])
def test_what_finds_no_room_near_gets_buckets_of_its_own(cap: int) -> None:
    table = np.concatenate([np.zeros((1, 2)), np.tile([1.0, 0.0], (cap, 1)), np.tile([-1.0, 0.1], (3 * cap, 1))])
    table = table.astype(np.float32)
    before = build(table, np.arange(1, cap + 1, dtype=np.int32), cap)
    after = insert(before, table, np.arange(cap + 1, 4 * cap + 1, dtype=np.int32))
    np.testing.assert_array_equal(after.centroids[: len(before.centroids)], before.centroids)
    assert len(after.items) > len(before.items)
    assert np.all(after.centroids[len(before.centroids) :, 0] < 0)
