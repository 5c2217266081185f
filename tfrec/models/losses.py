"""Retrieval losses: pure functions of vectors, indices and weights."""

from __future__ import annotations

import tensorflow as tf

from tfrec.errors import TrainingError
from tfrec.models import tfrs

LOWEST = -1e9


def softmax_loss(users: tf.Tensor, items: tf.Tensor, targets: tf.Tensor, temperature: tf.Tensor) -> tf.Tensor:
    """Cross-entropy over the whole catalogue.

        L_m = −τ u_m·v_{t_m} + log Σ_{n≥1} exp τ u_m·v_n

    Args:
        users: float32 [M, d].
        items: float32 [N+1, d]; row 0 is no item and never a negative.
        targets: int32 [M] rows of ``items``, at least 1.
        temperature: scalar τ.

    Returns:
        float32 [M].
    """
    logits = temperature * tf.matmul(users, items[1:], transpose_b=True)  # [M, N]
    return tf.nn.sparse_softmax_cross_entropy_with_logits(targets - 1, logits)


def in_batch_loss(
    users: tf.Tensor,
    candidates: tf.Tensor,
    labels: tf.Tensor,
    ids: tf.Tensor,
    probabilities: tf.Tensor,
    temperature: tf.Tensor,
    hard_negatives: int = 0,
) -> tf.Tensor:
    """Cross-entropy over the candidates of the batch, corrected for how often each is drawn.

        logit_mn = τ u_m·v_n − log q_n,  without n whose id equals that of m's own candidate

    The plain definition, with every logit in memory; :mod:`tfrec.models.blocked_softmax` computes the same.

    Args:
        users: float32 [M, d].
        candidates: float32 [C, d].
        labels: int32 [M], the candidate of each user.
        ids: int32 [C] item indices; 0 is padding and never a negative.
        probabilities: float32 [C], the chance q that the item is in a batch position; below 1e-6 counts as 1e-6.
        temperature: scalar τ.
        hard_negatives: most negatives of a row, those with the highest logits; 0 = all.

    Returns:
        float32 [M].

    Source: Yi et al. 2019, Sampling-bias-corrected neural modeling for large corpus item recommendations.
    """
    logits = temperature * tf.matmul(users, candidates, transpose_b=True)  # [M, C]
    logits = tfrs.sampling_probability_correction(logits, probabilities)
    logits = tf.where(ids[None, :] == 0, LOWEST, logits)
    one_hot = tf.one_hot(labels, tf.shape(candidates)[0])
    logits = tfrs.remove_accidental_hits(one_hot, logits, ids)
    if hard_negatives:
        logits, one_hot = tfrs.hardest_negatives(one_hot, logits, hard_negatives)
    return tf.nn.softmax_cross_entropy_with_logits(one_hot, logits)


def sampled_softmax_loss(
    positive: tf.Tensor, negative: tf.Tensor, positive_chance: tf.Tensor, negative_chances: tf.Tensor
) -> tf.Tensor:
    """Cross-entropy of the target among sampled negatives, corrected for how often each is drawn.

        z = s − log q,   L = log(exp z⁺ + Σ_k exp z⁻_k) − z⁺

    Args:
        positive: float32 [M] logits.
        negative: float32 [M, K] logits; one of -1e9 adds nothing.
        positive_chance: float32 [M], the chance q that a draw is the target.
        negative_chances: float32 [K], that it is this negative.

    Returns:
        float32 [M].

    Source: Jean et al. 2015, On using very large target vocabulary, arXiv 1412.2007.
    """
    own = (positive - _log(positive_chance))[:, None]
    logits = tf.concat([own, negative - _log(negative_chances)], axis=1)
    return tf.reduce_logsumexp(logits, axis=1) - own[:, 0]


def gbce_loss(positive: tf.Tensor, negative: tf.Tensor, items: int, calibration: float) -> tf.Tensor:
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
        TrainingError: K is outside [1, N − 1].

    Source: Petrov and Macdonald 2023, gSASRec, arXiv 2308.07192.
    """
    count = negative.shape[1]
    if not 1 <= count < items:
        advice = 'Set train.negatives, or train.loss = "softmax" for a small catalogue'
        raise TrainingError(f"gbce must draw 1 to {items - 1} negatives from a catalogue of {items}", count, advice)
    rate = count / (items - 1)
    beta = rate * (calibration * (1 - 1 / rate) + 1 / rate)
    terms = beta * tf.nn.softplus(-positive) + tf.reduce_sum(tf.nn.softplus(negative), axis=1)
    return terms / (count + 1)


def _log(chances: tf.Tensor) -> tf.Tensor:
    return tf.math.log(tf.maximum(chances, 1e-12))  # the padding's is 0
