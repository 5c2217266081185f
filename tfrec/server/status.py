"""How a request or a load fails: a canonical code and TensorFlow Serving's words."""

from __future__ import annotations

import tensorflow as tf
from tensorflow.core.protobuf import error_codes_pb2

from tfrec.errors import ServerError


class RequestError(ServerError):
    """A refusal in TensorFlow Serving's words.

    Args:
        code: name of the canonical status code, as ``INVALID_ARGUMENT``.
        message: TensorFlow Serving's message.
    """

    def __init__(self, code: str, message: str):
        super().__init__(message)
        self.code = code

    @property
    def number(self) -> int:
        """The code as StatusProto holds it."""
        return error_codes_pb2.Code.Value(self.code)

    def status(self) -> str:
        """The text of ``absl::Status::ToString``."""
        return f"{self.code}: {self}"


def invalid(message: str) -> RequestError:
    """The commonest refusal: INVALID_ARGUMENT."""
    return RequestError("INVALID_ARGUMENT", message)


def from_runtime(error: tf.errors.OpError) -> RequestError:
    """An error of TensorFlow's runtime with its own code and message."""
    return RequestError(error_codes_pb2.Code.Name(error.error_code), error.message)
