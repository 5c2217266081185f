"""An index is chosen by size and by the recall that it reaches."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tfrec.artifact.buckets import Buckets, build
from tfrec.artifact.ivf import IVF, LOWEST
from tfrec.artifact.planning import Wish, make_plan, nearest, probes_for


def clustered(items: int, clusters: int = 60, width: int = 8, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    centres = random.normal(size=(clusters, width)) * 3
    points = centres[random.integers(0, clusters, items + 1)] + random.normal(size=(items + 1, width))
    points = (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)
    points[0] = 0
    return points


VECTORS = clustered(20_000)
QUERIES = VECTORS[1:20_000:400]


def test_probes_are_counted_by_hand() -> None:
    """Four items in three buckets; of the two queries one needs the nearest bucket, the other all three."""
    vectors = np.array([[0, 0], [1, 0], [0.9, 0.1], [0, 1], [-1, 0]], np.float32)
    centroids = np.array([[1, 0], [0, 1], [-1, 0]], np.float32)
    buckets = Buckets(centroids, np.arange(1, 5, dtype=np.int32), np.array([0, 2, 3, 4], np.int32))
    one, two = np.array([[1.0, 0.1]], np.float32), np.array([[1.0, 0.1], [-1, 0.1]], np.float32)
    for queries, target, expected in (
        (one, 0.5, (1, 0.5, 2)),
        (one, 0.6, (2, 0.75, 3)),
        (two, 1.0, (3, 1.0, 4)),
        (two[:0], 0.5, (3, 1.0, 4)),
    ):
        found = probes_for(buckets, vectors, queries, target)
        assert (found.nprobe, found.recall, found.looked_at) == expected


def test_the_index_finds_and_looks_at_what_was_foreseen() -> None:
    buckets = build(VECTORS, np.arange(1, len(VECTORS), dtype=np.int32), 40)
    chosen = probes_for(buckets, VECTORS, QUERIES, 0.9)
    index = IVF(tf.Variable(VECTORS), buckets, reach=chosen.reach)
    shares, looked_at = [], []
    for query, best in zip(QUERIES, nearest(QUERIES, VECTORS), strict=True):
        asked = tf.constant(query[None]), tf.zeros([1, 0], tf.int32), tf.constant(len(VECTORS))
        scores, items = index.search(*asked, tf.constant(chosen.nprobe))
        there = items.numpy()[0][scores.numpy()[0] > LOWEST]
        shares.append(np.isin(best, there).mean())
        looked_at.append(len(there))
    np.testing.assert_allclose([np.mean(shares), np.mean(looked_at)], [chosen.recall, chosen.looked_at])
    assert chosen.recall >= 0.9


def test_near_buckets_alone_are_fewer_items() -> None:
    """Small clusters beside a large one: the queries of the small ones need few buckets."""
    random = np.random.default_rng(0)
    centre = np.repeat(np.arange(41), [8000, *[150] * 40])
    points = random.normal(size=(41, 16))[centre] * 1.5 + random.normal(size=(len(centre), 16))
    points = (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)
    held_out = np.concatenate(
        [np.flatnonzero(centre == 0)[:30], *(np.flatnonzero(centre == c)[:1] for c in range(1, 41))]
    )
    table = np.concatenate([np.zeros((1, 16), np.float32), np.delete(points, held_out, axis=0)])
    buckets = build(table, np.arange(1, len(table), dtype=np.int32), 40)
    chosen = probes_for(buckets, table, points[held_out], 0.9)
    order = np.argsort(-(points[held_out] @ buckets.centroids.T), axis=1)
    bucket_of = np.zeros(len(table), int)
    bucket_of[buckets.items] = buckets.labels
    rank = np.take_along_axis(np.argsort(order, axis=1), bucket_of[nearest(points[held_out], table)], axis=1)
    least = int(np.quantile(rank, 0.9, method="inverted_cdf")) + 1
    assert chosen.looked_at < 0.9 * buckets.sizes[order[:, :least]].sum(axis=1).mean()


def test_nearest_are_the_largest_products() -> None:
    found = nearest(QUERIES[:5], VECTORS)
    for query, items in zip(QUERIES[:5], found, strict=True):
        scores = VECTORS[1:] @ query
        np.testing.assert_allclose(np.sort(scores[items - 1]), np.sort(scores)[-100:], rtol=1e-6)


def test_a_small_catalogue_needs_no_index() -> None:
    assert make_plan(VECTORS, QUERIES, Wish())[0] is None
    assert make_plan(VECTORS, QUERIES, Wish("brute"))[0] is None


@pytest.mark.parametrize("how", ["auto", "ivf"])
def test_the_recall_that_is_asked_for_is_reached_with_few_buckets(how: str) -> None:
    plan, about = make_plan(VECTORS, QUERIES, Wish(how, 0.9, "bfloat16"), least=10_000)  # type: ignore[arg-type]
    assert plan is not None and plan.buckets is not None
    assert (about["kind"], about["nprobe"], about["storage"]) == ("ivf", plan.nprobe, plan.storage)
    assert about["recall@100"] >= 0.9
    assert plan.nprobe < len(plan.buckets.centroids) / 4
    more, _ = make_plan(VECTORS, QUERIES, Wish(how, 0.99), least=10_000)  # type: ignore[arg-type]
    assert more is not None and more.nprobe > plan.nprobe


def test_auto_scans_what_does_not_cluster() -> None:
    """In 64 dimensions the nearest of random directions lie everywhere."""
    noise = np.random.default_rng(0).normal(size=(12_001, 64)).astype(np.float32)
    plan, about = make_plan(noise, noise[1:50], Wish(recall=1.0), least=10_000)
    assert plan is not None and not plan.approximate
    assert about["kind"] == "brute" and about["instead_of"]["recall@100"] == 1
