"""DCN-v2: explicit feature crosses, full or as a mixture of low-rank ones."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from tfrec.models.ranking.body import Body
from tfrec.models.ranking.fields import HiddenLayers, Inputs, flat


@keras.saving.register_keras_serializable("tfrec")
class Cross(keras.layers.Layer):
    """One layer of feature crosses.

        full:      x' = x0 ⊙ (W x + b) + x
        mixture:   x' = Σ_i g_i(x) · x0 ⊙ (U_i tanh(C_i tanh(V_i x)) + b) + x,   g = softmax(G x)

    Source: Wang et al. 2021, DCN V2, arXiv 2008.13535.

    Args:
        rank: r of U_i [w, r], C_i [r, r], V_i [r, w]; 0 = a full W [w, w].
        experts: low-rank crosses in the mixture.

    Call: x0 [..., w], x [..., w] -> [..., w].
    """

    def __init__(self, rank: int = 0, experts: int = 1, **kwargs: Any):
        super().__init__(**kwargs)
        self.rank, self.experts = rank, experts

    def build(self, input_shape: Any) -> None:
        width, rank, experts = input_shape[-1], self.rank, self.experts
        if not rank:
            self.kernel = self.add_weight(shape=(width, width), name="kernel")
        else:
            self.down = self.add_weight(shape=(experts, width, rank), name="down")
            self.core = self.add_weight(shape=(experts, rank, rank), name="core")
            self.up = self.add_weight(shape=(experts, rank, width), name="up")
            if experts > 1:
                self.gate = self.add_weight(shape=(width, experts), name="gate")
        self.bias = self.add_weight(shape=(width,), initializer="zeros", name="bias")
        self.built = True

    def call(self, x0: Any, x: Any) -> Any:
        if not self.rank:
            return x0 * (ops.matmul(x, self.kernel) + self.bias) + x
        low = ops.tanh(ops.einsum("...w,ewr->...er", x, self.down))
        low = ops.tanh(ops.einsum("...er,ers->...es", low, self.core))
        if self.experts > 1:
            low = low * ops.softmax(ops.matmul(x, self.gate))[..., None]
        # Gates add up to 1, so that one product with x0 serves every expert.
        return x0 * (ops.einsum("...er,erw->...w", low, self.up) + self.bias) + x

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "rank": self.rank, "experts": self.experts}


@keras.saving.register_keras_serializable("tfrec")
class DCN(Body):
    """Crosses of the fields' vectors beside hidden layers over them.

    Args and Call: of :class:`Body`; no logit.
    """

    def build(self, input_shape: Any = None) -> None:
        s = self.settings
        self.vectors = self.make_vectors(s.history)
        self.crosses: list[Cross] = [
            Cross(s.cross_rank, s.cross_experts, name=f"cross_{i}", **self.policy) for i in range(s.cross_layers)
        ]
        self.hidden = HiddenLayers(s.hidden, s.dropout, name="hidden", **self.policy)
        self.vectors.build()
        shape = (None, self.vectors.width * s.embedding)
        layers: tuple[keras.layers.Layer, ...] = (*self.crosses, self.hidden)
        for layer in layers:
            layer.build(shape)
        self.built = True

    def call(self, inputs: Inputs, training: bool = False) -> dict[str, Any]:
        x0 = flat(self.vectors(inputs, training=training))
        x = x0
        for cross in self.crosses:
            x = cross(x0, x)
        return {"vector": ops.concatenate([x, self.hidden(x0, training=training)], axis=-1)}
