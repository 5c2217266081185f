"""What a retrieval model is trained to do with a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import tensorflow as tf

from tfrec.models.losses import in_batch_loss, softmax_loss
from tfrec.models.two_tower import TwoTower

Batch = Mapping[str, tf.Tensor]
# Sums, not means: only the trainer knows the weight of the global batch.
Objective = Callable[[Batch], tuple[tf.Tensor, tf.Tensor]]


def next_item_softmax(model: TwoTower) -> Objective:
    """Every position of a history against the whole catalogue; item vectors are computed once a step."""
    catalogue = tf.range(model.sizes["items"] + 1)

    def objective(batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
        items = model.item_vectors(catalogue, training=True)  # [N + 1, d]
        users, targets = _positions(model, tf.gather(items, batch["history"]), batch)
        # Most histories are shorter than a row: padding must not be multiplied with the whole catalogue.
        kept = tf.where(targets > 0)[:, 0]
        losses = softmax_loss(tf.gather(users, kept), items, tf.gather(targets, kept), model.temperature)
        return tf.reduce_sum(losses), tf.cast(tf.size(kept), losses.dtype)

    return objective


def next_item_in_batch(model: TwoTower, target_counts: np.ndarray) -> Objective:
    """Every position against the targets of the global batch, with logQ correction.

    Args:
        model: its item tower runs on the distinct items of the batch only.
        target_counts: [N + 1] how often each item is a target in the training data.
    """
    share = tf.constant(target_counts / max(target_counts.sum(), 1), tf.float32)

    def objective(batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
        history, wanted = batch["history"], batch["target"]
        distinct, place = tf.unique(tf.concat([tf.reshape(history, [-1]), tf.reshape(wanted, [-1])], axis=0))
        vectors = tf.gather(model.item_vectors(distinct, training=True), place)
        read = tf.reshape(vectors[: tf.size(history)], [*history.shape, model.settings.dimension])
        users, targets = _positions(model, read, batch)
        candidates, ids, first = _gather_replicas(vectors[tf.size(history) :], targets)
        labels = first + tf.range(tf.size(targets))
        losses = in_batch_loss(users, candidates, labels, ids, tf.gather(share, ids), model.temperature)
        return _sums(losses, targets)

    return objective


def _positions(model: TwoTower, items: tf.Tensor, batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
    """User vectors [M, d] and targets [M] of all target positions, M = B · T."""
    users = model.user_vectors(items, batch["history"] > 0, batch["user"], training=True)
    users = users[:, -batch["target"].shape[1] :]  # [B, T, d]
    return tf.reshape(users, [-1, users.shape[-1]]), tf.reshape(batch["target"], [-1])


def _sums(losses: tf.Tensor, targets: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    weights = tf.cast(targets > 0, losses.dtype)
    # where, not a product: the loss of a padding position may be infinite.
    return tf.reduce_sum(tf.where(targets > 0, losses, 0.0)), tf.reduce_sum(weights)


def _gather_replicas(vectors: tf.Tensor, ids: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor | int]:
    """Candidates of every replica, so that N replicas optimise the objective of one; and where ours begin."""
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return vectors, ids, 0
    first = context.replica_id_in_sync_group * tf.size(ids)
    return context.all_gather(vectors, axis=0), context.all_gather(ids, axis=0), first
