"""How a candidate goes with the items before it: words that both have, and how often it came soon after them."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from tfrec.models.blend import sum_by_item

COMPARED = 5  # last items whose words are compared
FOLLOWED = 20  # last items whose followers count
_FADE = 0.7
_FOLLOW_FADE = 0.8


class Words(NamedTuple):
    """Words of every item as a sparse unit vector.

    Args:
        ids: int32 [N+1, w], 0 = none.
        weights: float32 [N+1, w], 0 where there is no word.
        size: V, the largest id.
    """

    ids: tf.Tensor
    weights: tf.Tensor
    size: int


class Followers(NamedTuple):
    """Items that come soon after each one: ids int32 [N+1, m], 0 = none, and weights float32 [N+1, m]."""

    ids: tf.Tensor
    weights: tf.Tensor


def common_words(words: Words, history: tf.Tensor, items: tf.Tensor) -> dict[str, tf.Tensor]:
    """Cosines of the words of candidates to those of the last items, name -> float32 [B, C].

        words_last    to the last item
        words_near    the largest to the last 5 that are another item
        words_mean    mean over the last 5, weighed by 0.7^age

    Args:
        words: of the items; those beyond it have none.
        history: int32 [B, L], oldest first, 0 on the left.
        items: int32 [B, C].
    """
    recent = _last(history, COMPARED)
    rows, width = tf.shape(recent)[0], words.size + 1
    place = _rows(words.ids, recent) + tf.reshape(tf.range(rows * COMPARED), [rows, COMPARED, 1]) * width
    flat = (tf.reshape(x, [-1]) for x in (_rows(words.weights, recent), place))
    profiles = tf.reshape(tf.math.unsorted_segment_sum(*flat, rows * COMPARED * width), [rows, COMPARED, width])
    shared = tf.gather(profiles, _rows(words.ids, items), axis=2, batch_dims=1)  # [B, 5, C, w]
    cosine = tf.reduce_sum(shared * _rows(words.weights, items)[:, None], axis=3)
    there = recent > 0
    other = there[:, :, None] & (recent[:, :, None] != items[:, None])
    fade = tf.cast(there, tf.float32) * tf.pow(_FADE, tf.range(COMPARED - 1, -1, -1, tf.float32))
    mean = tf.math.divide_no_nan(tf.einsum("bl,blc->bc", fade, cosine), tf.reduce_sum(fade, 1)[:, None])
    near = tf.reduce_max(tf.where(other, cosine, 0.0), axis=1)
    return {"words_last": cosine[:, -1], "words_near": near, "words_mean": mean}


def follows(followers: Followers, history: tf.Tensor, items: tf.Tensor, count: tf.Tensor) -> dict[str, tf.Tensor]:
    """How often candidates come soon after items of the history, name -> float32 [B, C].

        follows_last    weight after the last item
        follows         Σ 0.8^age of the weights after the last 20

    Args:
        followers: of the items; those beyond it have none.
        history: int32 [B, L], oldest first, 0 on the left.
        items: int32 [B, C].
        count: M, the catalogue's items.
    """
    recent = _last(history, FOLLOWED)
    ids, weights = _rows(followers.ids, recent), _rows(followers.weights, recent)  # [B, 20, m]
    fade = tf.pow(_FOLLOW_FADE, tf.range(FOLLOWED - 1, -1, -1, tf.float32))[:, None]
    last = sum_by_item(ids[:, -1:], weights[:, -1:], count)
    found = {"follows_last": last, "follows": sum_by_item(ids, weights * fade, count)}
    return {name: tf.gather(x, items, batch_dims=1) * tf.cast(items > 0, tf.float32) for name, x in found.items()}


def _last(history: tf.Tensor, count: int) -> tf.Tensor:
    """The last items of each row, [B, count]."""
    return tf.pad(history, [[0, 0], [count, 0]])[:, -count:]


def _rows(table: tf.Tensor, items: tf.Tensor) -> tf.Tensor:
    """A table's rows; row 0 of items that are newer than it."""
    return tf.gather(table, tf.where(items < tf.shape(table)[0], items, 0))
