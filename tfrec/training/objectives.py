"""What a retrieval model is trained to do with a batch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from tfrec.models.blocked_softmax import Softmax, in_batch, in_batch_counted, over_catalogue
from tfrec.models.losses import gbce_loss, in_batch_loss, sampled_softmax_loss
from tfrec.models.negatives import Negatives, mixed_chances, remove_hits
from tfrec.models.two_tower import TwoTower
from tfrec.training.candidates import Batch, CandidateRows, candidate_rows, positions, without_padding

# Sums, not means: only the trainer knows the weight of the global batch.
Objective = Callable[[Batch], tuple[tf.Tensor, tf.Tensor]]
# (positive [M], negative [M, K] logits, targets [M], negatives [K]) -> [M]
SampledLoss = Callable[[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]


def next_item_softmax(model: TwoTower, static: bool = False) -> Objective:
    """Every position of a history against the whole catalogue; item vectors are computed once a step.

    Args:
        model: learns.
        static: shapes that do not depend on values, as XLA needs.
    """
    catalogue = tf.range(model.sizes["items"] + 1)

    def objective(batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
        items = model.item_vectors(catalogue, training=True)  # [N + 1, d]
        users, targets = positions(model, tf.gather(items, batch["history"]), batch)
        # Most histories are shorter than a row: padding must not be multiplied with the whole catalogue.
        users, targets = (users, targets) if static else without_padding(targets, users, targets)
        weights = tf.cast(targets > 0, tf.float32)
        softmax = over_catalogue(users, items, tf.maximum(targets, 1), model.temperature)
        return softmax.weighted_sum(weights), tf.reduce_sum(weights)

    return objective


def next_item_in_batch(
    model: TwoTower,
    target_counts: np.ndarray,
    hard_negatives: int = 0,
    drawn: Negatives | None = None,
    static: bool = False,
) -> Objective:
    """Every position against the targets of the global batch, with logQ correction.

    Args:
        model: its item tower runs on the distinct items of the batch only.
        target_counts: [N + 1] how often each item is a target in the training data.
        hard_negatives: most negatives of a position, the hardest; 0 = the whole batch.
        drawn: further candidates, which make it mixed negative sampling.
        static: shapes that do not depend on values, as XLA needs.
    """
    share = tf.constant(target_counts / max(target_counts.sum(), 1), tf.float32)

    def objective(batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
        rows = candidate_rows(model, batch, drawn, static)
        users, targets = positions(model, rows.history, batch)
        weights = tf.cast(targets > 0, tf.float32)
        if not hard_negatives and _one_replica():
            chances = _chances(share, rows.ids, tf.reduce_sum(weights), drawn)
            softmax = _counted(model, users, weights, rows, chances)
            return softmax.weighted_sum(weights), tf.reduce_sum(weights)
        candidates, ids, first = _gather_replicas(tf.gather(rows.vectors, rows.own), targets)
        size = tf.reduce_sum(tf.cast(ids > 0, tf.float32))
        candidates = tf.concat([candidates, tf.gather(rows.vectors, rows.others)], axis=0)
        ids = tf.concat([ids, tf.gather(rows.ids, rows.others)], axis=0)
        chances = _chances(share, ids, size, drawn)
        given = users, candidates, first + tf.range(tf.size(targets)), ids, chances, model.temperature
        if not hard_negatives:
            return in_batch(*given).weighted_sum(weights), tf.reduce_sum(weights)
        losses = tf.where(targets > 0, in_batch_loss(*given, hard_negatives), 0.0)
        return tf.reduce_sum(losses), tf.reduce_sum(weights)

    return objective


def next_item_sampled_softmax(model: TwoTower, drawn: Negatives, static: bool = False) -> Objective:
    """Every position against drawn items, corrected by the chances of a draw.

    Args:
        model: its item tower runs on the distinct items of the batch and the draw only.
        drawn: the negatives of a step, shared by all positions, parts and replicas.
        static: shapes that do not depend on values, as XLA needs.
    """

    def loss(positive: tf.Tensor, negative: tf.Tensor, targets: tf.Tensor, ids: tf.Tensor) -> tf.Tensor:
        chances = drawn.chances
        return sampled_softmax_loss(positive, negative, tf.gather(chances, targets), tf.gather(chances, ids))

    return _sampled(model, drawn, loss, static)


def next_item_gbce(model: TwoTower, drawn: Negatives, calibration: float, static: bool = False) -> Objective:
    """Every position as a binary choice, yes for the target and no for each drawn item.

    The paper draws for every position; one draw for all has the same expected gradient, and is one product of matrices.
    Its logits have any length, cosines do not: log(N − 1), the odds against an item taken at random, is subtracted.

    Args:
        model: its item tower runs on the distinct items of the batch and the draw only.
        drawn: uniform negatives of a step, shared by all positions, parts and replicas.
        calibration: t of :func:`tfrec.models.losses.gbce_loss`.
        static: shapes that do not depend on values, as XLA needs.
    """
    items = model.sizes["items"]
    odds = float(np.log(max(items - 1, 1)))

    def loss(positive: tf.Tensor, negative: tf.Tensor, *_: tf.Tensor) -> tf.Tensor:
        return gbce_loss(positive - odds, negative - odds, items, calibration)

    return _sampled(model, drawn, loss, static)


def _sampled(model: TwoTower, drawn: Negatives, loss: SampledLoss, static: bool) -> Objective:
    def objective(batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
        rows = candidate_rows(model, batch, drawn, static)
        users, targets = positions(model, rows.history, batch)
        given = users, rows.own, targets
        users, own, targets = given if static else without_padding(targets, *given)
        users *= model.temperature
        ids = tf.gather(rows.ids, rows.others)
        positive = tf.reduce_sum(users * tf.gather(rows.vectors, own), axis=1)  # [M]
        negative = tf.matmul(users, tf.gather(rows.vectors, rows.others), transpose_b=True)  # [M, K]
        losses = loss(positive, remove_hits(negative, ids, targets), targets, ids)
        return tf.reduce_sum(tf.where(targets > 0, losses, 0.0)), tf.reduce_sum(tf.cast(targets > 0, tf.float32))

    return objective


def _counted(model: TwoTower, users: tf.Tensor, weights: tf.Tensor, rows: CandidateRows, chances: tf.Tensor) -> Softmax:
    draws = tf.concat([weights, tf.ones_like(rows.others, tf.float32)], axis=0)
    places = tf.concat([rows.own, rows.others], axis=0)
    counts = tf.math.unsorted_segment_sum(draws, places, tf.size(rows.ids))
    return in_batch_counted(users, rows.vectors, rows.own, counts, chances, model.temperature)


def _chances(share: tf.Tensor, ids: tf.Tensor, own: tf.Tensor, drawn: Negatives | None) -> tf.Tensor:
    in_batch = tf.gather(share, ids)
    if drawn is None:
        return in_batch
    return mixed_chances(in_batch, own, tf.gather(drawn.chances, ids), drawn.number)


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
