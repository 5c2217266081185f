"""The shop of five items, served over gRPC and REST from this process."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc

from tfrec.server.api import Api
from tfrec.server.grpc_server import Model, start
from tfrec.server.http_server import HttpServer
from tfrec.server.rest import Rest
from tfrec.server.servable import Servable


@contextmanager
def serving_shop(
    path: Path, *, grpc: int = 0, rest: int = 0, after: float = 0.0, tls: Path | None = None, mutual: bool = False
) -> Iterator[dict[str, str]]:
    """Targets by transport, on the given ports, which open so many seconds later."""
    with ExitStack() as stack:
        model = Model("shop", 1, Servable(path))
        stack.callback(model.close)
        if after:
            timer = threading.Timer(after, _open, (model, grpc, rest, tls, mutual, stack))
            timer.start()
            stack.callback(timer.join)
            yield {}
        else:
            yield _open(model, grpc, rest, tls, mutual, stack)


def _open(model: Model, port: int, rest: int, tls: Path | None, mutual: bool, stack: ExitStack) -> dict[str, str]:
    api = Api(model)
    credentials = _credentials(tls, mutual) if tls else None
    server, bound = start(model, "127.0.0.1", port, 4, api=api, credentials=credentials)
    http = HttpServer(Rest(api), "127.0.0.1", rest, 4)
    if tls:
        http.socket = _context(tls, mutual).wrap_socket(http.socket, server_side=True)
    stack.callback(http.close, 5.0)
    stack.callback(lambda: server.stop(None).wait())
    return {"grpc": f"localhost:{bound}", "rest": f"http{'s' if tls else ''}://127.0.0.1:{http.port}"}


def _credentials(folder: Path, mutual: bool) -> grpc.ServerCredentials:
    key, certificate, ca = ((folder / name).read_bytes() for name in ("server.key", "server.pem", "ca.pem"))
    return grpc.ssl_server_credentials([(key, certificate)], ca if mutual else None, mutual)


def _context(folder: Path, mutual: bool) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    if mutual:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(folder / "ca.pem")
    return context
