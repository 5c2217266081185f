"""Logistic regression."""

from __future__ import annotations

from typing import Any

import keras

from tfrec.models.ranking.body import Body
from tfrec.models.ranking.fields import Inputs


@keras.saving.register_keras_serializable("tfrec")
class Logistic(Body):
    """First-order terms alone, with the crosses that the settings name.

        logit = b + Σ_f w_f · x_f

    Args and Call: of :class:`Body`; no vector.
    """

    def build(self, input_shape: Any = None) -> None:
        self.linear = self.make_linear()
        self.linear.build()
        self.built = True

    def call(self, inputs: Inputs, training: bool = False) -> dict[str, Any]:
        return {"logit": self.linear(inputs)}
