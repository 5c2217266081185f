"""An HTTP/1.1 server with keep-alive over a bounded pool of workers.

A thread of the standard library's server reads and writes for each connection; the work itself runs in the pool, so
that a slow model is answered 504 in time and a stalled client holds no worker.
"""

from __future__ import annotations

import socket
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as Late
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tfrec.errors import ServerError
from tfrec.server.rest import Answer, Rest, refusal
from tfrec.server.status import RequestError, invalid

_IDLE_SECONDS = 60.0  # how long a connection may say nothing
_MOST_CONNECTIONS = 1000
_MOST_BYTES = 2**31 - 1  # as TensorFlow Serving's gRPC messages
_MOST_CHUNK_LINE = 1024


class HttpServer(ThreadingHTTPServer):
    """Serves a Rest in the background.

    Args:
        threads: workers.

    Raises:
        ServerError: the address cannot be bound.
    """

    request_queue_size = 128
    daemon_threads = True
    block_on_close = True

    def __init__(self, rest: Rest, host: str, port: int, threads: int):
        self.rest, self.pool = rest, ThreadPoolExecutor(threads, "rest")
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._open: set[socket.socket] = set()
        self._connections = threading.BoundedSemaphore(_MOST_CONNECTIONS)
        try:
            super().__init__((host, port), _Connection)
        except OSError as error:
            raise ServerError(
                "the address must be free and local", f"{host}:{port}", "Choose another --rest_api_port"
            ) from error
        self.port: int = self.server_address[1]
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.1}, name="http")
        self._thread.start()

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._connections.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._open.discard(request)
            self._connections.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no error of ours."""

    def close(self, grace: float) -> None:
        """Lets requests that are under way end and closes everything."""
        self.shutdown()
        self._thread.join()
        self.socket.close()
        for connection in list(self._open):  # idle ones read the end, busy ones write their answer first
            _stop_reading(connection)
        for _ in range(_MOST_CONNECTIONS):
            if not self._connections.acquire(timeout=grace):
                break
        self.pool.shutdown(wait=False, cancel_futures=True)


class _Connection(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    timeout = _IDLE_SECONDS
    server: HttpServer

    def _handle(self) -> None:
        try:
            body = self._body()
        except RequestError as error:
            self.close_connection = True  # what follows cannot be told from the rest of the body
            return self._send(refusal(error))
        origin = self.headers.get("Origin", "")
        future = self.server.pool.submit(self.server.rest.answer, self.command, self.path, body, origin)
        try:
            self._send(future.result(self.server.rest.timeout_seconds))
        except Late:
            future.cancel()
            self._send(refusal(RequestError("DEADLINE_EXCEEDED", "Timed out waiting for notification")))
        except Exception as error:  # the connection must get an answer
            self._send(refusal(RequestError("INTERNAL", f"{type(error).__name__}: {error}")))

    do_GET = do_POST = do_HEAD = do_PUT = do_DELETE = do_OPTIONS = do_PATCH = do_TRACE = _handle  # noqa: N815

    def _send(self, answer: Answer) -> None:
        self.send_response_only(answer.status)
        self.send_header("Date", self.date_time_string())
        self.send_header("Content-Type", answer.kind)
        for name, value in self.server.rest.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            body = self._chunks()
        else:
            length = self.headers.get("Content-Length", "0").strip()
            if not length.isascii() or not length.isdecimal() or int(length) > _MOST_BYTES:
                raise invalid(f"Content-Length must be a number of bytes up to {_MOST_BYTES}; got {length!r}")
            body = self.rfile.read(int(length))
        if "gzip" in self.headers.get("Content-Encoding", "").lower():
            return _unzipped(body)
        return body

    def _chunks(self) -> bytes:
        parts: list[bytes] = []
        total = 0
        while True:
            line = self.rfile.readline(_MOST_CHUNK_LINE).split(b";")[0].strip()
            try:
                size = int(line, 16)
            except ValueError as error:
                raise invalid(f"a chunk must begin with its size; got {line[:20]!r}") from error
            total += size
            if size < 0 or total > _MOST_BYTES:
                raise invalid(f"a body must have at most {_MOST_BYTES} bytes; got {total}")
            if not size:
                while self.rfile.readline(_MOST_CHUNK_LINE).strip():
                    pass  # trailers
                return b"".join(parts)
            parts.append(self.rfile.read(size))
            self.rfile.readline(_MOST_CHUNK_LINE)

    def log_message(self, format: str, *args: Any) -> None:
        """No line per request."""


def _unzipped(body: bytes) -> bytes:
    """The body, or nothing where it is no whole gzip or too large, which TensorFlow Serving then finds to be empty."""
    decoder = zlib.decompressobj(zlib.MAX_WBITS | 16)
    try:
        text = decoder.decompress(body, _MOST_UNZIPPED)
    except zlib.error:
        return b""
    return text if decoder.eof and not decoder.unconsumed_tail else b""


_MOST_UNZIPPED = 100 * 2**20  # as TensorFlow Serving's


def _stop_reading(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RD)
    except OSError:
        return  # the client was faster
