"""ESMM: purchase on the entire space of impressions."""

from __future__ import annotations

from typing import Any

from keras import ops


def entire_space(click: Any, conversion: Any) -> tuple[Any, Any]:
    """Logits of click and of click-and-purchase, so that every impression teaches conversion.

        p(click) = σ(a),   p(click and purchase) = σ(a) σ(b)

    Source: Ma et al. 2018, arXiv 1804.07931.

    Args:
        click: a, float [...].
        conversion: b, logits of a purchase once clicked, float [...].
    """
    return click, logit_of_product(click, conversion)


def logit_of_product(a: Any, b: Any) -> Any:
    """The logit of σ(a) σ(b), stable for large logits of either sign."""
    log_p = -ops.softplus(-a) - ops.softplus(-b)
    # 1 − σ(a)σ(b) = σ(−a) + σ(a) σ(−b), a sum of positives: nothing cancels.
    log_not = ops.logaddexp(-ops.softplus(a), -ops.softplus(-a) - ops.softplus(b))
    return log_p - log_not
