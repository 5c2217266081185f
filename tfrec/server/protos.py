"""TensorFlow Serving's configuration files: text protos, also of messages that tensorflow-serving-api leaves out.

Reference: tensorflow_serving/config/{ssl_config,monitoring_config}.proto and
tensorflow_serving/servables/tensorflow/session_bundle_config.proto.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from google.protobuf import message, text_format

from tfrec.messages import message_classes
from tfrec.server.status import RequestError, invalid

# message → fields as "type name", with the numbers of TensorFlow Serving's own files.
_MESSAGES = {
    "Int64Value": {1: "int64 value"},
    "StringValue": {1: "string value"},
    "BoolValue": {1: "bool value"},
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


_CLASSES = message_classes("tfrec.server", _MESSAGES)
SSLConfig, MonitoringConfig, BatchingParameters = (
    _CLASSES[name] for name in ("SSLConfig", "MonitoringConfig", "BatchingParameters")
)
