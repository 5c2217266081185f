"""Factorisation machine."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from tfrec.models.ranking.body import Body
from tfrec.models.ranking.fields import Inputs


def pairwise(vectors: Any) -> Any:
    """Sum of the inner products of all pairs of fields: [B, N, F, d] -> [B, N].

    Σ_{i<j} v_i·v_j = ½ Σ_d ((Σ_i v_id)² − Σ_i v_id²)
    """
    whole, own = ops.square(ops.sum(vectors, axis=-2)), ops.sum(ops.square(vectors), axis=-2)
    return 0.5 * ops.sum(whole - own, axis=-1)


@keras.saving.register_keras_serializable("tfrec")
class FactorisationMachine(Body):
    """First-order terms and the inner product of every pair of fields.

        logit = b + Σ_f w_f · x_f + Σ_{f<g} v_f·v_g

    Source: Rendle 2010, Factorization machines.

    Args and Call: of :class:`Body`; no vector.
    """

    def build(self, input_shape: Any = None) -> None:
        self.linear, self.vectors = self.make_linear(), self.make_vectors(self.settings.history)
        self.linear.build()
        self.vectors.build()
        self.built = True

    def call(self, inputs: Inputs, training: bool = False) -> dict[str, Any]:
        return {"logit": self.linear(inputs) + pairwise(self.vectors(inputs, training=training))}
