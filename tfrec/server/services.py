"""The gRPC services: calls of the Api under TensorFlow Serving's names."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import grpc
from tensorflow_serving.apis.classification_pb2 import ClassificationRequest
from tensorflow_serving.apis.get_model_metadata_pb2 import GetModelMetadataRequest
from tensorflow_serving.apis.get_model_status_pb2 import GetModelStatusRequest
from tensorflow_serving.apis.inference_pb2 import MultiInferenceRequest
from tensorflow_serving.apis.model_management_pb2 import ReloadConfigRequest
from tensorflow_serving.apis.predict_pb2 import PredictRequest
from tensorflow_serving.apis.regression_pb2 import RegressionRequest

from tfrec.server.api import Api, Deadline
from tfrec.server.status import RequestError

Timed = Callable[[Any, Deadline], Any]
Handler = Callable[[Any, grpc.ServicerContext], Any]
_LOG = logging.getLogger(__name__)


def handlers(api: Api) -> list[grpc.GenericRpcHandler]:
    """PredictionService and ModelService over an Api."""
    prediction = {
        "Predict": _handler(PredictRequest, _measured(api, "Predict", api.predict)),
        "Classify": _handler(ClassificationRequest, _measured(api, "Classify", api.classify)),
        "Regress": _handler(RegressionRequest, _measured(api, "Regress", api.regress)),
        "MultiInference": _handler(MultiInferenceRequest, _timed(api.multi_inference)),
        "GetModelMetadata": _handler(GetModelMetadataRequest, _plain(api.metadata)),
    }
    model = {
        "GetModelStatus": _handler(GetModelStatusRequest, _plain(api.status)),
        "HandleReloadConfigRequest": _handler(ReloadConfigRequest, _reload(api)),
    }
    return [
        grpc.method_handlers_generic_handler(f"tensorflow.serving.{service}", methods)
        for service, methods in (("PredictionService", prediction), ("ModelService", model))
    ]


def _handler(request: Any, handle: Handler) -> grpc.RpcMethodHandler:
    return grpc.unary_unary_rpc_method_handler(handle, request.FromString, _serialized)


def _serialized(answer: Any) -> bytes:
    return answer if isinstance(answer, bytes) else answer.SerializeToString()


def _reload(api: Api) -> Handler:
    return lambda request, context: _answer(context, api.reload, request, context.is_active)


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
