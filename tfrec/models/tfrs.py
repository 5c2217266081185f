"""The one door to tensorflow-recommenders: weightless pieces only, imported when first used.

TFRS is written for Keras 2. A layer of it that holds weights would be silently left untrained
and unsaved inside a Keras 3 model, so only functions of its arguments come through here.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any

import tensorflow as tf


@functools.cache
def _losses() -> Any:
    """TFRS's loss layers, imported while ``tf.keras`` is Keras 2 and handed back as it was.

    TFRS refuses a ``tf.keras`` that is Keras 3, which it is as soon as tensorflow-text is imported; and
    TF_USE_LEGACY_KERAS=1 would turn the ``tf.keras`` of everybody else in the process into Keras 2.
    """
    namespace = vars(tf)
    theirs = namespace["keras"]
    namespace["keras"] = importlib.import_module("tf_keras")
    try:
        return importlib.import_module("tensorflow_recommenders").layers.loss
    finally:
        namespace["keras"] = theirs


def sampling_probability_correction(logits: tf.Tensor, probabilities: tf.Tensor) -> tf.Tensor:
    """logits [M, C] − log q [C], with q = probabilities clipped to [1e-6, 1]."""
    return _losses().SamplingProbablityCorrection()(logits, probabilities)


def remove_accidental_hits(one_hot: tf.Tensor, logits: tf.Tensor, ids: tf.Tensor) -> tf.Tensor:
    """Lowers the logits [M, C] of candidates whose id [C] is the positive's, the positive itself apart."""
    return _losses().RemoveAccidentalHits()(one_hot, logits, ids)


def hardest_negatives(one_hot: tf.Tensor, logits: tf.Tensor, count: int) -> tuple[tf.Tensor, tf.Tensor]:
    """The logits and labels of the positive and of the ``count`` highest negatives, both [M, count + 1]."""
    return _losses().HardNegativeMining(count)(logits, one_hot)
