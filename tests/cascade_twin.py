"""A cascade over the six items of parts.py, and its stages once more in plain Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import tensorflow as tf
from parts import ITEM_VECTORS, ITEMS, LOWEST, make_parts

from tfrec.artifact.cascade import CascadeParts
from tfrec.artifact.recommender import Parts
from tfrec.data.preprocess import index_table

NAMES = ("food", "tool", "toy")
CATEGORIES = np.array([[0, 0], [1, 0], [1, 2], [2, 0], [3, 1], [0, 0], [2, 0]], np.int32)
PRICES = np.array([np.nan, 1, 2, 3, 4, 5, np.nan], np.float32)
# What the two tasks say of each item, whoever asks; spend is worth ten times the item's place.
LIKES = np.array([0, 3, 1, 2, 6, 4, 5], np.float32)
SPEND = 10 * np.arange(7, dtype=np.float32)
TASKS = {"like": LIKES, "spend": SPEND}


def make_cascade(candidates: int = 4, weights: Mapping[str, float] | None = None, **changes: Any) -> Parts:
    """The recommender of parts.py with a ranker whose scores are a table."""
    table = index_table(NAMES, "categories")
    likes, spend = tf.Variable(LIKES), tf.Variable(SPEND)

    def scores(
        user: tf.Tensor, seen: tf.Tensor, items: tf.Tensor, own: Mapping[str, tf.Tensor], columns: tuple[Any, ...]
    ) -> dict[str, tf.Tensor]:
        trained = tf.where(items < len(LIKES), items, 0)
        return {"like": tf.gather(likes, trained), "spend": tf.gather(spend, trained)}

    made = CascadeParts(
        candidates=candidates,
        weights=weights or {"like": 1.0, "spend": 0.0, "retrieval": 0.0},
        evidence=lambda cosine, history, texts: {"retrieval": cosine},
        scores=scores,
        prices=PRICES,
        categories=CATEGORIES,
        category_index=table.lookup,
        category_names=len(NAMES),
        variables=[likes, spend],
        tables=[table],
    )
    return replace(make_parts(**changes), cascade=made)


def allowed(item: int, low: float, high: float, allow: Sequence[str], deny: Sequence[str]) -> bool:
    """Whether the filters let an item through."""
    own = {NAMES[c - 1] for c in CATEGORIES[item] if c}
    free = low == 0 and high == np.inf
    priced = free or bool(low <= PRICES[item] <= high)
    return priced and (not any(allow) or bool(own & {*allow})) and not own & {*deny}


def order(
    values: Sequence[float], vectors: np.ndarray, categories: Any, strength: float, most: int, k: int
) -> list[int]:
    """Marginal relevance with a cap, one candidate after the other; values are best first."""
    low, high = min(values), max(values)
    relevance = [(v - low) / (high - low) if high > low else 1.0 for v in values]
    chosen: list[int] = []
    while len(chosen) < min(k, len(values)):
        best, worth = None, -np.inf
        for i in range(len(values)):
            full = any(sum(c in categories[j] for j in chosen) >= most for c in categories[i] if c) if most else False
            if i in chosen or full:
                continue
            near = max((float(vectors[i] @ vectors[j]) for j in chosen), default=0.0)
            now = (1 - strength) * relevance[i] - strength * near
            if now > worth + 1e-6:
                best, worth = i, now
        if best is None:
            break
        chosen.append(best)
    return chosen


def answer(
    retrieval: Sequence[float],
    banned: set[int],
    k: int,
    candidates: int,
    weights: Mapping[str, float],
    low: float = 0.0,
    high: float = np.inf,
    allow: Sequence[str] = (),
    deny: Sequence[str] = (),
    strength: float = 0.0,
    most: int = 0,
) -> list[tuple[str, float]]:
    """What recommend must answer: ids and values, padded."""
    usable = [i for i in range(1, len(ITEMS) + 1) if i not in banned and allowed(i, low, high, allow, deny)]
    best = sorted(usable, key=lambda i: -retrieval[i])[: max(candidates, k)]
    value = {
        i: sum(weights[n] * table[i] for n, table in TASKS.items()) + weights["retrieval"] * retrieval[i] for i in best
    }
    ranked = sorted(best, key=lambda i: -value[i])
    places = range(min(k, len(ranked)))
    if ranked and (strength or most):
        vectors = ITEM_VECTORS[ranked].astype(np.float32)
        places = order([value[i] for i in ranked], vectors, CATEGORIES[ranked], strength, most, k)
    chosen = [ranked[place] for place in places]
    return [(ITEMS[i - 1], float(value[i])) for i in chosen] + [("", LOWEST)] * (k - len(chosen))
