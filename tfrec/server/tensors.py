"""TensorProto ↔ numpy, with the rules of TensorFlow's C++ runtime."""

from __future__ import annotations

import math

import numpy as np
import tensorflow as tf
from google.protobuf.internal.encoder import _VarintBytes
from tensorflow.core.framework.tensor_pb2 import TensorProto
from tensorflow.core.framework.types_pb2 import DataType

# The value fields of TensorProto; 16-bit floats travel as the bits of half_val, complex numbers as pairs.
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
    tf.float16: "half_val",
    tf.bfloat16: "half_val",
    tf.complex64: "scomplex_val",
    tf.complex128: "dcomplex_val",
}
# The type of the numbers inside a field, where it is not the tensor's own.
_PARTS = {tf.float16: np.uint16, tf.bfloat16: np.uint16, tf.complex64: np.float32, tf.complex128: np.float64}
# Packed fields whose bytes on the wire are those of the array.
_SAME_BYTES = (tf.float32, tf.float64, tf.bool, tf.complex64, tf.complex128)
_MOST_FILLED = 2**26  # elements that a message may ask for without sending them
_SMALL = 64  # where copying a repeated field to a list stops being the fastest way to numpy

_BY_NUMBER = {dtype.as_datatype_enum: (dtype, np.dtype(dtype.as_numpy_dtype)) for dtype in _FIELDS}
_NUMBERS = {dtype: dtype.as_datatype_enum for dtype in _FIELDS}
_BY_NUMPY = {np.dtype(dtype.as_numpy_dtype): dtype for dtype in _FIELDS}
_TAGS = {
    dtype: _VarintBytes(TensorProto.DESCRIPTOR.fields_by_name[_FIELDS[dtype]].number << 3 | 2) for dtype in _SAME_BYTES
}


def to_array(proto: TensorProto) -> np.ndarray:
    """Decodes a tensor sent as tensor_content or as typed values.

    Fewer typed values than elements repeat the last one, none at all means zeros, as in ``Tensor::FromProto``.

    Args:
        proto: any shape; strings come out as an object array of bytes.

    Raises:
        ValueError: the shape is not fully known, the dtype is not supported, or the values do not fill the shape.
    """
    form = proto.tensor_shape
    shape = [dimension.size for dimension in form.dim]
    if form.unknown_rank or (shape and min(shape) < 0):
        raise ValueError("a tensor must have a fully known shape")
    if proto.dtype not in _BY_NUMBER:
        raise ValueError(f"tensors of dtype {proto.dtype} are not supported")
    dtype, numpy_dtype = _BY_NUMBER[proto.dtype]
    content = proto.tensor_content
    if content and dtype is not tf.string:
        return np.frombuffer(content, numpy_dtype).reshape(shape)
    values = _typed_values(proto, dtype, numpy_dtype)
    size = math.prod(shape)
    return (values if len(values) == size else _fill(values, size)).reshape(shape)


def to_proto(array: np.ndarray, proto: TensorProto | None = None) -> TensorProto:
    """Encodes an array as typed values, the form in which TensorFlow Serving answers.

    Args:
        proto: an empty message to fill; a new one when absent.
    """
    proto = TensorProto() if proto is None else proto
    dtype = _describe(array, proto)
    if dtype in _TAGS:
        data = array.tobytes()
        proto.MergeFromString(_TAGS[dtype] + _VarintBytes(len(data)) + data)
    elif dtype == tf.string:
        proto.string_val.extend(v.encode() if isinstance(v, str) else v for v in array.ravel().tolist())
    else:
        parts = array.ravel().view(_PARTS[dtype]) if dtype in _PARTS else array.ravel()
        getattr(proto, _FIELDS[dtype]).extend(parts.tolist())
    return proto


def to_content(array: np.ndarray, proto: TensorProto | None = None) -> TensorProto:
    """Encodes an array as tensor_content, as ``Tensor::AsProtoTensorContent``: strings as their lengths, then bytes.

    Args:
        proto: an empty message to fill; a new one when absent.
    """
    proto = TensorProto() if proto is None else proto
    if _describe(array, proto) == tf.string:
        values = [v.encode() if isinstance(v, str) else v for v in array.ravel().tolist()]
        proto.tensor_content = b"".join([_VarintBytes(len(value)) for value in values] + values)
    else:
        proto.tensor_content = array.tobytes()
    return proto


def _describe(array: np.ndarray, proto: TensorProto) -> tf.DType:
    """Fills in type and shape, and returns the type."""
    dtype = dtype_of(array)
    proto.dtype = _NUMBERS[dtype]
    add = proto.tensor_shape.dim.add
    for size in array.shape:
        add().size = size
    return dtype


def dtype_of(array: np.ndarray) -> tf.DType:
    """The TensorFlow type of an array; text and bytes of any form are strings."""
    found = _BY_NUMPY.get(array.dtype)
    if found is None:
        return tf.string if array.dtype.kind in "OSU" else tf.as_dtype(array.dtype)
    return found


def dtype_name(dtype: tf.DType) -> str:
    """TensorFlow's C++ name of a type, as ``double``."""
    return DataType.Name(dtype.as_datatype_enum)[3:].lower()


def _typed_values(proto: TensorProto, dtype: tf.DType, numpy_dtype: np.dtype) -> np.ndarray:
    values = getattr(proto, _FIELDS[dtype])
    if dtype == tf.string:
        strings = np.empty(len(values), object)
        strings[:] = values
        return strings
    numbers = np.array(values[:] if len(values) < _SMALL else values)
    if dtype in _PARTS:
        return numbers.astype(_PARTS[dtype]).view(numpy_dtype)
    return numbers.astype(numpy_dtype)


def _fill(values: np.ndarray, size: int) -> np.ndarray:
    if len(values) >= size:
        return values[:size]
    if size - len(values) > _MOST_FILLED:
        raise ValueError(f"a tensor must not leave out more than {_MOST_FILLED} values; got {size - len(values)}")
    last = values[-1] if len(values) else (b"" if values.dtype == object else values.dtype.type())
    filled = np.empty(size, values.dtype)
    filled[: len(values)], filled[len(values) :] = values, last
    return filled
