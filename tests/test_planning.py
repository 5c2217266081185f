"""An index is chosen by size and by the recall that it reaches."""

from __future__ import annotations

import numpy as np
import pytest

from tfrec.artifact.buckets import Buckets
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
    buckets = Buckets(np.array([[1, 0], [0, 1], [-1, 0]], np.float32), np.array([[1, 2], [3, 0], [4, 0]], np.int32))
    assert probes_for(buckets, vectors, np.array([[1.0, 0.1]], np.float32), 0.5) == (1, 0.5)
    assert probes_for(buckets, vectors, np.array([[1.0, 0.1]], np.float32), 0.6) == (2, 0.75)
    assert probes_for(buckets, vectors, np.array([[1.0, 0.1], [-1, 0.1]], np.float32), 1.0) == (3, 1.0)
    assert probes_for(buckets, vectors, np.empty((0, 2), np.float32), 0.5) == (3, 1.0)


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
    assert plan.nprobe < len(plan.buckets.items) / 4
    more, _ = make_plan(VECTORS, QUERIES, Wish(how, 0.99), least=10_000)  # type: ignore[arg-type]
    assert more is not None and more.nprobe > plan.nprobe


def test_auto_scans_what_does_not_cluster() -> None:
    """In 64 dimensions the nearest of random directions lie everywhere."""
    noise = np.random.default_rng(0).normal(size=(12_001, 64)).astype(np.float32)
    plan, about = make_plan(noise, noise[1:50], Wish(recall=1.0), least=10_000)
    assert plan is not None and not plan.approximate
    assert about["kind"] == "brute" and about["instead_of"]["recall@100"] == 1
