"""DeepFM."""

from __future__ import annotations

from typing import Any

import keras

from tfrec.models.ranking.fields import Inputs, flat
from tfrec.models.ranking.fm import pairwise
from tfrec.models.ranking.wide_deep import WideDeep


@keras.saving.register_keras_serializable("tfrec")
class DeepFM(WideDeep):
    """A factorisation machine and hidden layers over the same vectors.

    Source: Guo et al. 2017, arXiv 1703.04247.

    Args and Call: of :class:`Body`.
    """

    def call(self, inputs: Inputs, training: bool = False) -> dict[str, Any]:
        vectors = self.vectors(inputs, training=training)
        deep = self.hidden(flat(vectors), training=training)
        return {"vector": deep, "logit": self.linear(inputs) + pairwise(vectors)}
