"""How a candidate goes with the items before it: words that both have, and how often it came soon after them."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

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
    own, earlier = _rows(words.weights, items), _rows(words.weights, recent)
    values = earlier[..., None] * tf.eye(COMPARED)[None, :, None]  # [B, 5, w, 5], a column for each place
    profiles = _sums(_rows(words.ids, recent), values, words.size + 1)
    shared = _looked_up(profiles, _rows(words.ids, items), words.size + 1)  # [B, C, w, 5]
    cosine = tf.transpose(tf.reduce_sum(shared * own[..., None], axis=2), [0, 2, 1])
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
    fade = tf.pow(_FOLLOW_FADE, tf.range(FOLLOWED - 1, -1, -1, tf.float32))
    last = tf.one_hot(FOLLOWED - 1, FOLLOWED)
    values = _rows(followers.weights, recent)[..., None] * tf.stack([last, fade], axis=1)[:, None]  # [B, 20, m, 2]
    sums = _sums(_rows(followers.ids, recent), values, count + 1)
    found = tf.where(items[..., None] > 0, _looked_up(sums, items, count + 1), 0.0)
    return {"follows_last": found[..., 0], "follows": found[..., 1]}


def _sums(ids: tf.Tensor, values: tf.Tensor, size: tf.Tensor | int) -> tf.Tensor:
    """Adds values [B, L, m, x] up by their ids [B, L, m] < size, of each row apart, float32 [B · size, x]."""
    rows = tf.shape(ids)[0]
    place = ids + tf.reshape(tf.range(rows) * size, [rows, 1, 1])
    flat = tf.reshape(values, [-1, values.shape[-1]])
    return tf.math.unsorted_segment_sum(flat, tf.reshape(place, [-1]), rows * size)


def _looked_up(sums: tf.Tensor, ids: tf.Tensor, size: tf.Tensor | int) -> tf.Tensor:
    """What :func:`_sums` has of ids [B, ...], float32 [B, ..., x]."""
    rows = tf.shape(ids)[0]
    return tf.gather(sums, ids + tf.reshape(tf.range(rows) * size, [rows, *[1] * (len(ids.shape) - 1)]))


def _last(history: tf.Tensor, count: int) -> tf.Tensor:
    """The last items of each row, [B, count]."""
    return tf.pad(history, [[0, 0], [count, 0]])[:, -count:]


def _rows(table: tf.Tensor, items: tf.Tensor) -> tf.Tensor:
    """A table's rows; row 0 of items that are newer than it."""
    return tf.gather(table, tf.where(items < tf.shape(table)[0], items, 0))
