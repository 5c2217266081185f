"""Golden requests: requests with their answers, kept in the SavedModel, and its warm-up requests."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog, PredictLog

from tfrec.errors import ArtifactError
from tfrec.server.servable import Servable
from tfrec.server.tensors import to_proto

GOLDEN = "assets.extra/golden_requests"
WARMUP = "assets.extra/tf_serving_warmup_requests"
_MAX_WARMUP = 1000  # TensorFlow Serving refuses to load a model with more
# One function under two names, each of which costs a second to prepare; verification asks under both.
_SAME = {"serving_default": "recommend"}

Request = tuple[str, Mapping[str, np.ndarray]]


def write_golden(path: Path, requests: Iterable[Request | PredictLog], model: str = "default") -> None:
    """Runs requests as TensorFlow Serving would and writes both files into the SavedModel's folder.

    Args:
        path: the SavedModel's folder.
        requests: pairs of a signature's name and its inputs (strings: object arrays of bytes); one with its answer, for
            which nothing is run, as a log.
        model: name of the model in the requests.

    Raises:
        ServerError: the model does not load or refuses a request.
    """
    servable = Servable(path)
    try:
        run = functools.partial(_run, servable, {})
        logs = [r if isinstance(r, PredictLog) else answered(model, r, run(r)) for r in requests]
    finally:
        servable.close()
    warmups = [PredictionLog(predict_log=PredictLog(request=log.request)) for log in logs]
    _write(path / GOLDEN, [PredictionLog(predict_log=log) for log in logs])
    _write(path / WARMUP, warmups[:_MAX_WARMUP])


def read_golden(path: Path) -> list[PredictLog]:
    """The golden requests of a SavedModel's folder, in order.

    Raises:
        ArtifactError: the file is absent or damaged.
    """
    file = path / GOLDEN
    if not file.is_file():
        raise ArtifactError("an artefact must hold golden requests", str(file), "Export it again")
    try:
        records = tf.data.TFRecordDataset(str(file)).as_numpy_iterator()
        return [PredictionLog.FromString(record).predict_log for record in records]
    except (tf.errors.DataLossError, ValueError) as error:
        raise ArtifactError(f"{file} must be a TFRecord of PredictionLog", str(error), "Export it again") from error


def answered(model: str, asked: Request, outputs: Mapping[str, np.ndarray]) -> PredictLog:
    """The log of a request with its answer."""
    signature, inputs = asked
    log = PredictLog()
    log.request.model_spec.name, log.request.model_spec.signature_name = model, signature
    log.response.model_spec.CopyFrom(log.request.model_spec)
    for alias, value in inputs.items():
        log.request.inputs[alias].CopyFrom(to_proto(value))
    for alias, value in outputs.items():
        log.response.outputs[alias].CopyFrom(to_proto(value))
    return log


def _run(servable: Servable, known: dict[Any, dict[str, np.ndarray]], asked: Request) -> dict[str, np.ndarray]:
    """The answer to a request; one that is asked under both names of a function is run once."""
    signature, inputs = asked
    signatures, other = servable.signatures, _SAME.get(signature, signature)
    if other in signatures and signatures[other].inputs.keys() == signatures[signature].inputs.keys():
        signature = other
    key = signature, *((name, np.shape(value), *np.ravel(value).tolist()) for name, value in inputs.items())
    if key not in known:
        known[key] = servable.run(signature, inputs)
    return known[key]


def _write(file: Path, logs: list[PredictionLog]) -> None:
    file.parent.mkdir(exist_ok=True)
    beside = file.with_name(f".{file.name}.tmp")
    with tf.io.TFRecordWriter(str(beside)) as writer:
        for log in logs:
            writer.write(log.SerializeToString())
    os.replace(beside, file)
