"""What a ranker reads of a candidate beside its features: what retrieval says of it, and how it fits the history."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import tensorflow as tf

from tfrec.models.blend import Blend, without_padding
from tfrec.models.ranking.pairs import Followers, Words, common_words, follows

RETRIEVAL = "retrieval"
PREFIX = "signal."  # which no feature's name can have
RECENT = 20
_FADES = (0.8, 0.98)


class Catalogue(NamedTuple):
    """Per-item tensors, row 0 for the unknown; more rows than training knew are new items.

    Args:
        vectors: unit item vectors float32 [M+1, d].
        texts: unit text vectors float32 [M+1, t]; None without text.
        prices: float32 [≤ M+1], NaN = unknown; None without prices.
        categories: int32 [≤ M+1, c], 0 = none; None without categories.
        words, followers: of ≤ M items; None = not compared.
    """

    vectors: tf.Tensor
    texts: tf.Tensor | None = None
    prices: tf.Tensor | None = None
    categories: tf.Tensor | None = None
    words: Words | None = None
    followers: Followers | None = None


def evidence_of(
    blend: Blend | None, cosine: tf.Tensor, history: tf.Tensor, texts: tf.Tensor | None
) -> dict[str, tf.Tensor]:
    """Retrieval's scores float32 [B, M+1]: the sum as "retrieval", the "cosine", and the parts of a blend.

    Args:
        blend: what is added to cosines; None = nothing.
        cosine, history, texts: as :class:`Blend` takes them.
    """
    if blend is None:
        return {RETRIEVAL: cosine}
    parts = blend.parts(cosine, history, texts)
    others = {name: part for name, part in parts.items() if name != "model"}
    return {RETRIEVAL: blend.total(parts) if parts else tf.zeros_like(cosine), "cosine": cosine, **others}


def scaled(found: Mapping[str, tf.Tensor], moments: Mapping[str, tuple[float, float]]) -> dict[str, tf.Tensor]:
    """Signals as the ranker reads them: "signal.<name>", in deviations from the mean of training."""
    return {f"{PREFIX}{name}": (found[name] - mean) / deviation for name, (mean, deviation) in moments.items()}


def signals(
    evidence: Mapping[str, tf.Tensor], history: tf.Tensor, items: tf.Tensor, catalogue: Catalogue
) -> dict[str, tf.Tensor]:
    """Numbers of each candidate, name -> float32 [B, C], none of which depends on the other candidates.

        <evidence>            retrieval's scores, as they are
        times, fades          log(1 + how often it is in the history), Σ γ^age of its places
        length, variety       log(1 + items of the history), and the share of distinct ones
        <space>_last, _near   cosine to the last item, and the largest to the last 20 others, of vectors and texts
        price, price_high     log price minus its mean over the history, and its absolute value
        category              share of the history in one of its categories
        words_*, follows*     as :mod:`tfrec.models.ranking.pairs` has them

    Args:
        evidence: name -> float32 [B, C].
        history: int32 [B, L], oldest first, 0 on the left.
        items: int32 [B, C].
        catalogue: of the items.
    """
    history = without_padding(history)
    found = {**evidence, **_repeats(history, items)}
    found |= _similar("item", catalogue.vectors, history, items)
    if catalogue.texts is not None:
        found |= _similar("text", catalogue.texts, history, items)
    if catalogue.prices is not None:
        found |= _price(catalogue.prices, history, items)
    if catalogue.categories is not None:
        found["category"] = _category(catalogue.categories, history, items)
    if catalogue.words is not None:
        found |= common_words(catalogue.words, history, items)
    if catalogue.followers is not None:
        found |= follows(catalogue.followers, history, items, tf.shape(catalogue.vectors)[0] - 1)
    return found


def _repeats(history: tf.Tensor, items: tf.Tensor) -> dict[str, tf.Tensor]:
    length = tf.shape(history)[1]
    age = tf.cast(tf.range(length - 1, -1, -1), tf.float32)
    place = tf.cast(tf.equal(items[:, :, None], history[:, None, :]) & (items > 0)[:, :, None], tf.float32)  # [B, C, L]
    weights = tf.stack([tf.ones_like(age), *(tf.pow(fade, age) for fade in _FADES)], axis=1)  # [L, 3]
    sums = tf.tensordot(place, weights, axes=1)
    known = tf.cast(history > 0, tf.float32)
    count = tf.reduce_sum(known, axis=1)
    again = tf.reduce_sum(known * tf.cast(_seen_before(history), tf.float32), axis=1)
    variety = 1 - tf.math.divide_no_nan(again, count)
    found = {"times": tf.math.log1p(sums[..., 0]), "length": tf.math.log1p(count), "variety": variety}
    found = {name: x if name == "times" else x[:, None] + tf.zeros_like(sums[..., 0]) for name, x in found.items()}
    return found | {f"fade_{i}": sums[..., i + 1] for i in range(len(_FADES))}


def _seen_before(history: tf.Tensor) -> tf.Tensor:
    """Whether an earlier place holds the same item, bool [B, L]."""
    order = tf.argsort(history, axis=1, stable=True)
    ordered = tf.gather(history, order, batch_dims=1)
    again = tf.concat([tf.zeros_like(ordered[:, :1], tf.bool), ordered[:, 1:] == ordered[:, :-1]], axis=1)
    return tf.gather(again, tf.argsort(order, axis=1), batch_dims=1)


def _similar(name: str, vectors: tf.Tensor, history: tf.Tensor, items: tf.Tensor) -> dict[str, tf.Tensor]:
    recent = history[:, -RECENT:]
    candidates, earlier = tf.gather(vectors, items), tf.gather(vectors, recent)
    cosine = tf.matmul(candidates, earlier, transpose_b=True)  # [B, C, L]
    other = (recent > 0)[:, None] & (recent[:, None] != items[:, :, None])
    near = tf.reduce_max(tf.where(other, cosine, -1.0), axis=2)
    padded = tf.pad(cosine, [[0, 0], [0, 0], [1, 0]])
    return {f"{name}_last": padded[:, :, -1], f"{name}_near": tf.where(tf.reduce_any(other, axis=2), near, 0.0)}


def _price(prices: tf.Tensor, history: tf.Tensor, items: tf.Tensor) -> dict[str, tf.Tensor]:
    logs = tf.math.log1p(tf.maximum(prices, 0.0))
    own, earlier = _rows(logs, items), _rows(logs, history)
    known = tf.cast(tf.math.is_finite(earlier) & (history > 0), tf.float32)
    mean = tf.math.divide_no_nan(tf.reduce_sum(tf.where(known > 0, earlier, 0.0), 1), tf.reduce_sum(known, 1))
    difference = own - mean[:, None]
    comparable = tf.math.is_finite(difference) & (tf.reduce_sum(known, 1) > 0)[:, None]
    difference = tf.where(comparable, difference, 0.0)
    return {"price": difference, "price_distance": tf.abs(difference)}


def _category(categories: tf.Tensor, history: tf.Tensor, items: tf.Tensor) -> tf.Tensor:
    recent = history[:, -RECENT:]
    own, earlier = _rows(categories, items), _rows(categories, recent)
    pairs = own[:, :, None, :, None] == earlier[:, None, :, None, :]  # [B, C, L, c, c]
    same = tf.reduce_any(pairs & (own > 0)[:, :, None, :, None], axis=[3, 4])
    count = tf.reduce_sum(tf.cast(recent > 0, tf.float32), axis=1)
    return tf.math.divide_no_nan(tf.reduce_sum(tf.cast(same, tf.float32), axis=2), count[:, None])


def _rows(column: tf.Tensor, items: tf.Tensor) -> tf.Tensor:
    """A column's rows; row 0 of items that are newer than it."""
    return tf.gather(column, tf.where(items < tf.shape(column)[0], items, 0))
