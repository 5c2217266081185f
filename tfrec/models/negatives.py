"""Where negatives come from: items drawn with known chances, the same ones on every replica and after a restart."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tfrec.models.losses import LOWEST

_PARTS = 2**30


class Negatives:
    """Items drawn with replacement, with chances in proportion to counts; a draw costs the same for any catalogue.

        q_i = c_i / Σ_j c_j

    Args:
        number: K, items of a draw.
        counts: [N + 1], some above 0; row 0 is never drawn.
        seed: of all draws.

    Source: Walker 1977, An efficient method for generating discrete random variables with general distributions.
    """

    def __init__(self, number: int, counts: np.ndarray, seed: int):
        self.number, self.seed = number, seed
        weights = np.asarray(counts, np.float64)[1:]
        self.chances = tf.constant(np.concatenate([[0.0], weights / weights.sum()]), tf.float32)
        keep, alias = alias_table(weights)
        self._keep = tf.constant(np.minimum(np.rint(keep * _PARTS), _PARTS), tf.int32)
        self._alias = tf.constant(alias, tf.int32)

    def draw(self, clock: tf.Tensor) -> tf.Tensor:
        """int32 [K] items, a function of the seed and of ``clock``, int64 [2]: epoch and step."""
        place = self._integers(clock, 0, self._keep.shape[0])
        keeps = self._integers(clock, 1, _PARTS) < tf.gather(self._keep, place)
        return 1 + tf.where(keeps, place, tf.gather(self._alias, place))

    def _integers(self, clock: tf.Tensor, stream: int, below: int) -> tf.Tensor:
        seed = tf.stack([self.seed * 2**32 + clock[0], 2 * clock[1] + stream])
        # Integers of Philox are the same with and without XLA; floats, and other generators, are not.
        return tf.random.stateless_uniform([self.number], seed, 0, below, tf.int32, alg="philox")


def alias_table(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Walker's table: take a place with equal chances, keep it with its chance, else take its alias.

        w_i / Σ w = (keep_i + Σ_{j: alias_j = i} (1 − keep_j)) / N

    Args:
        weights: [N], at least 0, some above.

    Returns:
        float64 [N] chances and int64 [N] places.
    """
    keep = (weights * len(weights) / weights.sum()).tolist()
    alias = np.arange(len(weights))
    small = [i for i, chance in enumerate(keep) if chance < 1]
    large = [i for i, chance in enumerate(keep) if chance >= 1]
    while small and large:
        place = small.pop()
        alias[place] = large[-1]
        keep[large[-1]] -= 1 - keep[place]
        if keep[large[-1]] < 1:
            small.append(large.pop())
    # What is left differs from one by rounding.
    return np.array([1.0 if alias[i] == i else chance for i, chance in enumerate(keep)]), alias


def mixed_chances(share: tf.Tensor, own: tf.Tensor, rate: tf.Tensor, number: int) -> tf.Tensor:
    """The chance of an item in mixed negative sampling, where the batch's targets and drawn items are the candidates.

        q_i = (B p_i + K r_i) / (B + K)

    Args:
        share: float32 [C], the chance p of an item in a batch position.
        own: scalar float32 B, targets of the global batch.
        rate: float32 [C], the chance r of an item in a draw.
        number: K, drawn items.

    Returns:
        float32 [C].

    Source: Yang et al. 2020, Mixed negative sampling for learning two-tower neural networks in recommendations.
    """
    return (own * share + number * rate) / (own + number)


def remove_hits(logits: tf.Tensor, ids: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
    """Lowers the logits of negatives that are the user's target to -1e9.

    Args:
        logits: float32 [M, K].
        ids: int32 [K] items.
        targets: int32 [M].
    """
    return tf.where(ids[None] == targets[:, None], LOWEST, logits)
