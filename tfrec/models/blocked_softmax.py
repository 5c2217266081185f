"""Softmax cross-entropy in closed form, block by block: no users × candidates matrix is ever whole."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import tensorflow as tf

LOWEST = -1e9
_BLOCK_ELEMENTS = 2**20
_LEAST_ROWS = 32


@dataclass(frozen=True)
class Softmax:
    """Cross-entropy of each user's own candidate among all candidates.

        s_mn = u_m · v_n + b_n,   L_m = log Σ_n exp s_mn − (1 − ε) s_m,own − ε mean_n s_mn

    A block of users has P = softmax(U Vᵀ), ∂U = P V − V_own and ∂V = Pᵀ U − U_own: its matrix is used and forgotten.
    No gradient flows to biases.

    Args:
        users: float32 [M, d], temperature included.
        candidates: float32 [C, d].
        labels: int32 [M], the own candidate of each user.
        bias: float32 [C] or None; -1e9 masks a candidate.
        own_bias: float32 [M] or None: the bias of the own candidate, which a mask does not reach.
        hits: int32 ([M], [C]) or None: a candidate whose id is the user's target's is masked, the own one apart.
        smoothing: ε of label smoothing over the candidates that are not masked.
    """

    users: tf.Tensor
    candidates: tf.Tensor
    labels: tf.Tensor
    bias: tf.Tensor | None = None
    own_bias: tf.Tensor | None = None
    hits: tuple[tf.Tensor, tf.Tensor] | None = None
    smoothing: float = 0.0

    def losses(self) -> tf.Tensor:
        """float32 [M]; the backward pass computes the softmax again."""

        @tf.custom_gradient
        def per_row(users: tf.Tensor, candidates: tf.Tensor) -> tuple[tf.Tensor, Any]:
            softmax = self._detached(users, candidates)
            return _blocks(softmax, None)[0], lambda upstream: _blocks(softmax, upstream)[1:]

        return per_row(self.users, self.candidates)

    def weighted_sum(self, weights: tf.Tensor) -> tf.Tensor:
        """Σ_m w_m L_m, a scalar, and its gradient in one pass: faster than the sum of :meth:`losses`.

        Args:
            weights: float32 [M]; a user of weight 0 takes no part. No gradient flows to them.
        """

        @tf.custom_gradient
        def total(users: tf.Tensor, candidates: tf.Tensor) -> tuple[tf.Tensor, Any]:
            softmax = self._detached(users, candidates)
            losses, by_user, by_candidate = _blocks(softmax, weights)
            result = tf.reduce_sum(tf.where(weights != 0, weights * losses, 0.0))
            return result, lambda upstream: (upstream * by_user, upstream * by_candidate)

        return total(self.users, self.candidates)

    def _detached(self, users: tf.Tensor, candidates: tf.Tensor) -> Softmax:
        # A persistent tape would otherwise keep the loop's blocks for a second derivative, and XLA refuses that.
        return replace(self, users=tf.stop_gradient(users), candidates=tf.stop_gradient(candidates))


def over_catalogue(
    users: tf.Tensor, items: tf.Tensor, targets: tf.Tensor, temperature: tf.Tensor | float, smoothing: float = 0.0
) -> Softmax:
    """Softmax over the whole catalogue, as in :func:`tfrec.models.losses.softmax_loss`.

    Args:
        users: float32 [M, d].
        items: float32 [N+1, d]; row 0 is no item and never a negative.
        targets: int32 [M] rows of ``items``, at least 1.
        temperature: scalar τ.
        smoothing: ε.
    """
    return Softmax(temperature * users, items[1:], targets - 1, smoothing=smoothing)


def in_batch(
    users: tf.Tensor,
    candidates: tf.Tensor,
    labels: tf.Tensor,
    ids: tf.Tensor,
    probabilities: tf.Tensor,
    temperature: tf.Tensor | float,
    smoothing: float = 0.0,
) -> Softmax:
    """Softmax over the candidates of the batch with logQ correction, as in :func:`tfrec.models.losses.in_batch_loss`.

    Args:
        users: float32 [M, d].
        candidates: float32 [C, d].
        labels: int32 [M], the candidate of each user.
        ids: int32 [C] item indices; 0 is padding and never a negative.
        probabilities: float32 [C], the chance q of the item in a batch position; below 1e-6 counts as 1e-6.
        temperature: scalar τ.
        smoothing: ε.
    """
    log_q = _log(probabilities)
    bias = tf.where(ids == 0, LOWEST, -log_q)
    hits = tf.gather(ids, labels), ids
    return Softmax(temperature * users, candidates, labels, bias, -tf.gather(log_q, labels), hits, smoothing)


def in_batch_counted(
    users: tf.Tensor,
    distinct: tf.Tensor,
    labels: tf.Tensor,
    counts: tf.Tensor,
    probabilities: tf.Tensor,
    temperature: tf.Tensor | float,
) -> Softmax:
    """:func:`in_batch` with equal candidates computed once: one that is drawn c times has the bias log c − log q.

    Accidental hits are all the draws of the user's own candidate but one.

    Args:
        users: float32 [M, d].
        distinct: float32 [D, d] vectors of distinct items.
        labels: int32 [M], the row of each user's own.
        counts: float32 [D], how often each is a target of the batch; one with count 0 is never a negative.
        probabilities: float32 [D], the chance q of the item in a batch position; below 1e-6 counts as 1e-6.
        temperature: scalar τ.
    """
    log_q = _log(probabilities)
    bias = tf.where(counts > 0, tf.math.log(tf.maximum(counts, 1.0)) - log_q, LOWEST)
    return Softmax(temperature * users, distinct, labels, bias, -tf.gather(log_q, labels))


def _log(probabilities: tf.Tensor) -> tf.Tensor:
    return tf.math.log(tf.clip_by_value(probabilities, 1e-6, 1.0))


def _blocks(softmax: Softmax, weights: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Losses [M] and, with weights [M], the gradients [M, d] and [C, d] of their weighted sum."""
    users, candidates = softmax.users, softmax.candidates
    total, columns, width = _size(users), _size(candidates), users.shape[1]
    rows = _block_rows(total, columns)
    count = -(-total // rows)
    own = _own_logits(softmax)
    inputs = [_in_blocks(x, count, rows) for x in (users, softmax.labels, own, *_row_inputs(softmax, weights))]
    losses = tf.TensorArray(tf.float32, count, element_shape=[None if tf.is_tensor(rows) else rows])
    by_user = tf.TensorArray(tf.float32, count, element_shape=[None if tf.is_tensor(rows) else rows, width])

    def body(i: Any, losses: Any, by_user: Any, by_candidate: Any) -> tuple[Any, ...]:
        user, label, logit, *rest = (tf.gather(x, i) for x in inputs)
        loss, slope = _block(softmax, user, label, logit, rest[1] if softmax.hits else None)
        losses = losses.write(i, loss)
        if weights is not None:
            weight = rest[0][:, None]
            by_user = by_user.write(i, weight * tf.matmul(slope, candidates))
            by_candidate += tf.matmul(slope, weight * user, transpose_a=True)
        return i + 1, losses, by_user, by_candidate

    start = (tf.constant(0), losses, by_user, tf.zeros_like(candidates))
    # One block at a time: more of them at once would only add memory.
    _, losses, by_user, by_candidate = tf.while_loop(lambda i, *_: i < count, body, start, parallel_iterations=1)
    losses = tf.reshape(losses.stack(), [-1])[:total]
    if weights is None:
        return losses, tf.zeros_like(users), by_candidate
    by_user = tf.reshape(by_user.stack(), [-1, width])[:total]
    share = (weights * (1.0 - softmax.smoothing))[:, None]
    by_user -= share * tf.gather(candidates, softmax.labels)
    by_candidate -= tf.math.unsorted_segment_sum(share * users, softmax.labels, columns)
    return losses, by_user, by_candidate


def _block(
    softmax: Softmax, user: tf.Tensor, label: tf.Tensor, own: tf.Tensor, target: tf.Tensor | None
) -> tuple[tf.Tensor, tf.Tensor]:
    """Losses [R] of a block, and their slope by the logits [R, C] but for the own candidate's −(1 − ε)."""
    logits = tf.matmul(user, softmax.candidates, transpose_b=True)
    if softmax.bias is not None:
        logits += softmax.bias
    if softmax.hits is not None and target is not None:
        logits = tf.where(target[:, None] == softmax.hits[1][None], LOWEST, logits)
    place = tf.stack([tf.range(_size(label)), label], axis=1)
    if softmax.own_bias is not None or softmax.hits is not None:
        logits = tf.tensor_scatter_nd_update(logits, place, own)
    slope = tf.nn.softmax(logits)
    probability = tf.gather_nd(slope, place)
    total = tf.cond(
        tf.reduce_min(probability) > 1e-30,
        lambda: own - tf.math.log(probability),
        # Where the own probability underflows, two more passes find the largest one, which cannot.
        lambda: tf.reduce_max(logits, axis=1) - tf.math.log(tf.reduce_max(slope, axis=1)),
    )
    if not softmax.smoothing:
        return total - own, slope
    valid = tf.cast(logits > LOWEST / 2, tf.float32)
    valid /= tf.reduce_sum(valid, axis=1, keepdims=True)
    mean = tf.reduce_sum(valid * logits, axis=1)
    return total - (1.0 - softmax.smoothing) * own - softmax.smoothing * mean, slope - softmax.smoothing * valid


def _own_logits(softmax: Softmax) -> tf.Tensor:
    logits = tf.reduce_sum(softmax.users * tf.gather(softmax.candidates, softmax.labels), axis=1)
    if softmax.own_bias is not None:
        return logits + softmax.own_bias
    return logits if softmax.bias is None else logits + tf.gather(softmax.bias, softmax.labels)


def _row_inputs(softmax: Softmax, weights: tf.Tensor | None) -> list[tf.Tensor]:
    first = tf.zeros_like(softmax.users[:, 0]) if weights is None else weights
    return [first] if softmax.hits is None else [first, softmax.hits[0]]


def _size(tensor: tf.Tensor) -> Any:
    """Rows, as a number where the shape is static."""
    return tf.shape(tensor)[0] if tensor.shape[0] is None else tensor.shape[0]


def _block_rows(total: Any, columns: Any) -> Any:
    if tf.is_tensor(total) or tf.is_tensor(columns):
        return tf.minimum(tf.maximum(_BLOCK_ELEMENTS // tf.maximum(columns, 1), _LEAST_ROWS), tf.maximum(total, 1))
    rows = min(max(_BLOCK_ELEMENTS // columns, _LEAST_ROWS), total)
    return -(-total // -(-total // rows))  # blocks of like size, so that little is padding


def _in_blocks(tensor: tf.Tensor, count: Any, rows: Any) -> tf.Tensor:
    """[M, ...] -> [count, rows, ...], zeros at the end."""
    padding = [[0, count * rows - _size(tensor)]] + [[0, 0]] * (tensor.shape.rank - 1)
    return tf.reshape(tf.pad(tensor, padding), [count, rows, *tensor.shape[1:]])
