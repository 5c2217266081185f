"""Calls over gRPC, blocking and asyncio."""

from __future__ import annotations

from typing import Any

import grpc

from tfrec.client import wire
from tfrec.client.attempts import RefusedError
from tfrec.client.calls import Call, Model
from tfrec.client.results import Signature, VersionStatus
from tfrec.client.tls import Tls, read
from tfrec.client.wire import METADATA, PREDICT, STATUS, Method

# No limit of message size, every address of a name in turn, and a connection tried again as soon as a call is.
_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.lb_policy_name", "round_robin"),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
]


class GrpcTransport:
    """Asks one model of a server at host:port."""

    def __init__(self, target: str, model: Model, tls: Tls | None):
        self._model = model
        self._channel = _channel(grpc, target, tls)
        self._calls = _calls(self._channel)

    def predict(self, call: Call, seconds: float) -> dict[str, Any]:
        return wire.read_outputs(self._ask(PREDICT, wire.predict_request(self._model, call), seconds), call)

    def status(self, seconds: float) -> tuple[VersionStatus, ...]:
        return wire.read_status(self._ask(STATUS, wire.status_request(self._model), seconds))

    def signatures(self, seconds: float) -> dict[str, Signature]:
        return wire.read_signatures(self._ask(METADATA, wire.metadata_request(self._model), seconds))

    def close(self) -> None:
        self._channel.close()

    def _ask(self, method: Method, request: Any, seconds: float) -> Any:
        try:
            return self._calls[method](request, timeout=seconds)
        except grpc.RpcError as error:
            raise _refusal(error) from error


class AsyncGrpcTransport:
    """The asyncio twin; connects when first asked, inside the loop that asks."""

    def __init__(self, target: str, model: Model, tls: Tls | None):
        self._target, self._model, self._tls = target, model, tls
        self._channel: Any = None
        self._calls: dict[Method, Any] = {}

    async def predict(self, call: Call, seconds: float) -> dict[str, Any]:
        return wire.read_outputs(await self._ask(PREDICT, wire.predict_request(self._model, call), seconds), call)

    async def status(self, seconds: float) -> tuple[VersionStatus, ...]:
        return wire.read_status(await self._ask(STATUS, wire.status_request(self._model), seconds))

    async def signatures(self, seconds: float) -> dict[str, Signature]:
        return wire.read_signatures(await self._ask(METADATA, wire.metadata_request(self._model), seconds))

    async def close(self) -> None:
        if self._channel is not None:
            await self._channel.close()

    async def _ask(self, method: Method, request: Any, seconds: float) -> Any:
        if self._channel is None:
            self._channel = _channel(grpc.aio, self._target, self._tls)
            self._calls = _calls(self._channel)
        try:
            return await self._calls[method](request, timeout=seconds)
        except grpc.RpcError as error:
            raise _refusal(error) from error


def _channel(library: Any, target: str, tls: Tls | None) -> Any:
    if tls is None:
        return library.insecure_channel(target, options=_OPTIONS)
    credentials = grpc.ssl_channel_credentials(read(tls.root_certificates), read(tls.key), read(tls.certificate))
    return library.secure_channel(target, credentials, options=_OPTIONS)


def _calls(channel: Any) -> dict[Method, Any]:
    return {
        method: channel.unary_unary(method.path, method.request.SerializeToString, method.response.FromString)
        for method in (PREDICT, STATUS, METADATA)
    }


def _refusal(error: Any) -> RefusedError:
    return RefusedError(error.code().name, (error.details() or "").split("\n")[0])  # below it, the trace of graph nodes
