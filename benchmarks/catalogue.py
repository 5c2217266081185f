"""A large catalogue of made-up vectors, and SavedModels that search it, run as TensorFlow Serving does."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from common import Cost

WIDTH, NEAREST = 64, 100
Search = Callable[[np.ndarray], np.ndarray]


def clustered(items: int, queries: int, centres: int = 10_000, zipf: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors float32 [N+1, 64], row 0 zeros, and held-out ones [Q, 64] of the same mixture.

    Gaussian centres, as far apart as the vectors of one centre are; a centre's share is 1 / rank^zipf.
    """
    random = np.random.default_rng(0)
    share = 1 / np.arange(1, centres + 1) ** zipf
    centre = random.normal(size=(centres, WIDTH)).astype(np.float32)
    drawn = centre[random.choice(centres, items + queries, p=share / share.sum())]
    drawn += random.standard_normal(drawn.shape, np.float32)
    drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
    return np.concatenate([np.zeros((1, WIDTH), np.float32), drawn[queries:]]), drawn[:queries]


def save(module: tf.Module, search: Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]], path: Path) -> Path:
    """A SavedModel whose signature maps ``query`` [B, 64] to the best 100 ``items``."""
    spec = tf.TensorSpec([None, WIDTH], tf.float32, name="query")
    function = tf.function(
        lambda query: dict(zip(("scores", "items"), search(query), strict=True)), input_signature=[spec]
    )
    tf.saved_model.save(module, str(path), signatures={"serving_default": function})
    return path


def session(path: Path) -> Search:
    """The items that a v1 session answers, with TensorFlow's default options."""
    opened = tf.compat.v1.Session(graph=tf.Graph())
    with opened.graph.as_default():
        loaded = tf.compat.v1.saved_model.loader.load(opened, ["serve"], str(path))
    signature = loaded.signature_def["serving_default"]
    return opened.make_callable([signature.outputs["items"].name], [signature.inputs["query"].name])


class Plain(tf.Module):
    """Brute force as one writes it: a matrix product and top_k."""

    def __init__(self, vectors: np.ndarray):
        super().__init__()
        self.vectors = tf.Variable(vectors, trainable=False)

    def search(self, query: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        found, items = tf.math.top_k(tf.matmul(query, self.vectors, transpose_b=True), NEAREST)
        return found, items


def recall(search: Search, queries: np.ndarray, best: np.ndarray) -> float:
    """Mean share of the 100 nearest among the answers, one query at a time."""
    found = [np.asarray(search(query[None])).reshape(-1) for query in queries]
    return float(np.mean([np.isin(row, items).mean() for row, items in zip(best, found, strict=True)]))


def mean_cost(search: Search, batches: Sequence[np.ndarray]) -> Cost:
    """What a request costs this process on average."""
    cpu, wall = time.process_time(), time.perf_counter()
    for batch in batches:
        search(batch)
    return Cost((time.process_time() - cpu) / len(batches), (time.perf_counter() - wall) / len(batches))
