"""Negatives of an interaction: items that the user has not had, by popularity or from what retrieval would give."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from tfrec.errors import DataError

_DRAWS = 4  # candidates for a place, of which the first that the user has not had is taken


@dataclass(frozen=True)
class Sampler:
    """Draws n items for each row.

    An item that the user has had is passed over, unless all of 4 n draws are such items.

    Args:
        n: negatives of a row.
        weights: of being drawn, [N + 1], row 0 is 0.
        had: pairs user · (N + 1) + item that are no negatives, int64, ascending.
        items: N.
        candidates: int32 [U + 1, C], each drawn alike in place of the weights' draws; 0 is none.
    """

    n: int
    weights: np.ndarray
    had: np.ndarray
    items: int
    candidates: np.ndarray | None = None

    def __call__(self, user: tf.Tensor, item: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Items int32 [B, n] for users int32 [B] whose positive is item [B]; seed int32 [2]."""
        rows, draws = tf.shape(user)[0], _DRAWS * self.n
        drawn = self._weighted(tf.random.stateless_uniform([rows * draws], seed), [rows, draws])
        if self.candidates is not None:
            place = tf.random.stateless_uniform([rows, draws], seed + 1, 0, self.candidates.shape[1], tf.int32)
            own = tf.gather(tf.gather(tf.constant(self.candidates), user), place, batch_dims=1)
            drawn = tf.where(own > 0, own, drawn)
        had = self._has(user[:, None], drawn) | (drawn == item[:, None])
        order = tf.argsort(tf.cast(had, tf.int32), axis=1, stable=True)[:, : self.n]
        chosen = tf.gather(drawn, order, batch_dims=1)
        return tf.ensure_shape(chosen, [user.shape[0], self.n])

    def _weighted(self, chance: tf.Tensor, shape: list[tf.Tensor | int]) -> tf.Tensor:
        sums = tf.constant(np.cumsum(self.weights / self.weights.sum())[1:], tf.float32)
        place = tf.searchsorted(sums, chance, side="right")
        return tf.reshape(tf.minimum(place, self.items - 1) + 1, shape)

    def _has(self, user: tf.Tensor, item: tf.Tensor) -> tf.Tensor:
        had = tf.constant(np.append(self.had, np.iinfo(np.int64).max))
        pair = tf.cast(user, tf.int64) * (self.items + 1) + tf.cast(item, tf.int64)
        place = tf.searchsorted(had, tf.reshape(pair, [-1]))
        return tf.reshape(tf.gather(had, place), tf.shape(pair)) == pair


def pairs(users: np.ndarray, items: np.ndarray, n_items: int) -> np.ndarray:
    """What :class:`Sampler` takes for ``had``."""
    return np.unique(users.astype(np.int64) * (n_items + 1) + items)


def popularity_weights(items: np.ndarray, n_items: int, power: float = 0.75) -> np.ndarray:
    """count^power of each item, [N + 1]; power 0 draws every item alike.

    Source of the power: Mikolov et al. 2013, arXiv 1310.4546.

    Raises:
        DataError: there are no items.
    """
    weights = np.bincount(items, minlength=n_items + 1).astype(np.float64) ** power
    if not power:
        weights[:] = 1
    weights[0] = 0
    if not weights.sum():
        raise DataError("negatives need items that training has seen", n_items)
    return weights
