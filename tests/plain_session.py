"""python plain_session.py SAVED_MODEL SIGNATURE INPUTS.json OUTPUT.npz: one request in a TensorFlow 1 session.

TensorFlow alone: neither tfrec nor tensorflow_text is there to register anything. Inputs are strings; those that are
absent take the signature's defaults.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf


def run(saved_model: str, name: str, inputs: dict[str, object]) -> dict[str, np.ndarray]:
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        loaded = tf.compat.v1.saved_model.load(session, ["serve"], saved_model)
        signature = loaded.signature_def[name]
        given = {alias: tf.make_ndarray(value) for alias, value in signature.defaults.items()}
        given |= {alias: np.array(value, object) for alias, value in inputs.items()}
        feeds = {signature.inputs[alias].name: value for alias, value in given.items()}
        return session.run({alias: tensor.name for alias, tensor in signature.outputs.items()}, feeds)


if __name__ == "__main__":
    path, signature_name, request, output = sys.argv[1:]
    np.savez(output, **run(path, signature_name, json.loads(Path(request).read_text(encoding="utf-8"))))
    unwanted = {"tfrec", "tensorflow_text", "keras_hub"} & sys.modules.keys()
    if unwanted:
        raise SystemExit(f"a plain session must not import {sorted(unwanted)}")
