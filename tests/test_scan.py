"""The exact scan by groups against top_k of all scores."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from parts import make_parts

from tfrec.artifact import recommender
from tfrec.artifact import scan as scans
from tfrec.artifact.scan import GROUP, Scan, top_k
from tfrec.artifact.stored import LOWEST


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 3), st.integers(1, 5 * GROUP), st.integers(1, 400), st.integers(1, 30), st.integers(0, 9))
def test_top_k_by_groups_is_top_k_with_its_ties(rows: int, size: int, count: int, values: int, seed: int) -> None:
    scores = np.random.default_rng(seed).integers(-values, values, (rows, size)).astype(np.float32)
    scores[scores == -1] = LOWEST
    found, places = top_k(tf.constant(scores), tf.constant(count))
    expected, order = tf.math.top_k(scores, min(count, size))
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(places, order)


@pytest.mark.parametrize("scale", [1, 2.0**56])
@pytest.mark.parametrize("items", [5, GROUP - 1, GROUP, 3 * GROUP + 7])
def test_a_scan_is_brute_force(items: int, scale: float) -> None:
    scan_is_brute_force(items, scale)


@pytest.mark.parametrize("items", [14, 15, 31, 32, 4 * 32 - 1, 4 * 32, 5 * 32 + 7])
def test_several_rounds_are_one_scan(items: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scans, "_SCORES", 2 * 3 * 16)  # two groups at a time, of which the last may be alone
    scan_is_brute_force(items, 1)


def test_of_near_ties_the_scores_are_the_best_within_rounding() -> None:
    random = np.random.default_rng(0)
    vectors = (np.ones((3001, 8)) + 1e-7 * random.normal(size=(3001, 8))).astype(np.float32)
    query = random.uniform(0.5, 1, (2, 8)).astype(np.float32)
    index = Scan(tf.Variable(vectors), tf.Variable(np.arange(3001) > 0))
    found, items = index.search(tf.constant(query), tf.zeros([2, 0], tf.int32), tf.constant(50))
    exact = query.astype(float) @ vectors[1:].astype(float).T
    np.testing.assert_allclose(found, -np.sort(-exact, axis=1)[:, :50], rtol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(exact, items.numpy() - 1, axis=1), found, rtol=1e-6)
    assert all(len(set(row)) == 50 for row in items.numpy().tolist())


def scan_is_brute_force(items: int, scale: float) -> None:
    """Whole numbers times a power of two, whose products are exact."""
    random = np.random.default_rng(items)
    vectors = (scale * random.integers(-5, 6, (items + 1, 4))).astype(np.float32)
    available = np.append(False, random.random(items) > 0.2)
    query = (scale * random.integers(-5, 6, (3, 4))).astype(np.float32)
    dropped = random.integers(0, items + 1, (3, 3)).astype(np.int32)
    scan = Scan(tf.Variable(vectors), tf.Variable(available))
    for allowed in (None, lambda chosen: chosen % 3 > 0):
        found, chosen = scan.search(tf.constant(query), tf.constant(dropped), tf.constant(10), allowed)
        scores = np.where(available, query @ vectors.T, LOWEST)
        np.put_along_axis(scores, dropped, LOWEST, axis=1)
        if allowed is not None:
            scores[:, ::3] = LOWEST
        best = -np.sort(-scores, axis=1)[:, :10]
        np.testing.assert_array_equal(found[:, : best.shape[1]], best)
        there = found.numpy() > LOWEST
        assert not there[:, best.shape[1] :].any()
        np.testing.assert_array_equal(np.take_along_axis(scores, chosen.numpy(), axis=1)[there], found.numpy()[there])
        assert np.all(chosen.numpy()[~there] == 0)


def test_all_scores_of_a_large_catalogue_are_searched_by_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recommender, "LARGE", 300)
    random, found = np.random.default_rng(0), []
    scores = tf.constant(random.integers(0, 50, (2, 301)).astype(np.float32))
    dropped = tf.constant(random.integers(0, 301, (2, 20)), tf.int32)
    vectors = np.zeros((301, 2), np.float32)
    few = make_parts(item_vectors=vectors, text_vectors=vectors, popularity=vectors[:, 0])
    for items in (299, 300):
        parts = replace(few, item_ids=[str(i) for i in range(items)])
        module = recommender.Recommender(parts)
        module.available.assign(np.arange(301) % 7 > 0)
        found.append(module.best(scores, dropped, tf.constant(30)))
        assert module.is_large == (items == 300)
    for mine, theirs in zip(*found, strict=True):
        np.testing.assert_array_equal(mine, theirs)
