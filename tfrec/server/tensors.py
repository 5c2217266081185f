"""TensorProto ↔ numpy, with the rules of TensorFlow's C++ runtime."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np
import tensorflow as tf
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


class _Kind(NamedTuple):
    """What there is to know of a type. They are found by numpy's, as a tf.DType takes microseconds to hash or compare.

    Args:
        field: of typed values.
        part: the type of the numbers inside the field.
        sent: the number of the field if its bytes are those of the array.
    """

    dtype: tf.DType
    numpy: np.dtype
    field: str
    part: type | None
    sent: int | None


def _kind(dtype: tf.DType, name: str) -> _Kind:
    number = TensorProto.DESCRIPTOR.fields_by_name[name].number
    return _Kind(
        dtype, np.dtype(dtype.as_numpy_dtype), name, _PARTS.get(dtype), number if dtype in _SAME_BYTES else None
    )


_KINDS = [_kind(dtype, name) for dtype, name in _FIELDS.items()]
_BY_NUMBER = {kind.dtype.as_datatype_enum: kind for kind in _KINDS}
_BY_NUMPY = {kind.numpy: kind for kind in _KINDS}
_STRING = _BY_NUMBER[tf.string.as_datatype_enum]
_CONTENT = TensorProto.DESCRIPTOR.fields_by_name["tensor_content"].number


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
    kind, content = _BY_NUMBER[proto.dtype], proto.tensor_content
    if content and kind is not _STRING:
        return np.frombuffer(content, kind.numpy).reshape(shape)
    values = _typed_values(proto, kind)
    size = math.prod(shape)
    return (values if len(values) == size else _fill(values, size)).reshape(shape)


def to_proto(array: np.ndarray) -> TensorProto:
    """Encodes an array as typed values."""
    return TensorProto.FromString(typed(array))


def typed(array: np.ndarray) -> bytes:
    """A serialized TensorProto of typed values, the form in which TensorFlow Serving answers."""
    kind, head = _kind_of(array), _head(array.dtype, array.shape)
    if kind.sent is not None:
        return head + field(kind.sent, array.tobytes())
    proto, flat = TensorProto(), array.ravel()
    values = _strings(flat) if kind is _STRING else (flat.view(kind.part) if kind.part else flat).tolist()
    getattr(proto, kind.field).extend(values)
    return head + proto.SerializeToString()


def packed(array: np.ndarray) -> bytes:
    """A serialized TensorProto of tensor_content, as ``Tensor::AsProtoTensorContent``: of strings lengths first."""
    if _kind_of(array) is not _STRING:
        content = array.tobytes()
    else:
        values = _strings(array.ravel())
        content = b"".join([_varint(len(value)) for value in values] + values)
    return _head(array.dtype, array.shape) + (field(_CONTENT, content) if content else b"")


def field(number: int, data: bytes) -> bytes:
    """A field of bytes, text or a message as protobuf sends it; fields that follow one another are a message."""
    return _varint(number << 3 | 2) + _varint(len(data)) + data


@functools.lru_cache(4096)
def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; the highest bit says that more follow."""
    more = []
    while value > 0x7F:
        more.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*more, value])


@functools.lru_cache(1024)
def _head(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    """Type and shape."""
    proto = TensorProto(dtype=_kind_of(np.empty(0, dtype)).dtype.as_datatype_enum)
    proto.tensor_shape.SetInParent()
    for size in shape:
        proto.tensor_shape.dim.add().size = size
    return proto.SerializeToString()


def _strings(flat: np.ndarray) -> list[bytes]:
    return [value.encode() if isinstance(value, str) else value for value in flat.tolist()]


def dtype_of(array: np.ndarray) -> tf.DType:
    """The TensorFlow type of an array; text and bytes of any form are strings."""
    return _kind_of(array).dtype


def _kind_of(array: np.ndarray) -> _Kind:
    found = _BY_NUMPY.get(array.dtype)
    if found is None:
        return _STRING if array.dtype.kind in "OSU" else _BY_NUMBER[tf.as_dtype(array.dtype).as_datatype_enum]
    return found


def dtype_name(dtype: tf.DType) -> str:
    """TensorFlow's C++ name of a type, as ``double``."""
    return DataType.Name(dtype.as_datatype_enum)[3:].lower()


def _typed_values(proto: TensorProto, kind: _Kind) -> np.ndarray:
    values = getattr(proto, kind.field)
    if kind is _STRING:
        strings = np.empty(len(values), object)
        strings[:] = values
        return strings
    numbers = np.array(values[:] if len(values) < _SMALL else values)
    return numbers.astype(kind.part).view(kind.numpy) if kind.part else numbers.astype(kind.numpy)


def _fill(values: np.ndarray, size: int) -> np.ndarray:
    if len(values) >= size:
        return values[:size]
    if size - len(values) > _MOST_FILLED:
        raise ValueError(f"a tensor must not leave out more than {_MOST_FILLED} values; got {size - len(values)}")
    last = values[-1] if len(values) else (b"" if values.dtype == object else values.dtype.type())
    filled = np.empty(size, values.dtype)
    filled[: len(values)], filled[len(values) :] = values, last
    return filled
