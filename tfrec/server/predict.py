"""Predict on a servable.

Reference: tensorflow_serving/servables/tensorflow/predict_util.cc.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
from tensorflow.core.framework.tensor_pb2 import TensorProto
from tensorflow_serving.apis.model_pb2 import ModelSpec
from tensorflow_serving.apis.predict_pb2 import PredictRequest, PredictResponse

from tfrec.server.servable import DEFAULT_SIGNATURE, Servable
from tfrec.server.status import invalid
from tfrec.server.tensors import field, to_array, typed

_NUMBERS = {name: found.number for name, found in PredictResponse.DESCRIPTOR.fields_by_name.items()}
_KEY, _VALUE = 1, 2  # of an entry of a map


def run_predict(
    servable: Servable,
    version: int | None,
    request: PredictRequest,
    deadline: float | None = None,
    encode: Callable[[np.ndarray], bytes] = typed,
) -> bytes:
    """Answers a PredictRequest with a serialized PredictResponse.

    Args:
        version: the number that the answer names.
        deadline: on the monotonic clock.
        encode: makes a serialized TensorProto of an output.

    Raises:
        RequestError: the request does not fit the signature, or the graph refuses it.
    """
    spec = request.model_spec
    signature = spec.signature_name or DEFAULT_SIGNATURE
    outputs = servable.run(signature, request.inputs, request.output_filter, deadline, _decode)
    # By hand: a message of messages, filled one attribute after the other, takes longer than a small graph.
    entries = [
        field(_NUMBERS["outputs"], field(_KEY, alias.encode()) + field(_VALUE, encode(value)))
        for alias, value in outputs.items()
    ]
    return b"".join([_spec(spec.name, signature, version), *entries])


@functools.lru_cache(256)
def _spec(name: str, signature: str, version: int | None) -> bytes:
    """The model, signature and version that an answer names, as its field."""
    filled = ModelSpec()
    fill_spec(filled, ModelSpec(name=name, signature_name=signature), version)
    return field(_NUMBERS["model_spec"], filled.SerializeToString())


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
