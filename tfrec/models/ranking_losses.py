"""Losses of rankers: pure functions of logits and labels, one number a row (or request)."""

from __future__ import annotations

import math

import tensorflow as tf


def bce(logits: tf.Tensor, labels: tf.Tensor, positive_weight: float = 1.0) -> tf.Tensor:
    """Binary cross-entropy, in which a positive weighs ``positive_weight``.

        L = −w y log σ(x) − (1 − y) log(1 − σ(x))

    Args:
        logits: float32 [...].
        labels: float32 [...], 0 or 1.
        positive_weight: w.

    Returns:
        float32 [...].
    """
    # TensorFlow's own has the gradient 1 in place of ½ at a logit of exactly 0, where linear models start.
    return positive_weight * labels * tf.nn.softplus(-logits) + (1 - labels) * tf.nn.softplus(logits)


def focal(logits: tf.Tensor, labels: tf.Tensor, focus: float = 2.0) -> tf.Tensor:
    """Cross-entropy that fades for rows already right.

        L = −(1 − p_t)^γ log p_t,   p_t = the probability of the label

    Source: Lin et al. 2017, arXiv 1708.02002.

    Args:
        logits, labels: float32 [...].
        focus: γ.

    Returns:
        float32 [...].
    """
    own = tf.where(labels > 0.5, logits, -logits)
    return tf.exp(-focus * tf.nn.softplus(own)) * tf.nn.softplus(-own)


def bpr(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Mean over pairs of a positive and a negative of the same request.

        L = mean_{i: y_i = 1, j: y_j = 0} −log σ(x_i − x_j);   0 without a pair

    Source: Rendle et al. 2009, arXiv 1205.2618.

    Args:
        logits, labels: float32 [B, N].

    Returns:
        float32 [B].
    """
    pairs = labels[:, :, None] * (1 - labels)[:, None, :]  # [B, N, N]
    losses = tf.nn.softplus(logits[:, None, :] - logits[:, :, None])
    return tf.math.divide_no_nan(tf.reduce_sum(pairs * losses, [1, 2]), tf.reduce_sum(pairs, [1, 2]))


def listwise(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Cross-entropy of the candidates' softmax against the labels' shares.

        L = −Σ_i y_i / Σ y · log softmax(x)_i;   0 without a positive

    Source: Cao et al. 2007, Learning to rank: from pairwise approach to listwise approach.

    Args:
        logits: float32 [B, N].
        labels: float32 [B, N], not negative.

    Returns:
        float32 [B].
    """
    shares = tf.math.divide_no_nan(labels, tf.reduce_sum(labels, 1, keepdims=True))
    return -tf.reduce_sum(shares * tf.nn.log_softmax(logits), 1)


def mse(predictions: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Squared difference, float32 [...]."""
    return tf.square(predictions - labels)


def ziln(outputs: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """Negative log-likelihood of a zero-inflated log-normal: money that is mostly 0, with a heavy tail.

        L = BCE(p; v > 0) + 1[v > 0] · (log(v σ √2π) + (log v − μ)² / 2σ²)

    with (logit of p, μ, s) = outputs and σ = softplus(s), at least 1e-3.
    Source: Wang, Liu & Miao 2019, arXiv 1912.07753.

    Args:
        outputs: float32 [..., 3].
        values: float32 [...], not negative.

    Returns:
        float32 [...].
    """
    logit, mean, scale = outputs[..., 0], outputs[..., 1], _scale(outputs)
    paid = tf.cast(values > 0, tf.float32)
    log_value = tf.math.log(tf.where(values > 0, values, 1.0))
    density = log_value + tf.math.log(scale * math.sqrt(2 * math.pi)) + tf.square((log_value - mean) / scale) / 2
    return bce(logit, paid) + paid * density


def ziln_mean(outputs: tf.Tensor) -> tf.Tensor:
    """Expected value p exp(μ + σ²/2), float32 [...], of outputs [..., 3]; the exponent is at most 30."""
    exponent = outputs[..., 1] + tf.square(_scale(outputs)) / 2
    return tf.sigmoid(outputs[..., 0]) * tf.exp(tf.minimum(exponent, 30.0))


def _scale(outputs: tf.Tensor) -> tf.Tensor:
    return tf.maximum(tf.nn.softplus(outputs[..., 2]), 1e-3)


def survival(hazards: tf.Tensor, period: tf.Tensor, observed: tf.Tensor) -> tf.Tensor:
    """Negative log-likelihood of leaving in discrete time.

        L = −Σ_{t < T} log(1 − h_t) − (log h_T if observed else log(1 − h_T)),   h = σ(hazards)

    The next period's activity is 1 − h_0. Source: Gensheimer & Narasimhan 2019, arXiv 1805.00917.

    Args:
        hazards: logits of leaving in each period, given that one stayed so far, float32 [..., P].
        period: int32 [...], T: the period of leaving, or the last one stayed to its end; −1 = none, whose loss is 0.
        observed: bool [...]: whether leaving was seen.

    Returns:
        float32 [...].
    """
    places = tf.range(tf.shape(hazards)[-1])
    stayed = tf.cast(places <= period[..., None], tf.float32)
    left = tf.cast((places == period[..., None]) & observed[..., None], tf.float32)
    # log(1 − h) = −softplus(x) and log h = x − softplus(x)
    return tf.reduce_sum(stayed * tf.nn.softplus(hazards) - left * hazards, -1)


def retention(hazards: tf.Tensor, horizon: int) -> tf.Tensor:
    """The chance to stay through the first periods, Π_{t < horizon} (1 − h_t).

    Args:
        hazards: logits of leaving in each period, float32 [..., P].
        horizon: 1 to P.

    Returns:
        float32 [...].
    """
    return tf.exp(-tf.reduce_sum(tf.nn.softplus(hazards[..., :horizon]), -1))


def uncertainty_weighted(losses: tf.Tensor, log_variances: tf.Tensor) -> tf.Tensor:
    """Losses of tasks weighed by learned uncertainties.

        L = Σ_t exp(−s_t) L_t + s_t / 2

    Source: Kendall, Gal & Cipolla 2018, arXiv 1705.07115.

    Args:
        losses: float32 [..., T].
        log_variances: s, float32 [T].

    Returns:
        float32 [...].
    """
    return tf.reduce_sum(tf.exp(-log_variances) * losses + log_variances / 2, -1)
