"""Runs the requests that a SavedModel brings along before it serves.

Reference: tensorflow_serving/servables/tensorflow/{saved_model_warmup,saved_model_warmup_util}.cc.
"""

from __future__ import annotations

import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.python.lib.io._pywrap_record_io import RecordIterator
from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog

from tfrec.server.examples import run_classify, run_multi_inference, run_regress
from tfrec.server.predict import run_predict
from tfrec.server.servable import Servable
from tfrec.server.status import RequestError, from_runtime, invalid

WARMUP = "assets.extra/tf_serving_warmup_requests"
_MOST = 1000


def warm_up(servable: Servable, iterations: int = 1) -> int:
    """Replays the warm-up records of a servable and returns how many there were.

    Args:
        iterations: how often each is run.

    Raises:
        RequestError: a record cannot be read or fails, or there are more than 1000.
    """
    file = servable.path / WARMUP
    if not file.exists():
        return 0
    count = 0
    try:
        for record in RecordIterator(str(file), ""):
            log = _parse(record, str(file))
            for _ in range(iterations):
                _replay(servable, log)
            count += 1
            if count > _MOST:
                raise invalid(f"Number of warmup records exceeds the maximum ({_MOST}) at {file}")
    except tf.errors.DataLossError as error:
        text = f"{error.message}. Please verify your warmup data is in TFRecord format."
        raise RequestError("DATA_LOSS", text) from error
    except tf.errors.OpError as error:
        raise from_runtime(error) from error
    return count


def _parse(record: bytes, file: str) -> PredictionLog:
    try:
        return PredictionLog.FromString(record)
    except DecodeError as error:
        raise invalid(f"Failed to parse warmup record: {record!r} from {file}") from error


def _replay(servable: Servable, log: PredictionLog) -> None:
    kind = log.WhichOneof("log_type")
    if kind == "predict_log":
        run_predict(servable, None, log.predict_log.request)
    elif kind == "classify_log":
        run_classify(servable, None, log.classify_log.request)
    elif kind == "regress_log":
        run_regress(servable, None, log.regress_log.request)
    elif kind == "multi_inference_log":
        run_multi_inference(servable, None, log.multi_inference_log.request)
    elif kind == "session_run_log":
        number = PredictionLog.DESCRIPTOR.fields_by_name[kind].number
        raise RequestError("UNIMPLEMENTED", f"Unsupported log_type for warmup: {number}")
