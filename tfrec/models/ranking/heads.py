"""One hidden layer stack and one output a task; shared-bottom is all tasks reading one vector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from tfrec.models.ranking.fields import HiddenLayers


@keras.saving.register_keras_serializable("tfrec")
class Towers(keras.layers.Layer):
    """The last layers of each task, over an input of its own.

    Args:
        outputs: numbers that each task needs, as (1, 3).
        units: widths of each task's hidden layers.
        dropout: after them.

    Call: a list with [..., h] for each task -> [..., Σ outputs].
    """

    def __init__(self, outputs: Sequence[int], units: Sequence[int] = (), dropout: float = 0.0, **kwargs: Any):
        super().__init__(**kwargs)
        self.outputs, self.units, self.dropout = tuple(outputs), tuple(units), dropout
        policy = {"dtype": self.dtype_policy}
        self.hidden: list[HiddenLayers] = [
            HiddenLayers(self.units, dropout, name=f"hidden_{i}", **policy) for i in range(len(self.outputs))
        ]
        self.last: list[keras.layers.Dense] = [
            keras.layers.Dense(n, name=f"output_{i}", **policy) for i, n in enumerate(self.outputs)
        ]

    def build(self, input_shape: Any) -> None:
        for hidden, last in zip(self.hidden, self.last, strict=True):
            hidden.build(input_shape)
            last.build((None, self.units[-1] if self.units else input_shape[-1]))
        self.built = True

    def call(self, inputs: Sequence[Any], training: bool = False) -> Any:
        parts = zip(inputs, self.hidden, self.last, strict=True)
        return ops.concatenate([last(hidden(x, training=training)) for x, hidden, last in parts], axis=-1)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "outputs": self.outputs, "units": self.units, "dropout": self.dropout}


@keras.saving.register_keras_serializable("tfrec")
class SharedBottom(keras.layers.Layer):
    """Every task reads the same vector.

    Source: Caruana 1997, Multitask learning.

    Args:
        outputs, units, dropout: of :class:`Towers`.

    Call: [..., h] -> [..., Σ outputs].
    """

    def __init__(self, outputs: Sequence[int], units: Sequence[int] = (), dropout: float = 0.0, **kwargs: Any):
        super().__init__(**kwargs)
        self.towers = Towers(outputs, units, dropout, name="towers", dtype=self.dtype_policy)

    def build(self, input_shape: Any) -> None:
        self.towers.build(input_shape)
        self.built = True

    def call(self, x: Any, training: bool = False) -> Any:
        return self.towers([x] * len(self.towers.outputs), training=training)

    def get_config(self) -> dict[str, Any]:
        own = {"outputs": self.towers.outputs, "units": self.towers.units, "dropout": self.towers.dropout}
        return {**super().get_config(), **own}


class ExpertHead(keras.layers.Layer):
    """A head whose tasks mix experts; what they mix is made in ``build``.

    Args:
        outputs, units, dropout: of :class:`Towers`.
        experts: how many there are, of each kind.
        expert_units: u, width of an expert.

    Call: [..., h] -> [..., Σ outputs].
    """

    def __init__(
        self,
        outputs: Sequence[int],
        units: Sequence[int] = (),
        dropout: float = 0.0,
        experts: int = 4,
        expert_units: int = 64,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.count, self.expert_units, self.dropout = experts, expert_units, dropout
        self.towers = Towers(outputs, units, dropout, name="towers", dtype=self.dtype_policy)

    @property
    def tasks(self) -> int:
        """T."""
        return len(self.towers.outputs)

    def get_config(self) -> dict[str, Any]:
        own = {"outputs": self.towers.outputs, "units": self.towers.units, "dropout": self.dropout}
        return {**super().get_config(), **own, "experts": self.count, "expert_units": self.expert_units}
