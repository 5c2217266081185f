"""REST bodies → requests.

Reference: tensorflow_serving/util/json_tensor.cc.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.example.example_pb2 import Example
from tensorflow.core.example.feature_pb2 import Feature
from tensorflow_serving.apis.input_pb2 import Input

from tfrec.server.json_text import Repeated, describe, type_name
from tfrec.server.servable import TensorInfo
from tfrec.server.status import RequestError, invalid
from tfrec.server.tensors import dtype_name

Infos = Mapping[str, TensorInfo]
_INT32, _INT64 = (-(2**31), 2**31 - 1), (-(2**63), 2**63 - 1)
_RANGES = {tf.int8: _INT32, tf.int16: _INT32, tf.int32: _INT32, tf.uint8: _INT32, tf.int64: _INT64}
_RANGES |= {tf.uint32: (0, 2**32 - 1), tf.uint64: (0, 2**64 - 1)}
_MOST_AXES = 64  # of a numpy array
_EXACT = {tf.float32: np.float64, tf.float64: np.float64, tf.uint64: np.uint64, tf.bool: np.bool_}  # else int64
_FLOATS = {
    tf.float32: ("float", 2**24 - 1, float(np.finfo(np.float32).max)),
    tf.float64: ("double", 2**53 - 1, math.inf),
}


def signature_name(document: Mapping[str, Any]) -> str:
    """The signature that a body names, or "".

    Raises:
        RequestError: it is no string.
    """
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        raise invalid(
            f"JSON Value: {describe(document)} not formatted correctly. 'signature_name' key must be a string value."
        )
    return _readable(name)


def predict_inputs(document: Mapping[str, Any], infos: Infos) -> tuple[dict[str, np.ndarray], bool]:
    """The tensors of a predict body, and whether it is in row form.

    Raises:
        RequestError: the body does not fit the signature's inputs.
    """
    if "instances" in document:
        rows = document["instances"]
        if "inputs" in document:
            raise _malformed(
                document, "Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist "
            )
        if not isinstance(rows, list):
            raise _malformed(document, "Excepting 'instances' to be an list/array")
        if not rows:
            raise _malformed(document, "No values in 'instances' array")
        return _from_rows(rows, infos), True
    if "inputs" not in document:
        raise invalid("Missing 'inputs' or 'instances' key")
    return _from_columns(document["inputs"], infos), False


def examples_input(document: Mapping[str, Any]) -> Input:
    """The examples of a classify or regress body.

    Raises:
        RequestError: the body does not fit.
    """
    given, listed = Input(), document.get("examples")
    context = make_example(document["context"]) if "context" in document else None
    if "examples" not in document:
        raise _malformed(document, "When method is classify, key 'examples' is expected and was not found")
    if not isinstance(listed, list):
        raise _malformed(document, "Expecting 'examples' value to be an list/array")
    if not listed:
        raise _malformed(document, "'examples' value is an empty array")
    examples = [make_example(example) for example in listed]
    if context is None:
        given.example_list.examples.extend(examples)
    else:
        given.example_list_with_context.context.CopyFrom(context)
        given.example_list_with_context.examples.extend(examples)
    return given


def make_example(value: Any) -> Example:
    """A tf.Example of a JSON object: each key a feature.

    Raises:
        RequestError: it is no object, or a feature is of mixed or unknown type.
    """
    if not isinstance(value, dict):
        raise invalid(f"Example must be JSON object but got JSON {type_name(value)}")
    example = Example()
    features = value.last if isinstance(value, Repeated) else value  # each of them replaces the one before
    for name, content in features.items():
        feature = example.features.feature[_readable(name)]
        for element in content if isinstance(content, list) else [content]:
            _add_to_feature(element, name, feature)
    return example


def to_tensor(value: Any, dtype: tf.DType) -> np.ndarray:
    """A dense tensor of nested lists.

    Raises:
        RequestError: the lists are ragged, or a value is not of the type.
    """
    shape: list[int] = []
    level = value
    while isinstance(level, list):
        shape.append(len(level))
        if not level:
            break
        level = level[0]
    if len(shape) > _MOST_AXES:
        raise invalid(f"tensor parsing error: a tensor of rank {len(shape)}")
    flat: list[Any] = []
    _flatten(value, 0, shape, dtype, flat)
    if dtype == tf.string:
        strings = np.empty(len(flat), object)
        strings[:] = flat
        return strings.reshape(shape)
    return np.array(flat, _EXACT.get(dtype, np.int64)).astype(dtype.as_numpy_dtype).reshape(shape)


def _from_rows(rows: list[Any], infos: Infos) -> dict[str, np.ndarray]:
    if not isinstance(rows[0], dict) and len(infos) > 1:
        raise invalid(
            "instances is a plain list, but expecting list of objects as multiple input tensors required as per "
            "tensorinfo_map"
        )
    named = _is_object(rows[0])
    parts: dict[str, list[np.ndarray]] = {}
    for number, row in enumerate(rows):
        if named != _is_object(row):
            wrong = "object but got list" if named else "value/list but got object"
            raise invalid(f"Expecting {wrong} at item {number} of input list")
        for name, value in row.items() if named else [(next(iter(infos)), row)]:
            try:
                _add_part(parts, name, value, infos)
            except RequestError as error:
                key = f" key: {name}" if named else ""
                raise invalid(
                    f"Failed to process element: {number}{key} of 'instances' list. Error: {error.status()}"
                ) from error
        if named and row.keys() != infos.keys():
            raise invalid(
                f"Failed to process element: {number} of 'instances' list. JSON object: {describe(row)} keys must be "
                f"equal to: {','.join(sorted(infos))}"
            )
    return {name: np.stack(arrays) for name, arrays in parts.items()}


def _add_part(parts: dict[str, list[np.ndarray]], name: str, value: Any, infos: Infos) -> None:
    if name not in infos:
        raise invalid(f"JSON object: does not have named input: {name}")
    array, before = to_tensor(value, infos[name].dtype), parts.setdefault(name, [])
    if before and before[0].size != array.size:
        raise invalid(f"Expecting tensor size: {before[0].size} but got: {array.size}")
    if before and before[0].shape != array.shape:
        raise invalid(f"Expecting shape {_shape(before[0])} but got: {_shape(array)}")
    before.append(array)


def _from_columns(given: Any, infos: Infos) -> dict[str, np.ndarray]:
    if not _is_object(given):
        if len(infos) > 1:
            raise invalid(
                "inputs is a plain value/list, but expecting an object as multiple input tensors required as per "
                "tensorinfo_map"
            )
        name, info = next(iter(infos.items()))
        return {name: to_tensor(given, info.dtype)}
    for name in infos:
        if name not in given:
            raise invalid(f"Missing named input: {name} in 'inputs' object.")
    return {name: to_tensor(given[name], info.dtype) for name, info in infos.items()}


def _flatten(value: Any, level: int, shape: list[int], dtype: tf.DType, flat: list[Any]) -> None:
    if not isinstance(value, list):
        if level != len(shape):
            raise invalid(
                f"JSON Value: {describe(value)} found at incorrect level: {level + 1} in the JSON DOM. "
                f"Expected at level: {len(shape)}"
            )
        flat.append(_element(value, dtype))
        return
    if level >= len(shape):
        raise invalid(f"Encountered list at unexpected level: {level} expected < {len(shape)}")
    if len(value) != shape[level]:
        raise invalid(
            f"Encountered list at unexpected size: {len(value)} at level: {level} expected size: {shape[level]}"
        )
    for element in value:
        _flatten(element, level + 1, shape, dtype, flat)


def _element(value: Any, dtype: tf.DType) -> Any:
    kind = dict if isinstance(value, dict) else type(value)
    if dtype in _FLOATS and kind in (int, float):
        return _lossless(value, dtype)
    if dtype in _RANGES and kind is int and _RANGES[dtype][0] <= value <= _RANGES[dtype][1]:
        return value
    if dtype == tf.bool and kind is bool:
        return value
    if dtype == tf.string and kind is str:
        return value.encode("utf-8", "surrogateescape")
    if dtype == tf.string and kind is dict:
        return _decoded(value)
    if dtype in _FLOATS or dtype in _RANGES or dtype in (tf.bool, tf.string) or kind is dict:
        raise invalid(
            f"JSON Value: {describe(value)} Type: {type_name(value)} is not of expected type: {dtype_name(dtype)}"
        )
    raise RequestError("UNIMPLEMENTED", f"Conversion of JSON Value: {describe(value)} to type: {dtype_name(dtype)}")


def _lossless(value: int | float, dtype: tf.DType) -> float:
    name, largest_whole, largest = _FLOATS[dtype]
    whole = type(value) is int and _is_whole(value)
    number = float(value) if abs(value) < 10**308 or type(value) is float else math.copysign(math.inf, value)
    if not math.isfinite(number):
        return number
    if abs(value) > largest_whole if whole else abs(number) > largest:
        raise invalid(f"Cannot convert JSON value: {describe(value)} to {name} without loss of precision.")
    return number


def _is_whole(value: int) -> bool:
    """Whether RapidJSON holds it as an integer; others are doubles."""
    return -(2**63) <= value < 2**64


def _decoded(value: dict[str, Any]) -> bytes:
    if not _is_base64(value):
        raise invalid(f"JSON Value: {describe(value)} not formatted correctly for base64 data")
    text = "".join(value["b64"].split())
    digits = text.rstrip("=")
    padding = "=" * (-len(digits) % 4)
    if text not in (digits, digits + padding):
        raise invalid("Unable to base64 decode")
    try:
        return base64.b64decode(digits + padding, validate=True)
    except (binascii.Error, ValueError) as error:
        raise invalid("Unable to base64 decode") from error


def _add_to_feature(value: Any, name: str, feature: Feature) -> None:
    if value is None or isinstance(value, list) or (isinstance(value, dict) and not _is_base64(value)):
        raise invalid(f"Feature: {name} has element with unexpected JSON type: {type_name(value)}")
    if isinstance(value, float) or (isinstance(value, int) and not _is_whole(value)):
        _of_kind(feature, "float", name).float_list.value.append(_lossless(value, tf.float32))
    elif isinstance(value, int):
        _of_kind(feature, "int64", name)
        if value > _INT64[1]:
            raise invalid(f"Feature: {name} has uint64 element. Only int64 is supported.")
        feature.int64_list.value.append(int(value))
    else:
        data = _decoded(value) if isinstance(value, dict) else value.encode("utf-8", "surrogateescape")
        _of_kind(feature, "bytes", name).bytes_list.value.append(data)


def _of_kind(feature: Feature, kind: str, name: str) -> Feature:
    held = (feature.WhichOneof("kind") or f"{kind}_list").removesuffix("_list")
    if held != kind:
        raise invalid(f"Unexpected element type in feature: {name} expecting type: {held}")
    return feature


def _is_base64(value: Any) -> bool:
    if not isinstance(value, dict) or isinstance(value, Repeated):
        return False
    return value.keys() == {"b64"} and isinstance(value["b64"], str)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict) and not _is_base64(value)


def _readable(text: str) -> str:
    """Text that a proto can hold: bytes that were no UTF-8 are replaced."""
    return text.encode("utf-8", "replace").decode()


def _malformed(document: Mapping[str, Any], rule: str) -> RequestError:
    return invalid(f"JSON Value: {describe(document)} {rule}")


def _shape(array: np.ndarray) -> str:
    return json.dumps(array.shape, separators=(",", ":"))
