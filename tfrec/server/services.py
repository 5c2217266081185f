"""The gRPC services: calls of the Api behind TensorFlow Serving's stubs."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import grpc
from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc

from tfrec.server.api import Api, Deadline
from tfrec.server.status import RequestError

Timed = Callable[[Any, Deadline], Any]
Handler = Callable[[Any, grpc.ServicerContext], Any]
_LOG = logging.getLogger(__name__)


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Predict, Classify, Regress, MultiInference and GetModelMetadata."""

    def __init__(self, api: Api):
        self.Predict = _measured(api, "Predict", api.predict)
        self.Classify = _measured(api, "Classify", api.classify)
        self.Regress = _measured(api, "Regress", api.regress)
        self.MultiInference = _timed(api.multi_inference)
        self.GetModelMetadata = _plain(api.metadata)


class ModelService(model_service_pb2_grpc.ModelServiceServicer):
    """GetModelStatus and HandleReloadConfigRequest."""

    def __init__(self, api: Api):
        self.GetModelStatus = _plain(api.status)
        self._api = api

    def HandleReloadConfigRequest(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802 (the stub's)
        return _answer(context, lambda: self._api.reload(request, context.is_active))


def _measured(api: Api, name: str, call: Timed) -> Handler:
    return lambda request, context: _answer(
        context, api.measured, request.model_spec.name, name, "GRPC", call, request, _deadline(context)
    )


def _timed(call: Timed) -> Handler:
    return lambda request, context: _answer(context, call, request, _deadline(context))


def _deadline(context: grpc.ServicerContext) -> Deadline:
    left = context.time_remaining()
    return None if left is None else time.monotonic() + left


def _plain(call: Callable[[Any], Any]) -> Handler:
    return lambda request, context: _answer(context, call, request)


def _answer(context: grpc.ServicerContext, call: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return call(*arguments)
    except RequestError as error:
        code, text = grpc.StatusCode[error.code], str(error)
    except Exception as error:  # one request must not take the server down
        _LOG.exception("a request failed")
        code, text = grpc.StatusCode.INTERNAL, f"{type(error).__name__}: {error}"
    context.abort(code, text)
