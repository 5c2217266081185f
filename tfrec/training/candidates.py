"""What the towers compute of a batch: its distinct items, and its users at every position."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import tensorflow as tf

from tfrec.models.negatives import Negatives
from tfrec.models.two_tower import TwoTower
from tfrec.training.sparse import distinct_rows

# Beside the columns, "clock": int64 [2], epoch and step, from which random draws follow.
Batch = Mapping[str, tf.Tensor]


class CandidateRows(NamedTuple):
    """Vectors [C, d] of the items ``ids`` [C], where targets [M] and drawn items [K] are among them, and of histories
    [B, L, d]."""

    ids: tf.Tensor
    vectors: tf.Tensor
    own: tf.Tensor
    others: tf.Tensor
    history: tf.Tensor


def candidate_rows(model: TwoTower, batch: Batch, drawn: Negatives | None, static: bool) -> CandidateRows:
    """The item tower on each distinct item of a batch and its negatives."""
    wanted, history = tf.reshape(batch["target"], [-1]), batch["history"]
    others = drawn.draw(batch["clock"]) if drawn else wanted[:0]
    size, find = tf.size(wanted), _sorted if static else _hashed
    found = find(tf.concat([wanted, others], axis=0), tf.reshape(history, [-1]), model.sizes["items"] + 1)
    vectors = model.item_vectors(found.rows, training=True)
    return CandidateRows(
        tf.gather(found.rows, found.candidates),
        tf.gather(vectors, found.candidates),
        found.place[:size],
        found.place[size:],
        tf.reshape(tf.gather(vectors, found.read), [*history.shape, model.settings.dimension]),
    )


class _Found(NamedTuple):
    """Distinct items, which of them are candidates, where each wanted id is among those, and where each id read is."""

    rows: tf.Tensor
    candidates: tf.Tensor
    place: tf.Tensor
    read: tf.Tensor


def _hashed(wanted: tf.Tensor, read: tf.Tensor, most: int) -> _Found:
    """No more rows than there are distinct ids, so that a batch which repeats its items costs less."""
    rows, place = tf.unique(tf.concat([wanted, read], axis=0))
    size = tf.size(wanted)
    # Distinct ids come in the order in which they are first seen.
    return _Found(rows, tf.range(tf.reduce_max(place[:size]) + 1), place[:size], place[size:])


def _sorted(wanted: tf.Tensor, read: tf.Tensor, most: int) -> _Found:
    """As many rows as there may be distinct ids, which shapes alone tell."""
    ids, place, _ = distinct_rows(wanted, most)
    rows, where, _ = distinct_rows(tf.concat([ids, read], axis=0), most)
    return _Found(rows, where[: tf.size(ids)], place, where[tf.size(ids) :])


def without_padding(targets: tf.Tensor, *columns: tf.Tensor) -> list[tf.Tensor]:
    kept = tf.where(targets > 0)[:, 0]
    return [tf.gather(column, kept) for column in columns]


def positions(model: TwoTower, items: tf.Tensor, batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
    """User vectors [M, d] and targets [M] of all target positions, M = B · T."""
    users = model.user_vectors(items, batch["history"] > 0, batch["user"], training=True)
    users = users[:, -batch["target"].shape[1] :]  # [B, T, d]
    return tf.reshape(users, [-1, users.shape[-1]]), tf.reshape(batch["target"], [-1])
