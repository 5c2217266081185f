"""Calls over HTTP with the standard library alone, on connections that stay open."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from contextlib import suppress
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any
from urllib.parse import quote, urlsplit

from tfrec.client.attempts import RefusedError
from tfrec.client.calls import Call, Model
from tfrec.client.results import Signature, TensorInfo, VersionStatus
from tfrec.client.tls import Tls
from tfrec.errors import ConfigError

_CHUNK = 2**16
_CODES = {
    400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND", 409: "ABORTED",
    412: "FAILED_PRECONDITION", 429: "RESOURCE_EXHAUSTED", 499: "CANCELLED", 500: "INTERNAL", 501: "UNIMPLEMENTED",
    502: "UNAVAILABLE", 503: "UNAVAILABLE", 504: "DEADLINE_EXCEEDED",
}  # fmt: skip


class RestTransport:
    """Asks one model of a server at http(s)://host:port, with a path before /v1 if there is one.

    Raises:
        ConfigError: the target is no such address, or certificates are given for http.
    """

    def __init__(self, target: str, model: Model, tls: Tls | None):
        parts = urlsplit(target)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ConfigError("a REST target must be http://host:port or https://host:port", target)
        if parts.scheme == "http" and tls is not None:
            raise ConfigError("certificates need an https:// target", target)
        self._host, self._port = parts.hostname, _port(target)
        self._context = (tls or Tls()).context() if parts.scheme == "https" else None
        self._path = f"{parts.path.rstrip('/')}/v1/models/{quote(model.name, safe='')}" + _which(model)
        self._idle: list[HTTPConnection] = []  # append and pop are atomic: threads may share a client

    def predict(self, call: Call, seconds: float) -> dict[str, Any]:
        body = {"signature_name": call.signature, "inputs": call.inputs}
        text = json.dumps(body, ensure_ascii=False).encode()
        outputs = self._ask("POST", ":predict", text, seconds, "outputs")
        named = outputs if isinstance(outputs, dict) else {call.outputs[0]: outputs}  # a single output has no name
        if not all(isinstance(named.get(name), list) for name in call.outputs):
            raise RefusedError("UNIMPLEMENTED", f"the answer lacks {' or '.join(call.outputs)}: this is no recommender")
        return named

    def status(self, seconds: float) -> tuple[VersionStatus, ...]:
        found = self._ask("GET", "", None, seconds, "model_version_status")
        return tuple(VersionStatus(int(v["version"]), v["state"], v["status"]["error_message"]) for v in found)

    def signatures(self, seconds: float) -> dict[str, Signature]:
        found = self._ask("GET", "/metadata", None, seconds, "metadata")["signature_def"]["signature_def"]
        return {name: Signature(_infos(made["inputs"]), _infos(made["outputs"])) for name, made in found.items()}

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()

    def _ask(self, method: str, ending: str, body: bytes | None, seconds: float, key: str) -> Any:
        """One member of the JSON object that comes back."""
        try:
            status, text = self._exchange(method, self._path + ending, body, time.monotonic() + seconds)
        except TimeoutError as error:
            raise RefusedError("DEADLINE_EXCEEDED", "no whole answer came in time") from error
        except (OSError, HTTPException) as error:
            raise RefusedError("UNAVAILABLE", f"{type(error).__name__}: {error}") from error
        document = _document(text)
        if status == 200 and key in document:
            return document[key]
        raise RefusedError(
            _CODES.get(status, "UNKNOWN"), str(document.get("error", f"HTTP {status} without {key}")).split("\n")[0]
        )

    def _exchange(self, method: str, path: str, body: bytes | None, deadline: float) -> tuple[int, bytes]:
        with suppress(IndexError, ConnectionError):  # a server may close an idle connection at any time
            return self._over(self._idle.pop(), method, path, body, deadline)
        return self._over(self._connection(), method, path, body, deadline)

    def _connection(self) -> HTTPConnection:
        if self._context is not None:
            return HTTPSConnection(self._host, self._port, context=self._context)
        return HTTPConnection(self._host, self._port)

    def _over(
        self, connection: HTTPConnection, method: str, path: str, body: bytes | None, deadline: float
    ) -> tuple[int, bytes]:
        try:
            connection.timeout = _left(deadline)
            if connection.sock is None:
                connection.connect()
            socket = connection.sock
            socket.settimeout(_left(deadline))
            connection.request(method, path, body, {"Content-Type": "application/json"})
            socket.settimeout(_left(deadline))
            response = connection.getresponse()
            parts = []
            while response.length != 0 and not response.isclosed():  # a server that drips must not outlive the deadline
                socket.settimeout(_left(deadline))
                parts.append(response.read1(_CHUNK))
            response.close()
        except BaseException:
            connection.close()
            raise
        if not response.will_close:
            self._idle.append(connection)
        return response.status, b"".join(parts)


class AsyncRestTransport:
    """The asyncio twin: each exchange in a thread."""

    def __init__(self, target: str, model: Model, tls: Tls | None):
        self._blocking = RestTransport(target, model, tls)

    async def predict(self, call: Call, seconds: float) -> dict[str, Any]:
        return await asyncio.to_thread(self._blocking.predict, call, seconds)

    async def status(self, seconds: float) -> tuple[VersionStatus, ...]:
        return await asyncio.to_thread(self._blocking.status, seconds)

    async def signatures(self, seconds: float) -> dict[str, Signature]:
        return await asyncio.to_thread(self._blocking.signatures, seconds)

    async def close(self) -> None:
        self._blocking.close()


def _which(model: Model) -> str:
    if model.version is not None:
        return f"/versions/{model.version}"
    return f"/labels/{quote(model.label, safe='')}" if model.label else ""


def _port(target: str) -> int | None:
    try:
        return urlsplit(target).port
    except ValueError as error:
        raise ConfigError("a port must be a number up to 65535", target) from error


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _document(text: bytes) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except ValueError:  # a proxy's page, perhaps
        document = None
    return document if isinstance(document, dict) else {"error": f"an answer that is no JSON object: {text[:80]!r}"}


def _infos(infos: Mapping[str, Any]) -> dict[str, TensorInfo]:
    return {name: TensorInfo(info["dtype"], _shape(info["tensor_shape"])) for name, info in infos.items()}


def _shape(shape: Mapping[str, Any]) -> tuple[int, ...] | None:
    return None if shape["unknown_rank"] else tuple(int(dim["size"]) for dim in shape["dim"])
