"""A recommender without a trained model: six items in a plane, vectors that one can multiply by hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import tensorflow as tf

from tfrec.artifact.recommender import Parts
from tfrec.data.preprocess import index_table

LOWEST = float(np.finfo(np.float32).min)
ITEMS = ("a", "b", "c", "d", "e", "ü")
USERS = ("ann", "bob", "new")
LENGTH = 3
# Angles of the items; the last two lie opposite the first four.
_ANGLES = np.array([0.0, 0.1, 0.3, 0.6, 3.0, 3.5])
ITEM_VECTORS = np.concatenate([np.zeros((1, 2)), np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=1)])
POPULARITY = np.array([0, 0.1, 1.0, 0.5, 0.3, 0.7, 0.2], np.float32)
# ann saw a and b, bob saw e; new is known and saw nothing. List 0: unknown users.
STORED = [[], [1, 2], [5], []]
_WORDS = {"up": (0.0, 1.0), "right": (1.0, 0.0)}


def make_parts(**changes: Any) -> Parts:
    """A user's vector is the sum of the vectors of the last three items, the newest counting three times."""
    users, words = index_table(USERS, "users"), index_table(list(_WORDS), "words")
    weights = tf.Variable(np.arange(1, LENGTH + 1), dtype=tf.float32)
    vectors = tf.Variable([(0.0, 0.0), *_WORDS.values()], dtype=tf.float32)

    def user_vector(read: tf.Tensor, mask: tf.Tensor, user: tf.Tensor) -> tf.Tensor:
        return tf.reduce_sum(read * tf.cast(mask, tf.float32)[..., None] * weights[:, None], axis=1)

    def embed_text(texts: tf.Tensor) -> tf.Tensor:
        return tf.gather(vectors, words.lookup(texts))

    def embed_item(item: tf.Tensor, raw: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        text = embed_text(raw["title"])
        return {"embedding": text * raw["price"][:, None], "text_embedding": text}

    parts = Parts(
        item_ids=ITEMS,
        item_vectors=ITEM_VECTORS.astype(np.float32),
        text_vectors=ITEM_VECTORS.astype(np.float32),
        popularity=POPULARITY,
        stored_history=(np.concatenate(STORED).astype(np.int32), np.cumsum([0, *map(len, STORED)])),
        user_index=users.lookup,
        user_vector=user_vector,
        knows_users=False,
        item_columns={"title": tf.string, "price": tf.float32},
        embed_item=embed_item,
        embed_query=embed_text,
        variables=[weights, vectors],
        tables=[users, words],
        history_length=LENGTH,
        drop_history=True,
    )
    return replace(parts, **changes)


def item_indices(ids: list[str]) -> list[int]:
    return [ITEMS.index(item) + 1 if item in ITEMS else 0 for item in ids]


def expected(user: str, history: list[str], exclude: list[str], k: int, drop: bool = True) -> list[tuple[str, float]]:
    """What recommend must answer, in plain Python."""
    seen = [i for i in item_indices(history) if i]
    if not seen:
        seen = STORED[USERS.index(user) + 1 if user in USERS else 0]
    scores = POPULARITY.astype(np.float64)
    if seen:
        read = seen[-LENGTH:]
        weights = range(LENGTH - len(read) + 1, LENGTH + 1)
        vector = sum(weight * ITEM_VECTORS[i] for weight, i in zip(weights, read, strict=True))
        scores = ITEM_VECTORS @ vector
    banned = {*item_indices(exclude), *(seen if drop else [])}
    allowed = [i for i in range(1, len(ITEMS) + 1) if i not in banned]
    best = sorted(allowed, key=lambda i: -scores[i])[:k]
    return [(ITEMS[i - 1], float(scores[i])) for i in best] + [("", LOWEST)] * (k - len(best))
