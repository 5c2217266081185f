"""The best of a blend without all of its scores: what each part finds is joined and scored exactly."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from tfrec.artifact import indexed
from tfrec.artifact.indexed import Found, Plan
from tfrec.artifact.ivf import Allowed, among, best_of
from tfrec.artifact.options import RETRIEVAL
from tfrec.artifact.stored import LOWEST
from tfrec.artifact.take import take

SHORTLIST = 500  # items that each part brings forward, or four times what is asked for
POPULAR = 1000
Vectors = tuple[tf.Tensor, tf.Tensor]
"""Vectors float32 [N+1, d] and their :func:`moments`."""


class BlendAt(Protocol):
    """A blend whose scores can be had one by one; see :class:`tfrec.models.blend_at.BlendAt`."""

    reads_texts: bool

    def profile(self, history: tf.Tensor, vectors: tf.Tensor) -> tf.Tensor: ...

    def sums(self, history: tf.Tensor) -> Any: ...

    def candidates(self, sums: Any, count: tf.Tensor) -> list[tf.Tensor]: ...

    def parts(
        self, query: tf.Tensor, history: tf.Tensor, items: tf.Tensor, sums: Any, own: Vectors, texts: Vectors | None
    ) -> dict[str, tf.Tensor]: ...

    def total(self, parts: dict[str, tf.Tensor]) -> tf.Tensor: ...


class BlendedSearch(tf.Module):
    """Finds the best of a blend.

    The items with the largest cosines, text products, sums by neighbours and counts are candidates, each kind as its
    own index or table tells; the blend of every candidate is then exact.

    Args:
        blend: at chosen items.
        own: the index of ``vectors``.
        of_texts: the index of ``texts``, and its plan.
        vectors, texts: of the catalogue, float32 [N+1, ·].
        compared: the texts that the blend compares, float32 [N+1, ·].
        popularity: float32 [N+1].
        available: bool [N+1].
    """

    def __init__(
        self,
        blend: BlendAt,
        own: Any,
        of_texts: tuple[Any, Plan | None],
        vectors: tf.Variable,
        texts: tf.Variable | None,
        compared: tf.Variable | None,
        popularity: np.ndarray,
        available: tf.Variable,
    ):
        super().__init__(name="blended")
        self._blend, self.own, (self.of_texts, text_plan) = blend, own, of_texts
        self._text_nprobe = text_plan.nprobe if text_plan else 1
        self.vectors, self.texts, self.compared, self.available = vectors, texts, compared, available
        self.item_moments = _fixed(moments(vectors.numpy()))
        self.text_moments = None if compared is None else _fixed(moments(compared.numpy()))
        # What becomes popular later is known to a later export alone.
        self.popular = _fixed(np.argsort(-popularity[1:], kind="stable")[:POPULAR].astype(np.int32) + 1)

    def search(
        self,
        query: tf.Tensor,
        history: tf.Tensor,
        sums: Any,
        dropped: tf.Tensor,
        count: tf.Tensor,
        nprobe: tf.Tensor | None,
        allowed: Allowed | None = None,
    ) -> Found:
        """As :func:`tfrec.artifact.indexed.search`, for a user's vector [B, d], history [B, L] and its :meth:`sums`."""
        wide = tf.maximum(4 * count, SHORTLIST)
        found = [
            indexed.search(self.own, query, dropped, wide, nprobe, allowed)[1],
            *self._blend.candidates(sums, wide),
        ]
        if self._blend.reads_texts and self.of_texts is not None:  # near in the catalogue's texts; the scores are exact
            profile = self._blend.profile(history, tf.convert_to_tensor(self.texts))
            probes = tf.maximum(self._text_nprobe, 0 if nprobe is None else tf.reduce_max(nprobe))
            found.append(indexed.search(self.of_texts, profile, dropped, wide, probes, allowed)[1])
        found.append(tf.broadcast_to(self.popular[None], [tf.shape(query)[0], tf.size(self.popular)]))
        items = tf.sort(tf.concat(found, axis=1), axis=1)
        repeated = items == tf.pad(items, [[0, 0], [1, 0]])[:, :-1]
        kept = ~repeated & take(self.available, items) & ~among(items, dropped)
        if allowed is not None:
            kept &= allowed(items)
        scores = self._blend.total(self._parts(query, history, items, sums))
        return best_of(tf.where(kept, scores, LOWEST), items, count)

    def sums(self, history: tf.Tensor) -> Any:
        """What the blend adds up by item over histories [B, L], once a request."""
        return self._blend.sums(history)

    def evidence(self, query: tf.Tensor, history: tf.Tensor, sums: Any, items: tf.Tensor) -> dict[str, tf.Tensor]:
        """The blend of items int32 [B, C] as "retrieval", their "cosine", and the blend's other parts."""
        parts = self._parts(query, history, items, sums)
        others = {name: part for name, part in parts.items() if name != "model"}
        cosine = tf.linalg.matvec(take(self.vectors, items), query)
        return {RETRIEVAL: self._blend.total(parts), "cosine": cosine, **others}

    def _parts(self, query: tf.Tensor, history: tf.Tensor, items: tf.Tensor, sums: Any) -> dict[str, tf.Tensor]:
        texts = None if self.compared is None else (tf.convert_to_tensor(self.compared), self.text_moments)
        own = tf.convert_to_tensor(self.vectors), self.item_moments
        return self._blend.parts(query, history, items, sums, own, texts)


def moments(vectors: np.ndarray) -> np.ndarray:
    """Covariances of the columns, and their means below: u·v over a catalogue has mean uᵀm and variance uᵀCu.

    Args:
        vectors: float32 [N+1, d]; row 0 is no item.

    Returns:
        float32 [d+1, d].
    """
    items, mean = max(len(vectors) - 1, 1), vectors[1:].mean(axis=0, dtype=np.float64)
    covariance = np.zeros((vectors.shape[1],) * 2)
    for low in range(1, len(vectors), 2**16):
        block = vectors[low : low + 2**16] - mean
        covariance += block.T @ block
    return np.concatenate([covariance / items, mean[None]]).astype(np.float32)


def _fixed(value: np.ndarray) -> tf.Variable:
    return tf.Variable(value, trainable=False)
