"""The one door to tensorflow-recommenders: weightless pieces only, imported when first used.

TFRS is written for Keras 2. A layer of it that holds weights would be silently left untrained
and unsaved inside a Keras 3 model, so only functions of its arguments come through here.
"""

from __future__ import annotations

import functools
import os
from types import ModuleType
from typing import Any

import tensorflow as tf

from tfrec.errors import TrainingError


@functools.cache
def _layers() -> Any:
    if _tf_keras_is_keras_3():
        raise TrainingError(
            "tensorflow-recommenders needs TF_USE_LEGACY_KERAS=1 before tf.keras is first used",
            "a tf.keras that is already Keras 3",
            "Set the variable before starting Python, or use `import keras` instead of tf.keras",
        )
    os.environ["TF_USE_LEGACY_KERAS"] = "1"
    import tensorflow_recommenders as tfrs

    return tfrs.layers.loss


def _tf_keras_is_keras_3() -> bool:
    # tf.keras is a lazy loader until somebody touches it, then a plain module.
    return type(vars(tf).get("keras")) is ModuleType and tf.keras.__name__.startswith("keras.")


def sampling_probability_correction(logits: tf.Tensor, probabilities: tf.Tensor) -> tf.Tensor:
    """logits [M, C] − log probabilities [C]."""
    return _layers().SamplingProbablityCorrection()(logits, probabilities)


def remove_accidental_hits(one_hot: tf.Tensor, logits: tf.Tensor, ids: tf.Tensor) -> tf.Tensor:
    """Lowers the logits [M, C] of candidates whose id [C] is the positive's, the positive itself apart."""
    return _layers().RemoveAccidentalHits()(one_hot, logits, ids)
