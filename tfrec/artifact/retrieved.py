"""What retrieval says of a request: of every item, or of those that an index finds and those that are asked about."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import tensorflow as tf

from tfrec.artifact import indexed
from tfrec.artifact.indexed import Found
from tfrec.artifact.ivf import Allowed
from tfrec.artifact.options import RETRIEVAL
from tfrec.artifact.take import take


class Retrieved(Protocol):
    """Of B requests."""

    def at(self, items: tf.Tensor) -> dict[str, tf.Tensor]:
        """The scores of items int32 [B, C] under "retrieval", and what they are made of, float32 [B, C] each."""
        ...

    def best(self, dropped: tf.Tensor, count: tf.Tensor, nprobe: Any, allowed: Allowed | None = None) -> Found:
        """Scores and items [B, ≤ count], the best first, as :func:`tfrec.artifact.indexed.search`."""
        ...


class Shop(Protocol):
    """The recommender that is asked."""

    item_vectors: tf.Variable
    popularity: tf.Variable
    item_index: Any
    blended: Any

    def best(
        self, scores: tf.Tensor, dropped: tf.Tensor, count: tf.Tensor, allowed: Allowed | None = None
    ) -> Found: ...


@dataclass(frozen=True)
class OfAll:
    """Args: evidence: name -> [B, M+1], "retrieval" among them."""

    shop: Shop
    evidence: Mapping[str, tf.Tensor]

    def at(self, items: tf.Tensor) -> dict[str, tf.Tensor]:
        items = tf.ensure_shape(items, [None, None])
        own = {name: tf.ensure_shape(scores, [None, None]) for name, scores in self.evidence.items()}
        return {name: tf.gather(scores, items, batch_dims=1) for name, scores in own.items()}

    def best(self, dropped: tf.Tensor, count: tf.Tensor, nprobe: Any, allowed: Allowed | None = None) -> Found:
        return self.shop.best(self.evidence[RETRIEVAL], dropped, count, allowed)


@dataclass(frozen=True)
class ByIndex:
    """Args: query: users' vectors [B, d]; history: what a blend reads [B, L]; known: of whom anything is known [B]."""

    shop: Shop
    query: tf.Tensor
    history: tf.Tensor
    known: tf.Tensor

    @functools.cached_property
    def _sums(self) -> Any:
        return self.shop.blended.sums(self.history)

    def at(self, items: tf.Tensor) -> dict[str, tf.Tensor]:
        if self.shop.blended is None:
            found = {RETRIEVAL: tf.linalg.matvec(take(self.shop.item_vectors, items), self.query)}
        else:
            found = self.shop.blended.evidence(self.query, self.history, self._sums, items)
        popular = take(self.shop.popularity, items)
        return found | {RETRIEVAL: tf.where(self.known[:, None], found[RETRIEVAL], popular)}

    def best(self, dropped: tf.Tensor, count: tf.Tensor, nprobe: Any, allowed: Allowed | None = None) -> Found:
        if self.shop.blended is None:
            found = indexed.search(self.shop.item_index, self.query, dropped, count, nprobe, allowed)
        else:
            found = self.shop.blended.search(self.query, self.history, self._sums, dropped, count, nprobe, allowed)
        popularity = self.shop.popularity
        popular = tf.broadcast_to(popularity, [tf.size(self.known), tf.size(popularity)])
        return indexed.or_else(self.known, found, lambda: self.shop.best(popular, dropped, count, allowed), count)
