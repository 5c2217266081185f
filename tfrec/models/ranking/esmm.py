"""ESMM: purchase on the entire space of impressions."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from tfrec.models.ranking.heads import SharedBottom


def logit_of_product(a: Any, b: Any) -> Any:
    """The logit of σ(a) σ(b), stable for large logits of either sign."""
    log_p = -ops.softplus(-a) - ops.softplus(-b)
    # 1 − σ(a)σ(b) = σ(−a) + σ(a) σ(−b), a sum of positives: nothing cancels.
    log_not = ops.logaddexp(-ops.softplus(a), -ops.softplus(-a) - ops.softplus(b))
    return log_p - log_not


@keras.saving.register_keras_serializable("tfrec")
class ESMM(SharedBottom):
    """Click, and click and purchase; the second is a product, so that every impression teaches conversion.

        p(click) = σ(a),   p(click and purchase) = σ(a) σ(b)

    Source: Ma et al. 2018, arXiv 1804.07931.

    Args:
        outputs: (1, 1).
        units, dropout: of the towers.

    Call: [..., h] -> [..., 2], logits of the two probabilities.
    """

    def call(self, x: Any, training: bool = False) -> Any:
        logits = ops.cast(super().call(x, training=training), "float32")
        click, purchase = logits[..., 0], logits[..., 1]
        return ops.stack([click, logit_of_product(click, purchase)], axis=-1)
