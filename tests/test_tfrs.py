from __future__ import annotations

import math
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from tfrec.models import tfrs

# TFRS must neither need nor change the tf.keras of the process, whether somebody used it before or not.
SCRIPT = """
import os, sys, warnings
warnings.simplefilter("error")
import tensorflow as tf
before = tf.keras.layers.Layer if sys.argv[1] == "used" else None
from tfrec.models import tfrs
assert "tensorflow_recommenders" not in sys.modules, "imported before it is needed"
out = tfrs.remove_accidental_hits(tf.eye(2), tf.zeros([2, 2]), tf.constant([5, 5]))
assert float(out[0, 0]) == 0 and float(out[0, 1]) < -1e30, out
assert tf.keras.version().startswith("3."), tf.keras.version()
assert before in (None, tf.keras.layers.Layer)
assert "TF_USE_LEGACY_KERAS" not in os.environ
print("fine")
"""


def test_correction_subtracts_the_clipped_log_probability() -> None:
    out = tfrs.sampling_probability_correction(tf.constant([[1.0, 2.0, 3.0]]), tf.constant([0.5, 1e-9, 3.0]))
    np.testing.assert_allclose(out, [[1 - math.log(0.5), 2 - math.log(1e-6), 3.0]], rtol=1e-6)


def test_accidental_hits_are_lowered_and_the_positive_is_not() -> None:
    one_hot = tf.one_hot([0, 1], 4)
    out = tfrs.remove_accidental_hits(one_hot, tf.ones([2, 4]), tf.constant([3, 4, 3, 9])).numpy()
    np.testing.assert_array_equal(out < -1e30, [[False, False, True, False], [False] * 4])
    assert (out[out > -1e30] == 1).all()


def test_what_comes_through_the_door_holds_no_weights() -> None:
    layers = tfrs._losses()
    for layer in (layers.SamplingProbablityCorrection(), layers.RemoveAccidentalHits()):
        assert layer.weights == []


def test_a_failed_import_leaves_tf_keras_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow_recommenders", None)
    before = vars(tf)["keras"]
    with pytest.raises(ImportError, match="tensorflow_recommenders"):
        tfrs._losses.__wrapped__()
    assert vars(tf)["keras"] is before


@pytest.mark.parametrize("state", ["used", "untouched"])
def test_everybody_keeps_their_tf_keras(state: str) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TF_USE_LEGACY_KERAS"}
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, state], env=environment, capture_output=True, text=True, check=False
    )
    assert run.stdout == "fine\n", run.stderr
