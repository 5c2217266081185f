"""DLRM."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from tfrec.models.ranking.body import Body
from tfrec.models.ranking.fields import HiddenLayers, Inputs, flat


@keras.saving.register_keras_serializable("tfrec")
class DLRM(Body):
    """Inner products of all pairs of fields' vectors beside the dense fields, then hidden layers.

    Dense fields (numbers and given vectors) take part through their own projections and, together, through one
    bottom layer.
    Source: Naumov et al. 2019, arXiv 1906.00091.

    Args and Call: of :class:`Body`; no logit.
    """

    def build(self, input_shape: Any = None) -> None:
        s = self.settings
        self.vectors = self.make_vectors(s.history)
        self.vectors.build()
        width = self.vectors.width
        self.dense_places = [i for i, f in enumerate(self.sizes.fields) if f.kind != "index"]
        own = width + bool(self.dense_places)
        if self.dense_places:
            self.bottom = HiddenLayers((s.hidden[0], s.embedding), s.dropout, name="bottom", **self.policy)
            self.bottom.build((None, len(self.dense_places) * s.embedding))
        self.pairs = [(i, j) for i in range(own) for j in range(i)]
        self.top = HiddenLayers(s.hidden, s.dropout, name="top", **self.policy)
        self.top.build((None, len(self.pairs) + bool(self.dense_places) * s.embedding))
        self.built = True

    def call(self, inputs: Inputs, training: bool = False) -> dict[str, Any]:
        vectors, dense = self.vectors(inputs, training=training), None
        if self.dense_places:
            dense = self.bottom(flat(ops.take(vectors, self.dense_places, axis=2)), training=training)
            vectors = ops.concatenate([vectors, dense[:, :, None]], axis=2)
        products = ops.matmul(vectors, ops.swapaxes(vectors, -1, -2))  # [B, N, F, F]
        places = vectors.shape[2]
        products = ops.reshape(products, (*ops.shape(products)[:2], places * places))
        x = ops.take(products, [i * places + j for i, j in self.pairs], axis=-1)
        return {"vector": self.top(x if dense is None else ops.concatenate([dense, x], axis=-1), training=training)}
