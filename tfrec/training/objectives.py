"""What a retrieval model is trained to do with a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import tensorflow as tf

from tfrec.models.blocked_softmax import in_batch, in_batch_counted, over_catalogue
from tfrec.models.losses import in_batch_loss
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
        weights = tf.ones([tf.size(kept)])
        softmax = over_catalogue(tf.gather(users, kept), items, tf.gather(targets, kept), model.temperature)
        return softmax.weighted_sum(weights), tf.reduce_sum(weights)

    return objective


def next_item_in_batch(model: TwoTower, target_counts: np.ndarray, hard_negatives: int = 0) -> Objective:
    """Every position against the targets of the global batch, with logQ correction.

    Args:
        model: its item tower runs on the distinct items of the batch only.
        target_counts: [N + 1] how often each item is a target in the training data.
        hard_negatives: most negatives of a position, the hardest; 0 = the whole batch.
    """
    share = tf.constant(target_counts / max(target_counts.sum(), 1), tf.float32)

    def objective(batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
        history, wanted = batch["history"], batch["target"]
        # Targets first: their distinct items are then the first rows.
        distinct, place = tf.unique(tf.concat([tf.reshape(wanted, [-1]), tf.reshape(history, [-1])], axis=0))
        vectors = model.item_vectors(distinct, training=True)
        own, read = place[: tf.size(wanted)], place[tf.size(wanted) :]
        read = tf.reshape(tf.gather(vectors, read), [*history.shape, model.settings.dimension])
        users, targets = _positions(model, read, batch)
        weights = tf.cast(targets > 0, tf.float32)
        if _one_replica() and not hard_negatives:
            some = tf.reduce_max(own) + 1
            counts = tf.math.unsorted_segment_sum(weights, own, some)
            chances = tf.gather(share, distinct[:some])
            softmax = in_batch_counted(users, vectors[:some], own, counts, chances, model.temperature)
        else:
            candidates, ids, first = _gather_replicas(tf.gather(vectors, own), targets)
            given = users, candidates, first + tf.range(tf.size(targets)), ids, tf.gather(share, ids), model.temperature
            if hard_negatives:
                losses = tf.where(targets > 0, in_batch_loss(*given, hard_negatives), 0.0)
                return tf.reduce_sum(losses), tf.reduce_sum(weights)
            softmax = in_batch(*given)
        return softmax.weighted_sum(weights), tf.reduce_sum(weights)

    return objective


def _positions(model: TwoTower, items: tf.Tensor, batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
    """User vectors [M, d] and targets [M] of all target positions, M = B · T."""
    users = model.user_vectors(items, batch["history"] > 0, batch["user"], training=True)
    users = users[:, -batch["target"].shape[1] :]  # [B, T, d]
    return tf.reshape(users, [-1, users.shape[-1]]), tf.reshape(batch["target"], [-1])


def _one_replica() -> bool:
    context = tf.distribute.get_replica_context()
    return context is None or context.num_replicas_in_sync == 1


def _gather_replicas(vectors: tf.Tensor, ids: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Candidates of every replica, so that N replicas optimise the objective of one; and where ours begin."""
    if _one_replica():
        return vectors, ids, tf.constant(0)
    context = tf.distribute.get_replica_context()
    first = context.replica_id_in_sync_group * tf.size(ids)
    return context.all_gather(vectors, axis=0), context.all_gather(ids, axis=0), first
