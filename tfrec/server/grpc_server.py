"""TensorFlow Serving's gRPC API over one model: PredictionService.Predict and ModelService.GetModelStatus."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from tensorflow_serving.apis import (
    get_model_status_pb2,
    model_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from tfrec.errors import ServerError
from tfrec.server.servable import DEFAULT_SIGNATURE, RequestError, Servable
from tfrec.server.tensors import to_array, to_proto
from tfrec.server.versions import latest_version

_UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
_EXAMPLE = "example: tfrec-model-server --port 8500 --model_name shop --model_base_path exports/shop"


class Model:
    """The version of a model that is being served."""

    def __init__(self, name: str, version: int, servable: Servable):
        self.name, self.version, self.servable = name, version, servable

    def check(self, spec: model_pb2.ModelSpec) -> None:
        """Refuses a request for another model, version or label.

        Raises:
            RequestError: in TensorFlow Serving's words.
        """
        if spec.WhichOneof("version_choice") == "version_label":
            raise RequestError("INVALID_ARGUMENT", f"Unrecognized servable version label: {spec.version_label}")
        if spec.name != self.name or (spec.HasField("version") and spec.version.value != self.version):
            wanted = (
                f"Specific({spec.name}, {spec.version.value})" if spec.HasField("version") else f"Latest({spec.name})"
            )
            raise RequestError("NOT_FOUND", f"Servable not found for request: {wanted}")


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    def __init__(self, model: Model):
        self._model = model

    def Predict(  # noqa: N802 (the stub's name)
        self, request: predict_pb2.PredictRequest, context: grpc.ServicerContext
    ) -> predict_pb2.PredictResponse:
        try:
            return predict(self._model, request)
        except RequestError as error:
            context.abort(grpc.StatusCode[error.code], str(error))
            raise  # abort has raised already; this tells the type checker


class ModelService(model_service_pb2_grpc.ModelServiceServicer):
    def __init__(self, model: Model):
        self._model = model

    def GetModelStatus(  # noqa: N802 (the stub's name)
        self, request: get_model_status_pb2.GetModelStatusRequest, context: grpc.ServicerContext
    ) -> get_model_status_pb2.GetModelStatusResponse:
        spec, model = request.model_spec, self._model
        if not request.HasField("model_spec"):
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "Missing ModelSpec")
        if spec.name != model.name:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Could not find any versions of model {spec.name}")
        if spec.HasField("version") and spec.version.value != model.version:
            context.abort(
                grpc.StatusCode.NOT_FOUND, f"Could not find version {spec.version.value} of model {spec.name}"
            )
        response = get_model_status_pb2.GetModelStatusResponse()
        available = get_model_status_pb2.ModelVersionStatus.AVAILABLE
        response.model_version_status.add(version=model.version, state=available).status.error_code = 0
        return response


def predict(model: Model, request: predict_pb2.PredictRequest) -> predict_pb2.PredictResponse:
    """Answers one PredictRequest.

    Raises:
        RequestError: the request names something unknown or does not fit the signature.
    """
    if not request.HasField("model_spec"):
        raise RequestError("INVALID_ARGUMENT", "Missing ModelSpec")
    model.check(request.model_spec)
    signature = request.model_spec.signature_name or DEFAULT_SIGNATURE
    inputs = {alias: _decode(alias, proto) for alias, proto in request.inputs.items()}
    outputs = model.servable.run(signature, inputs, list(request.output_filter))
    response = predict_pb2.PredictResponse()
    response.model_spec.name, response.model_spec.signature_name = model.name, signature
    response.model_spec.version.value = model.version
    for alias, value in outputs.items():
        response.outputs[alias].CopyFrom(to_proto(value))
    return response


def start(model: Model, host: str, port: int, threads: int) -> tuple[grpc.Server, int]:
    """Starts serving in the background.

    Args:
        port: 0 = any free port.

    Returns:
        the server and the port it listens on.

    Raises:
        ServerError: the address cannot be bound.
    """
    options = [*_UNLIMITED, ("grpc.so_reuseport", 0)]
    server = grpc.server(ThreadPoolExecutor(threads, thread_name_prefix="predict"), options=options)
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(PredictionService(model), server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(ModelService(model), server)
    try:
        bound = server.add_insecure_port(f"{host}:{port}")
    except RuntimeError as error:
        raise ServerError("the address must be free and local", f"{host}:{port}", "Choose another --port") from error
    server.start()
    return server, bound


def main(argv: Sequence[str] | None = None) -> int:
    """Serves the latest version of a model until SIGTERM or SIGINT; returns the exit code."""
    arguments = _parser().parse_args(argv)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        version, path = latest_version(Path(arguments.model_base_path))
        model = Model(arguments.model_name, version, Servable(path))
        server, port = start(model, arguments.host, arguments.port, arguments.grpc_max_threads)
    except ServerError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"serving {model.name} version {version} on {arguments.host}:{port}", file=sys.stderr, flush=True)
    stop.wait()
    server.stop(grace=5).wait()
    model.servable.close()
    return 0


def _decode(alias: str, proto: Any) -> np.ndarray:
    try:
        return to_array(proto)
    except (ValueError, TypeError) as error:
        raise RequestError("INVALID_ARGUMENT", f"tensor parsing error: {alias}") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("tfrec-model-server", description=__doc__, epilog=_EXAMPLE)
    parser.add_argument("--port", type=int, default=8500, help="gRPC port; 0 = any free port")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 = every interface")
    parser.add_argument("--model_name", default="default", help="name that requests use")
    parser.add_argument("--model_base_path", required=True, help="folder of numbered version folders")
    parser.add_argument("--grpc_max_threads", type=int, default=4 * (os.cpu_count() or 1), help="requests at a time")
    return parser


if __name__ == "__main__":
    sys.exit(main())
