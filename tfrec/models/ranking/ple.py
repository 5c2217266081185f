"""PLE: shared experts and each task's own, extracted layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from tfrec.models.ranking.fields import HiddenLayers
from tfrec.models.ranking.heads import ExpertHead
from tfrec.models.ranking.mmoe import Mixture


@keras.saving.register_keras_serializable("tfrec")
class Extraction(keras.layers.Layer):
    """Customised gate control: a task mixes its own and the shared experts; the shared way mixes all.

    Args:
        tasks: T.
        experts: shared experts, and as many of each task.
        expert_units: u.
        dropout: after experts.
        shared: whether the shared way goes on to another layer.

    Call: a list of T + 1 inputs [..., w], the shared one last -> a list of T + shared outputs [..., u].
    """

    def __init__(
        self, tasks: int, experts: int, expert_units: int, dropout: float = 0.0, shared: bool = True, **kwargs: Any
    ):
        super().__init__(**kwargs)
        self.settings: dict[str, Any] = {
            "tasks": tasks,
            "experts": experts,
            "expert_units": expert_units,
            "dropout": dropout,
            "shared": shared,
        }
        policy = {"dtype": self.dtype_policy}
        self.experts: list[HiddenLayers] = [
            HiddenLayers((expert_units,), dropout, name=f"expert_{way}_{i}", **policy)
            for way in range(tasks + 1)
            for i in range(experts)
        ]
        sizes = [2 * experts] * tasks + ([(tasks + 1) * experts] if shared else [])
        self.mixtures: list[Mixture] = [Mixture(n, name=f"mixture_{i}", **policy) for i, n in enumerate(sizes)]

    def build(self, input_shape: Any) -> None:
        layers: tuple[keras.layers.Layer, ...] = (*self.experts, *self.mixtures)
        for layer in layers:
            layer.build((None, input_shape[-1]))
        self.built = True

    def call(self, inputs: Sequence[Any], training: bool = False) -> list[Any]:
        each = self.settings["experts"]
        ways = [
            [expert(x, training=training) for expert in self.experts[i * each : (i + 1) * each]]
            for i, x in enumerate(inputs)
        ]
        everything = [expert for way in ways for expert in way]
        read = [way + ways[-1] for way in ways[:-1]] + [everything]
        return [
            mixture(x, ops.stack(experts, axis=-2))
            for mixture, x, experts in zip(self.mixtures, inputs, read, strict=False)
        ]

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), **self.settings}


@keras.saving.register_keras_serializable("tfrec")
class PLE(ExpertHead):
    """Progressive layered extraction: two layers of :class:`Extraction`, then towers.

    Source: Tang et al. 2020, Progressive layered extraction (PLE), RecSys.

    Args and Call: of :class:`ExpertHead`.
    """

    def build(self, input_shape: Any) -> None:
        sizes = (self.tasks, self.count, self.expert_units, self.dropout)
        self.first = Extraction(*sizes, name="first", dtype=self.dtype_policy)
        self.second = Extraction(*sizes, shared=False, name="second", dtype=self.dtype_policy)
        between = (None, self.expert_units)
        self.first.build((None, input_shape[-1]))
        self.second.build(between)
        self.towers.build(between)
        self.built = True

    def call(self, x: Any, training: bool = False) -> Any:
        ways = self.first([x] * (self.tasks + 1), training=training)
        return self.towers(self.second(ways, training=training), training=training)
