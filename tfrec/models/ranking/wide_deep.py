"""Wide & Deep."""

from __future__ import annotations

from typing import Any

import keras

from tfrec.models.ranking.body import Body
from tfrec.models.ranking.fields import HiddenLayers, Inputs, flat


@keras.saving.register_keras_serializable("tfrec")
class WideDeep(Body):
    """A linear model with crosses beside hidden layers over the fields' vectors.

    Source: Cheng et al. 2016, arXiv 1606.07792.

    Args and Call: of :class:`Body`.
    """

    def build(self, input_shape: Any = None) -> None:
        s = self.settings
        self.linear, self.vectors = self.make_linear(), self.make_vectors(s.history)
        self.hidden = HiddenLayers(s.hidden, s.dropout, name="hidden", **self.policy)
        self.linear.build()
        self.vectors.build()
        self.hidden.build((None, self.vectors.width * s.embedding))
        self.built = True

    def call(self, inputs: Inputs, training: bool = False) -> dict[str, Any]:
        vectors = self.vectors(inputs, training=training)
        return {"vector": self.hidden(flat(vectors), training=training), "logit": self.linear(inputs)}
