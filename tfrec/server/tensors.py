"""TensorProto ↔ numpy, with the rules of TensorFlow's C++ runtime."""

from __future__ import annotations

import math

import numpy as np
import tensorflow as tf
from tensorflow.core.framework.tensor_pb2 import TensorProto

# The value fields of TensorProto; 16-bit floats travel as the bits of half_val and are handled by name.
_FIELDS = {
    tf.float32: "float_val",
    tf.float64: "double_val",
    tf.int8: "int_val",
    tf.int16: "int_val",
    tf.int32: "int_val",
    tf.uint8: "int_val",
    tf.uint16: "int_val",
    tf.int64: "int64_val",
    tf.uint32: "uint32_val",
    tf.uint64: "uint64_val",
    tf.bool: "bool_val",
    tf.string: "string_val",
}
_HALF = (tf.float16, tf.bfloat16)


def to_array(proto: TensorProto) -> np.ndarray:
    """Decodes a tensor sent as tensor_content or as typed values.

    Fewer typed values than elements repeat the last one, none at all means zeros, as in ``Tensor::FromProto``.

    Args:
        proto: any shape; strings come out as an object array of bytes.

    Raises:
        ValueError: the shape is not fully known, the dtype is not supported, or tensor_content has another size.
    """
    shape = [dimension.size for dimension in proto.tensor_shape.dim]
    if proto.tensor_shape.unknown_rank or any(size < 0 for size in shape):
        raise ValueError("a tensor must have a fully known shape")
    dtype = tf.as_dtype(proto.dtype)
    if proto.tensor_content and dtype != tf.string:
        return np.frombuffer(proto.tensor_content, dtype.as_numpy_dtype).reshape(shape)
    return _fill(_typed_values(proto, dtype), math.prod(shape)).reshape(shape)


def to_proto(array: np.ndarray) -> TensorProto:
    """Encodes an array as typed values, the form in which TensorFlow Serving answers."""
    dtype = tf.as_dtype(array.dtype) if array.dtype.kind not in "OSU" else tf.string
    proto = TensorProto(dtype=dtype.as_datatype_enum)
    for size in array.shape:
        proto.tensor_shape.dim.add(size=size)
    if dtype in _HALF:
        proto.half_val.extend(array.ravel().view(np.uint16).tolist())
    elif dtype == tf.string:
        proto.string_val.extend(v.encode() if isinstance(v, str) else v for v in array.ravel().tolist())
    else:
        getattr(proto, _field(dtype)).extend(array.ravel().tolist())
    return proto


def _field(dtype: tf.DType) -> str:
    if dtype not in _FIELDS:
        raise ValueError(f"tensors of {dtype.name} are not supported")
    return _FIELDS[dtype]


def _typed_values(proto: TensorProto, dtype: tf.DType) -> np.ndarray:
    if dtype in _HALF:
        return np.array(proto.half_val, np.uint16).view(dtype.as_numpy_dtype)
    values = getattr(proto, _field(dtype))
    if dtype == tf.string:
        strings = np.empty(len(values), object)
        strings[:] = values
        return strings
    return np.array(values).astype(dtype.as_numpy_dtype)


def _fill(values: np.ndarray, size: int) -> np.ndarray:
    if len(values) >= size:
        return values[:size]
    last = values[-1] if len(values) else (b"" if values.dtype == object else values.dtype.type())
    filled = np.empty(size, values.dtype)
    filled[: len(values)], filled[len(values) :] = values, last
    return filled
