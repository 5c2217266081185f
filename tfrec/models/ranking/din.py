"""Deep interest network: attention of the candidate over the history."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from tfrec.models.ranking.body import Body
from tfrec.models.ranking.fields import HiddenLayers, Inputs, flat


@keras.saving.register_keras_serializable("tfrec")
class TargetAttention(keras.layers.Layer):
    """A candidate's weighted mean of the history, with weights from a small network.

        a_j = softmax_j MLP([q, k_j, q − k_j, q ⊙ k_j]),   y = Σ_j a_j k_j

    The weights are normalised, so that y does not grow with the history. Source: Zhou et al. 2018, arXiv 1706.06978.

    Args:
        units: widths of the network.

    Call: candidates [B, N, d], history [B, L, d], mask [B, L] -> [B, N, d]; zeros without history.
    """

    def __init__(self, units: Sequence[int], **kwargs: Any):
        super().__init__(**kwargs)
        self.units = tuple(units)
        self.hidden = HiddenLayers(self.units, name="hidden", dtype=self.dtype_policy)
        self.score = keras.layers.Dense(1, use_bias=False, name="score", dtype=self.dtype_policy)

    def build(self, input_shape: Sequence[int | None]) -> None:
        assert input_shape[-1] is not None
        self.hidden.build((None, 4 * input_shape[-1]))
        self.score.build((None, self.units[-1]))
        self.built = True

    def call(self, candidates: Any, history: Any, mask: Any) -> Any:
        q = ops.repeat(candidates[:, :, None], ops.shape(history)[1], axis=2)  # [B, N, L, d]
        k = ops.repeat(history[:, None], ops.shape(candidates)[1], axis=1)
        logits = self.score(self.hidden(ops.concatenate([q, k, q - k, q * k], axis=-1)))[..., 0]
        return ops.matmul(ops.cast(masked_softmax(logits, mask), history.dtype), history)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "units": self.units}


def masked_softmax(logits: Any, mask: Any) -> Any:
    """Weights float32 [B, N, L] over the history of mask [B, L]; all 0 where it is empty."""
    present = ops.cast(mask, "bool")[:, None]
    weights = ops.softmax(ops.where(present, ops.cast(logits, "float32"), -1e9), axis=-1)
    return ops.where(present, weights, 0.0)


@keras.saving.register_keras_serializable("tfrec")
class DIN(Body):
    """First-order terms and hidden layers over the fields, the candidate and its view of the history.

    Args and Call: of :class:`Body`. The candidate's query is the sum of its fields that the history has too.
    """

    def build(self, input_shape: Any = None) -> None:
        s = self.settings
        self.linear, self.vectors = self.make_linear(), self.make_vectors(pooled=s.history)
        self.attention = self.make_attention()
        self.hidden = HiddenLayers(s.hidden, s.dropout, name="hidden", **self.policy)
        self.linear.build()
        self.vectors.build()
        self.attention.build((None, None, s.embedding))
        self.places = [i for i, f in enumerate(self.sizes.fields) if f.name in self.sizes.history]
        self.hidden.build((None, (self.vectors.width + 2) * s.embedding))
        self.built = True

    def make_attention(self) -> keras.layers.Layer:
        """(candidates, history, mask, training) -> what the candidates see of the history."""
        return TargetAttention(self.settings.attention, name="attention", **self.policy)

    def attend(self, query: Any, history: Any, mask: Any, training: bool) -> Any:
        return self.attention(query, history, mask)

    def call(self, inputs: Inputs, training: bool = False) -> dict[str, Any]:
        vectors = self.vectors(inputs, training=training)
        query = ops.sum(ops.take(vectors, self.places, axis=2), axis=2)
        history = self.vectors.history(inputs, training=training)
        seen = self.attend(query, history, ops.not_equal(inputs["history_item"], 0), training)
        x = ops.concatenate([flat(vectors), seen, query * seen], axis=-1)
        return {"vector": self.hidden(x, training=training), "logit": self.linear(inputs)}
