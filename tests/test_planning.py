"""An index is chosen by size and by the recall that it reaches."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tfrec.artifact.buckets import Buckets, behind, build
from tfrec.artifact.ivf import IVF
from tfrec.artifact.planning import Probes, Tuning, Wish, make_plan, nearest
from tfrec.artifact.stored import Storage


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
    """Of six items in six buckets all are near: four are in the buckets that a query looks into in any case."""
    angles = np.deg2rad([0, 10, 20, 30, 60, 90])
    centroids = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    buckets = Buckets(centroids, np.arange(1, 7, dtype=np.int32), np.arange(7, dtype=np.int32))
    tuning = Tuning(buckets, np.pad(centroids, [[1, 0], [0, 0]]), np.eye(2, dtype=np.float32))
    assert [tuning.nprobe(target) for target in (0.5, 8 / 12, 9 / 12, 1.0)] == [4, 4, 5, 6]
    assert tuning.probes(4, 0.5) == Probes(4, 0.5, 4.0)
    assert tuning.probes(5, 0.8).looked_at == 5 and tuning.probes(6, 1.0).looked_at == 6


@pytest.mark.parametrize("storage", ["packed", "float32"])
def test_the_index_finds_and_looks_at_what_was_foreseen(storage: Storage) -> None:
    buckets = build(VECTORS, np.arange(1, len(VECTORS), dtype=np.int32), 40)
    tuning = Tuning(buckets, VECTORS, QUERIES)
    nprobe = tuning.nprobe(0.9)
    index = IVF(tf.Variable(VECTORS), buckets, storage, tuning.reach)
    near = {"float32": 1e-9, "packed": 0.1}[storage]  # as centroids are rounded too
    found = tuning.found_by(tf.function(index.search), nprobe).mean()
    bucket_of = np.zeros(len(VECTORS), int)
    bucket_of[buckets.items] = buckets.labels
    far = behind(buckets.centroids, QUERIES)
    held = np.take_along_axis(far, bucket_of[tuning.best], axis=1) <= tuning.reach[nprobe - 1]
    assert found == pytest.approx(held.mean(), rel=near)
    looked_at = []
    for query in QUERIES:
        asked = tf.constant(query[None]), tf.zeros([1, 0], tf.int32), tf.constant(len(VECTORS))
        looked_at.append(np.sum(index.search(*asked, tf.constant(nprobe))[1].numpy() > 0))
    assert np.mean(looked_at) == pytest.approx(tuning.probes(nprobe, 0.9).looked_at, rel=near)


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
    tuning = Tuning(buckets, table, points[held_out])
    order = np.argsort(-(points[held_out] @ buckets.centroids.T), axis=1)
    bucket_of = np.zeros(len(table), int)
    bucket_of[buckets.items] = buckets.labels
    rank = np.take_along_axis(np.argsort(order, axis=1), bucket_of[nearest(points[held_out], table)], axis=1)
    least = int(np.quantile(rank, 0.9, method="inverted_cdf")) + 1
    assert tuning.probes(tuning.nprobe(0.9), 0.9).looked_at < 0.9 * buckets.sizes[order[:, :least]].sum(axis=1).mean()


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
    more, _ = make_plan(VECTORS, QUERIES, Wish(how, 0.999), least=10_000)  # type: ignore[arg-type]
    assert more is not None and more.nprobe > plan.nprobe


def test_where_rounding_loses_too_much_vectors_are_stored_as_they_are() -> None:
    """One vector is so long that with its scale all others are rounded to nothing."""
    table = VECTORS[:3000].copy()
    table[1] *= 10_000
    plan, about = make_plan(table, QUERIES[:20], Wish("ivf", 0.9))
    assert plan is not None and plan.buckets is not None
    assert plan.storage == about["storage"] == "float32"
    assert about["recall@100"] >= 0.9 and plan.nprobe < len(plan.buckets.centroids)


def test_without_queries_all_buckets_are_looked_into() -> None:
    plan, about = make_plan(VECTORS[:3000], QUERIES[:0], Wish("ivf"))
    assert plan is not None and plan.buckets is not None
    assert plan.nprobe == len(plan.buckets.centroids) and about["looked_at"] == 2999


def test_auto_scans_what_does_not_cluster() -> None:
    """In 64 dimensions the nearest of random directions lie everywhere."""
    noise = np.random.default_rng(0).normal(size=(12_001, 64)).astype(np.float32)
    plan, about = make_plan(noise, noise[1:50], Wish(recall=1.0), least=10_000)
    assert plan is not None and not plan.approximate
    assert about["kind"] == "brute" and about["instead_of"]["recall@100"] == 1
