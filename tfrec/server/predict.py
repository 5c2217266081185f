"""Predict on a servable.

Reference: tensorflow_serving/servables/tensorflow/predict_util.cc.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from tensorflow.core.framework.tensor_pb2 import TensorProto
from tensorflow_serving.apis.model_pb2 import ModelSpec
from tensorflow_serving.apis.predict_pb2 import PredictRequest, PredictResponse

from tfrec.server.servable import DEFAULT_SIGNATURE, Servable
from tfrec.server.status import invalid
from tfrec.server.tensors import to_array, to_proto


def run_predict(
    servable: Servable,
    version: int | None,
    request: PredictRequest,
    deadline: float | None = None,
    encode: Callable[[np.ndarray, TensorProto], TensorProto] = to_proto,
) -> PredictResponse:
    """Answers a PredictRequest.

    Args:
        version: the number that the answer names.
        deadline: on the monotonic clock.
        encode: fills an empty message with an output.

    Raises:
        RequestError: the request does not fit the signature, or the graph refuses it.
    """
    spec = request.model_spec
    outputs = servable.run(spec.signature_name, dict(request.inputs), request.output_filter, deadline, _decode)
    response = PredictResponse()
    fill_spec(response.model_spec, spec, version)
    for alias, value in outputs.items():
        encode(value, response.outputs[alias])
    return response


def fill_spec(spec: ModelSpec, asked: ModelSpec, version: int | None) -> None:
    """The model, signature and version that an answer names."""
    spec.name, spec.signature_name = asked.name, asked.signature_name or DEFAULT_SIGNATURE
    if version is not None:
        spec.version.value = version


def _decode(alias: str, proto: TensorProto) -> np.ndarray:
    try:
        return to_array(proto)
    except (ValueError, TypeError, OverflowError, MemoryError) as error:
        raise invalid(f"tensor parsing error: {alias}") from error
