"""Tells a running model server, stock TensorFlow Serving or ours, to serve another model config."""

from __future__ import annotations

import time
from pathlib import Path

import grpc
from tensorflow_serving.apis.get_model_status_pb2 import GetModelStatusRequest, ModelVersionStatus
from tensorflow_serving.apis.model_management_pb2 import ReloadConfigRequest
from tensorflow_serving.apis.model_service_pb2_grpc import ModelServiceStub

from tfrec.errors import ServerError
from tfrec.server.config import read_config

_LOOK_AGAIN = 0.1  # seconds


def reload(target: str, file: Path, name: str, version: int, seconds: float) -> None:
    """Sends a model config and returns when a version that it names serves.

    Args:
        target: host:port of its gRPC.
        file: the model config file.
        name: of the model.
        seconds: that all of it may take.

    Raises:
        ServerError: the server cannot be reached, refuses the config, or has not loaded the version by then.
    """
    end = time.monotonic() + seconds
    with grpc.insecure_channel(target) as channel:
        stub = ModelServiceStub(channel)
        try:
            stub.HandleReloadConfigRequest(ReloadConfigRequest(config=read_config(file)), timeout=seconds)
            while not _serves(stub, name, version, max(end - time.monotonic(), _LOOK_AGAIN)):
                if time.monotonic() > end:
                    raise ServerError(f"{target} must serve version {version} of {name}", f"not after {seconds:g} s")
                time.sleep(_LOOK_AGAIN)
        except grpc.RpcError as error:
            raise ServerError(f"{target} must accept {file}", f"{error.code().name}: {error.details()}") from error


def _serves(stub: ModelServiceStub, name: str, version: int, seconds: float) -> bool:
    """Raises ServerError when the version cannot be loaded."""
    request = GetModelStatusRequest()
    request.model_spec.name = name
    for found in stub.GetModelStatus(request, timeout=seconds).model_version_status:
        if found.version == version and found.state == ModelVersionStatus.END and found.status.error_code:
            raise ServerError(f"version {version} of {name} must load", found.status.error_message)
        if found.version == version and found.state == ModelVersionStatus.AVAILABLE:
            return True
    return False
