"""Where negatives come from, and the loss of few of them.

In-batch negatives with logQ are :func:`tfrec.models.blocked_softmax.in_batch`; negatives drawn for all users together
become further candidates of it, with the probabilities of :func:`mixed`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import tensorflow as tf

from tfrec.errors import TrainingError
from tfrec.models.losses import LOWEST

Seed: TypeAlias = tf.Tensor | Sequence[int]


def uniform(shape: Sequence[int], items: int, seed: Seed) -> tf.Tensor:
    """Item indices 1 … N, all equally likely; int32 of this shape.

    Args:
        shape: of the result.
        items: N.
        seed: two integers; equal seeds draw equal items.
    """
    return tf.random.stateless_uniform(shape, seed, 1, items + 1, tf.int32)


def by_popularity(shape: Sequence[int], counts: tf.Tensor, seed: Seed, power: float = 1.0) -> tf.Tensor:
    """Item indices drawn with q_i = c_i^α / Σ_j c_j^α; int32 of this shape.

    Args:
        shape: of the result.
        counts: [N+1], some above 0; row 0 is never drawn.
        seed: two integers.
        power: α; word2vec draws with 0.75 (arXiv 1310.4546).
    """
    chances = _chances(counts, power)
    # float32 sums would lose the rare items of a large catalogue.
    total = tf.cumsum(tf.cast(chances, tf.float64))
    point = tf.random.stateless_uniform(shape, seed, dtype=tf.float64) * total[-1]
    drawn = tf.searchsorted(total, tf.reshape(point, [-1]), side="right")
    # Rounding may put a point on the end of the last item.
    last = tf.reduce_max(tf.where(chances > 0, tf.range(tf.size(chances)), 0))
    return tf.reshape(tf.minimum(drawn, last), shape)


def popularity_share(counts: tf.Tensor, power: float = 1.0) -> tf.Tensor:
    """The chance of each item in one draw of :func:`by_popularity`, float32 [N+1]; 0 in row 0."""
    chances = _chances(counts, power)
    return chances / tf.reduce_sum(chances)


def _chances(counts: tf.Tensor, power: float) -> tf.Tensor:
    weights = tf.where(counts > 0, tf.pow(tf.cast(counts, tf.float32), power), 0.0)
    return weights * tf.cast(tf.range(tf.size(counts)) > 0, tf.float32)


def mixed(ids: tf.Tensor, share: tf.Tensor, extra: int, seed: Seed) -> tuple[tf.Tensor, tf.Tensor]:
    """Mixed negative sampling: the batch's items and uniform ones of the catalogue, with the chances of the mixture.

        q_i = (B · p_i + B' / N) / (B + B')

    Args:
        ids: int32 [B], the batch's targets.
        share: float32 [N+1], the chance p of an item in a batch position.
        extra: B', uniform items.
        seed: two integers.

    Returns:
        int32 [B + B'] items and float32 [B + B'] probabilities, as the loss of in-batch candidates takes them.

    Source: Yang et al. 2020, Mixed negative sampling for learning two-tower neural networks in recommendations.
    """
    items = share.shape[0] - 1
    candidates = tf.concat([ids, uniform([extra], items, seed)], axis=0)
    own = tf.cast(tf.size(ids), tf.float32)
    return candidates, (own * tf.gather(share, candidates) + extra / items) / (own + extra)


def remove_hits(logits: tf.Tensor, ids: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
    """Lowers the logits of negatives that are the user's target, or padding, to -1e9.

    Args:
        logits: float32 [M, K].
        ids: int32 [K] or [M, K] items.
        targets: int32 [M].
    """
    return tf.where((ids == targets[:, None]) | (ids == 0), LOWEST, logits)


def hardest(logits: tf.Tensor, ids: tf.Tensor, targets: tf.Tensor, count: int) -> tuple[tf.Tensor, tf.Tensor]:
    """The negatives that a user scores highest, accidental hits apart.

    Args:
        logits: float32 [M, K].
        ids: int32 [K] or [M, K] items; 0 is padding.
        targets: int32 [M].
        count: H, negatives kept.

    Returns:
        int32 [M, H] columns, best first, and float32 [M, H] logits: -1e9 where a user has fewer negatives.

    Raises:
        TrainingError: more are asked for than there are candidates.

    Source: Schroff et al. 2015, FaceNet, arXiv 1503.03832.
    """
    if count > logits.shape[1]:
        raise TrainingError("hard negatives must be at most the candidates", count, f"There are {logits.shape[1]}")
    values, columns = tf.math.top_k(remove_hits(logits, ids, targets), count)
    return columns, values


def gbce_loss(positive: tf.Tensor, negative: tf.Tensor, items: int, calibration: float = 0.75) -> tf.Tensor:
    """Generalised binary cross-entropy: undoes the overconfidence that few sampled negatives cause.

        L = −(β log σ(s⁺) + Σ_k log(1 − σ(s⁻_k))) / (K + 1),   β = α (t (1 − 1/α) + 1/α),   α = K / (N − 1)

    Args:
        positive: float32 [M] logits.
        negative: float32 [M, K] logits of uniform negatives; one of -1e9 adds nothing.
        items: N.
        calibration: t, from 0 (binary cross-entropy) to 1 (calibrated to the softmax).

    Returns:
        float32 [M].

    Raises:
        TrainingError: t is outside [0, 1], or K outside [1, N − 1].

    Source: Petrov and Macdonald 2023, gSASRec, arXiv 2308.07192.
    """
    count = negative.shape[1]
    if not 0 <= calibration <= 1:
        raise TrainingError("the calibration of gBCE must be from 0 to 1", calibration)
    if not 1 <= count < items:
        raise TrainingError(f"gBCE must have 1 to N - 1 = {items - 1} negatives", count)
    rate = count / (items - 1)
    beta = rate * (calibration * (1 - 1 / rate) + 1 / rate)
    terms = beta * tf.nn.softplus(-positive) + tf.reduce_sum(tf.nn.softplus(negative), axis=1)
    return terms / (count + 1)
