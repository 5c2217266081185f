"""TensorFlow Serving's configuration files: text protos, also of messages that tensorflow-serving-api leaves out.

Reference: tensorflow_serving/config/{ssl_config,monitoring_config}.proto and
tensorflow_serving/servables/tensorflow/session_bundle_config.proto.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory, text_format, wrappers_pb2

from tfrec.server.status import RequestError, invalid

_PACKAGE = "tfrec.server"
_FIELD = descriptor_pb2.FieldDescriptorProto
_WRAPPERS = {"Int64Value", "StringValue", "BoolValue"}
_SCALARS = {"string": _FIELD.TYPE_STRING, "bool": _FIELD.TYPE_BOOL, "int64": _FIELD.TYPE_INT64}

# message → fields as "type name", with the numbers of TensorFlow Serving's own files.
_MESSAGES = {
    "SSLConfig": {1: "string server_key", 2: "string server_cert", 3: "string custom_ca", 4: "bool client_verify"},
    "PrometheusConfig": {1: "bool enable", 2: "string path"},
    "MonitoringConfig": {1: "PrometheusConfig prometheus_config"},
    "BatchingParameters": {
        1: "Int64Value max_batch_size",
        2: "Int64Value batch_timeout_micros",
        3: "Int64Value max_enqueued_batches",
        4: "Int64Value num_batch_threads",
        5: "StringValue thread_pool_name",
        6: "repeated int64 allowed_batch_sizes",
        7: "bool pad_variable_length_inputs",
        8: "BoolValue enable_large_batch_splitting",
        9: "Int64Value max_execution_batch_size",
    },
}

Message = TypeVar("Message", bound=message.Message)


def read_text(file: Path, into: Message) -> Message:
    """Fills a message from a text file and returns it.

    Raises:
        RequestError: the file is absent or is no text of such a message, in TensorFlow Serving's words.
    """
    try:
        return text_format.Parse(file.read_text(encoding="utf-8"), into)
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise invalid(f"Invalid protobuf file: '{file}'") from error
    except OSError as error:
        code = "NOT_FOUND" if isinstance(error, FileNotFoundError) else "FAILED_PRECONDITION"
        raise RequestError(code, f"{file}; {error.strerror}") from error


def _file() -> descriptor_pb2.FileDescriptorProto:
    wrappers = wrappers_pb2.DESCRIPTOR
    file = descriptor_pb2.FileDescriptorProto(
        name="tfrec/server/configs.proto", package=_PACKAGE, syntax="proto3", dependency=[wrappers.name]
    )
    for name, fields in _MESSAGES.items():
        made = file.message_type.add(name=name)
        for number, text in fields.items():
            *repeated, kind, field_name = text.split()
            label = _FIELD.LABEL_REPEATED if repeated else _FIELD.LABEL_OPTIONAL
            field = made.field.add(name=field_name, number=number, label=label)
            if kind in _SCALARS:
                field.type = _SCALARS[kind]
            else:
                field.type = _FIELD.TYPE_MESSAGE
                field.type_name = f".{wrappers.package if kind in _WRAPPERS else _PACKAGE}.{kind}"
    return file


_POOL = descriptor_pool.DescriptorPool()
_POOL.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
_POOL.Add(_file())


def _message(name: str) -> Any:
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"{_PACKAGE}.{name}"))


SSLConfig, MonitoringConfig, BatchingParameters = (
    _message(name) for name in ("SSLConfig", "MonitoringConfig", "BatchingParameters")
)
