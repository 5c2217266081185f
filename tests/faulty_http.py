"""An HTTP server on loopback that misbehaves as it is told."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Behaviour = tuple[int, bytes] | Callable[["_Handler"], None]


class FaultyHttp(ThreadingHTTPServer):
    """Answers request i with behaviour i; the last one repeats.

    Args:
        hang_up: closes each connection after its answer, without saying so.
    """

    daemon_threads = True

    def __init__(self, behaviours: Sequence[Behaviour], hang_up: bool = False):
        self.behaviours, self.hang_up, self.stopped = list(behaviours), hang_up, threading.Event()
        self.connections, self.paths, self.bodies = 0, [], []
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target = f"http://127.0.0.1:{self.server_address[1]}"
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02})

    @property
    def requests(self) -> int:
        return len(self.paths)

    def __enter__(self) -> FaultyHttp:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self.shutdown()
        self._thread.join()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients give up on servers like this one."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 10
    server: FaultyHttp

    def setup(self) -> None:
        super().setup()
        self.server.connections += 1

    def do_POST(self) -> None:
        self.server.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.paths.append(self.path)
        behaviours = self.server.behaviours
        behaviour = behaviours[min(self.server.requests, len(behaviours)) - 1]
        if callable(behaviour):
            behaviour(self)
        else:
            self.begin(behaviour[0], len(behaviour[1]))
            self.wfile.write(behaviour[1])
        self.close_connection = self.close_connection or self.server.hang_up

    def begin(self, status: int, length: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """No line per request."""


def answer(status: int, document: Any) -> tuple[int, bytes]:
    return status, json.dumps(document).encode()


def stall(handler: _Handler) -> None:
    handler.close_connection = True
    handler.server.stopped.wait(10)


def drip(handler: _Handler) -> None:
    """A byte now and then, never the last."""
    handler.close_connection = True
    handler.begin(200, 10**6)
    for _ in range(500):
        handler.wfile.write(b" ")
        if handler.server.stopped.wait(0.02):
            return
