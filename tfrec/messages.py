"""Protobuf messages made from a table of their fields: for protos that no light package carries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

Table = Mapping[str, Mapping[int, str]]
_FIELD = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    "string": _FIELD.TYPE_STRING,
    "bytes": _FIELD.TYPE_BYTES,
    "bool": _FIELD.TYPE_BOOL,
    "int32": _FIELD.TYPE_INT32,
    "int64": _FIELD.TYPE_INT64,
    "float": _FIELD.TYPE_FLOAT,
}


def message_classes(package: str, table: Table) -> dict[str, Any]:
    """Classes whose bytes and text are those of the protos that the table copies.

    An enum is an int32 and a map is a repeated message of key and value: on the wire they are the same.

    Args:
        package: of the messages; they live in a pool of their own, so that the real ones may be imported beside them.
        table: message → field number → "type name" or "repeated type name"; a type is a scalar or another message.

    Returns:
        message → class.
    """
    file = descriptor_pb2.FileDescriptorProto(name=f"{package}.proto", package=package, syntax="proto3")
    for name, fields in table.items():
        message = file.message_type.add(name=name)
        for number, text in fields.items():
            message.field.append(_field(package, number, *text.split()))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{name}")) for name in table}


def _field(package: str, number: int, *words: str) -> Any:
    *repeated, kind, name = words
    label = _FIELD.LABEL_REPEATED if repeated else _FIELD.LABEL_OPTIONAL
    field = _FIELD(name=name, number=number, label=label, type=_SCALARS.get(kind, _FIELD.TYPE_MESSAGE))
    if kind not in _SCALARS:
        field.type_name = f".{package}.{kind}"
    return field
