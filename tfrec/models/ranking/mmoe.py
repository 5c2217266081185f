"""MMoE: shared experts, a gate a task."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from tfrec.models.ranking.fields import HiddenLayers
from tfrec.models.ranking.heads import ExpertHead


@keras.saving.register_keras_serializable("tfrec")
class Mixture(keras.layers.Layer):
    """A gated sum of vectors.

        y = Σ_e softmax(G x)_e h_e

    Args:
        experts: E.

    Call: x [..., w], h [..., E, u] -> [..., u].
    """

    def __init__(self, experts: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.gate = keras.layers.Dense(experts, use_bias=False, name="gate", dtype=self.dtype_policy)
        self.experts = experts

    def build(self, input_shape: Any) -> None:
        self.gate.build(input_shape)
        self.built = True

    def call(self, x: Any, experts: Any) -> Any:
        return ops.sum(ops.softmax(self.gate(x))[..., None] * experts, axis=-2)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "experts": self.experts}


@keras.saving.register_keras_serializable("tfrec")
class MMoE(ExpertHead):
    """Every task mixes the same experts with a gate of its own.

    Source: Ma et al. 2018, Modeling task relationships in multi-task learning with multi-gate mixture-of-experts.

    Args and Call: of :class:`ExpertHead`.
    """

    def build(self, input_shape: Any) -> None:
        policy = {"dtype": self.dtype_policy}
        self.experts: list[HiddenLayers] = [
            HiddenLayers((self.expert_units,), self.dropout, name=f"expert_{i}", **policy) for i in range(self.count)
        ]
        self.mixtures: list[Mixture] = [Mixture(self.count, name=f"mixture_{i}", **policy) for i in range(self.tasks)]
        layers: tuple[keras.layers.Layer, ...] = (*self.experts, *self.mixtures)
        for layer in layers:
            layer.build((None, input_shape[-1]))
        self.towers.build((None, self.expert_units))
        self.built = True

    def call(self, x: Any, training: bool = False) -> Any:
        experts = ops.stack([expert(x, training=training) for expert in self.experts], axis=-2)
        return self.towers([mixture(x, experts) for mixture in self.mixtures], training=training)
