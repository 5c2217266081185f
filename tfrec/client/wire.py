"""TensorFlow Serving's messages, as far as a recommender's client needs them.

The stubs of tensorflow-serving-api import TensorFlow, which takes seconds; these are the same bytes.
Reference: tensorflow_serving/apis/*.proto, tensorflow/core/framework/tensor.proto.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tfrec.client.attempts import RefusedError
from tfrec.client.calls import Call, Model
from tfrec.client.results import Signature, TensorInfo, VersionStatus
from tfrec.messages import message_classes

# message → fields, with the numbers of TensorFlow's and TensorFlow Serving's own files.
TABLE = {
    "Dim": {1: "int64 size"},
    "TensorShapeProto": {2: "repeated Dim dim", 3: "bool unknown_rank"},
    "TensorProto": {
        1: "int32 dtype",
        2: "TensorShapeProto tensor_shape",
        4: "bytes tensor_content",
        5: "repeated float float_val",
        7: "repeated int32 int_val",
        8: "repeated bytes string_val",
    },
    "Int64Value": {1: "int64 value"},
    "ModelSpec": {1: "string name", 2: "Int64Value version", 3: "string signature_name", 4: "string version_label"},
    "TensorEntry": {1: "string key", 2: "TensorProto value"},
    "PredictRequest": {1: "ModelSpec model_spec", 2: "repeated TensorEntry inputs"},
    "PredictResponse": {1: "repeated TensorEntry outputs", 2: "ModelSpec model_spec"},
    "GetModelStatusRequest": {1: "ModelSpec model_spec"},
    "StatusProto": {1: "int32 error_code", 2: "string error_message"},
    "ModelVersionStatus": {1: "int64 version", 2: "int32 state", 3: "StatusProto status"},
    "GetModelStatusResponse": {1: "repeated ModelVersionStatus model_version_status"},
    "GetModelMetadataRequest": {1: "ModelSpec model_spec", 2: "repeated string metadata_field"},
    "Any": {1: "string type_url", 2: "bytes value"},
    "AnyEntry": {1: "string key", 2: "Any value"},
    "GetModelMetadataResponse": {1: "ModelSpec model_spec", 2: "repeated AnyEntry metadata"},
    "TensorInfo": {2: "int32 dtype", 3: "TensorShapeProto tensor_shape"},
    "InfoEntry": {1: "string key", 2: "TensorInfo value"},
    "SignatureDef": {1: "repeated InfoEntry inputs", 2: "repeated InfoEntry outputs"},
    "SignatureEntry": {1: "string key", 2: "SignatureDef value"},
    "SignatureDefMap": {1: "repeated SignatureEntry signature_def"},
}
MESSAGES = message_classes("tfrec.client", TABLE)
DTYPES = (  # in the order of their numbers
    "INVALID", "FLOAT", "DOUBLE", "INT32", "UINT8", "INT16", "INT8", "STRING", "COMPLEX64", "INT64", "BOOL",
    "QINT8", "QUINT8", "QINT32", "BFLOAT16", "QINT16", "QUINT16", "UINT16", "COMPLEX128",
    "HALF", "RESOURCE", "VARIANT", "UINT32", "UINT64",
)  # fmt: skip
STATES = {0: "UNKNOWN", 10: "START", 20: "LOADING", 30: "AVAILABLE", 40: "UNLOADING", 50: "END"}
_FLOAT, _INT32, _STRING = (DTYPES.index(name) for name in ("FLOAT", "INT32", "STRING"))
_SIGNATURES = "signature_def"
_MOST_VALUES = 2**28


@dataclass(frozen=True)
class Method:
    """A remote procedure."""

    path: str
    request: Any
    response: Any


def _method(service: str, name: str, message: str = "") -> Method:
    message = message or name
    path = f"/tensorflow.serving.{service}/{name}"
    return Method(path, MESSAGES[f"{message}Request"], MESSAGES[f"{message}Response"])


PREDICT = _method("PredictionService", "Predict")
METADATA = _method("PredictionService", "GetModelMetadata")
STATUS = _method("ModelService", "GetModelStatus")


def predict_request(model: Model, call: Call) -> Any:
    """A PredictRequest."""
    request = PREDICT.request(model_spec=_spec(model))
    request.model_spec.signature_name = call.signature
    for name, value in call.inputs.items():
        _fill(request.inputs.add(key=name).value, value)
    return request


def read_outputs(response: Any, call: Call) -> dict[str, Any]:
    """The outputs of strings and floats, as nested lists.

    Raises:
        RefusedError: one that the call must have is absent or of another type.
    """
    tensors = {entry.key: entry.value for entry in response.outputs}
    for name in call.outputs:
        if name not in tensors or tensors[name].dtype not in (_FLOAT, _STRING):
            raise RefusedError("UNIMPLEMENTED", f"the answer lacks {name}, strings or floats: this is no recommender")
    return {name: _values(tensor) for name, tensor in tensors.items() if tensor.dtype in (_FLOAT, _STRING)}


def metadata_request(model: Model) -> Any:
    """A GetModelMetadataRequest."""
    return METADATA.request(model_spec=_spec(model), metadata_field=[_SIGNATURES])


def read_signatures(response: Any) -> dict[str, Signature]:
    """The signatures of a GetModelMetadataResponse."""
    (packed,) = (entry.value.value for entry in response.metadata if entry.key == _SIGNATURES)
    definitions = MESSAGES["SignatureDefMap"].FromString(packed).signature_def
    return {entry.key: Signature(_infos(entry.value.inputs), _infos(entry.value.outputs)) for entry in definitions}


def status_request(model: Model) -> Any:
    """A GetModelStatusRequest."""
    return STATUS.request(model_spec=_spec(model))


def read_status(response: Any) -> tuple[VersionStatus, ...]:
    """The versions of a GetModelStatusResponse."""
    return tuple(
        VersionStatus(found.version, STATES.get(found.state, "UNKNOWN"), found.status.error_message)
        for found in response.model_version_status
    )


def _spec(model: Model) -> Any:
    version = None if model.version is None else MESSAGES["Int64Value"](value=model.version)
    return MESSAGES["ModelSpec"](name=model.name, version=version, version_label=model.label)


def _infos(entries: Any) -> dict[str, TensorInfo]:
    return {
        entry.key: TensorInfo(f"DT_{DTYPES[entry.value.dtype]}", _shape(entry.value.tensor_shape)) for entry in entries
    }


def _shape(shape: Any) -> tuple[int, ...] | None:
    return None if shape.unknown_rank else tuple(dim.size for dim in shape.dim)


def _fill(tensor: Any, value: Any) -> None:
    flat = [value]
    level = value
    while isinstance(level, list):
        tensor.tensor_shape.dim.add(size=len(level))
        flat = [element for part in flat for element in part]
        level = level[0] if level else None
    if flat and isinstance(flat[0], float):
        tensor.dtype = _FLOAT
        tensor.float_val.extend(flat)
    elif flat and isinstance(flat[0], int):
        tensor.dtype = _INT32
        tensor.int_val.extend(flat)
    else:
        tensor.dtype = _STRING
        tensor.string_val.extend(text.encode() for text in flat)


def _values(tensor: Any) -> Any:
    shape = [dim.size for dim in tensor.tensor_shape.dim]
    size = math.prod(shape)
    if tensor.dtype == _STRING:
        flat: list[Any] = [text.decode() for text in tensor.string_val]
    elif tensor.tensor_content:
        content = tensor.tensor_content
        flat = list(struct.unpack(f"<{len(content) // 4}f", content[: len(content) // 4 * 4]))
    else:
        flat = list(tensor.float_val)
    if not tensor.tensor_content and size <= _MOST_VALUES:
        flat += flat[-1:] * (size - len(flat))  # TensorFlow may leave out repetitions of the last value
    if size < 0 or len(flat) != size:
        raise RefusedError("UNIMPLEMENTED", f"the answer holds {len(flat)} values for the shape {shape}")
    return _nested(flat, shape)


def _nested(flat: Sequence[Any], shape: Sequence[int]) -> Any:
    if not shape:
        return flat[0]
    step = math.prod(shape[1:])
    return [_nested(flat[i * step : (i + 1) * step], shape[1:]) for i in range(shape[0])]
