"""Lines from every process of a training to the first, over which they agree before it and part after it."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from tfrec.errors import ConfigError, RestartError, TrainingError

_HELLO_SECONDS = 5.0  # until a connection that says nothing is dropped
_AGAIN_SECONDS = 0.2


class Line:
    """JSON values to and from another process, one a line of text.

    Args:
        peer: what messages call the other end.
        connection: open.
    """

    def __init__(self, peer: str, connection: socket.socket):
        self.peer, self._connection = peer, connection
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._file = connection.makefile("rw", encoding="utf-8", newline="\n")

    def send(self, value: Any) -> None:
        try:
            self._file.write(json.dumps(value) + "\n")
            self._file.flush()
        except OSError as error:
            raise self._lost() from error

    def receive(self, seconds: float | None = None) -> Any:
        """The next value.

        Args:
            seconds: to wait; None = for as long as the other end lives.

        Raises:
            RestartError: the other end is gone.
        """
        self._connection.settimeout(seconds)
        try:
            text = self._file.readline()
            return json.loads(text)
        except (OSError, ValueError) as error:  # a closed line reads as the empty text
            raise self._lost() from error

    def close(self) -> None:
        # The file holds the connection open: without a shutdown the other end would wait on.
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        with suppress(OSError):
            self._file.close()
        self._connection.close()

    def _lost(self) -> RestartError:
        rule = f"every process of a training must live until its end; {self.peer} ended"
        return RestartError(rule, advice="Its own log says why. The last checkpoint is kept: start all processes again")


class Peers:
    """The processes of one training.

    Args:
        names: of all, the first one first.
        index: of this one.
        lines: from the first to each other one, or from another one to the first.
    """

    trains = True  # or serves one that does, and has nothing to do but wait

    def __init__(self, names: Sequence[str] = ("worker 0",), index: int = 0, lines: Sequence[Line] = ()):
        self.names, self.index, self._lines = tuple(names), index, list(lines)

    @property
    def leads(self) -> bool:
        """Whether this process writes: checkpoints, models, logs, exports."""
        return self.index == 0

    def wait(self) -> None:
        """Returns when all are here.

        Raises:
            RestartError: one of them is gone.
        """
        self.agree("", {})

    def agree(self, rule: str, values: Mapping[str, Any]) -> None:
        """Returns when all have given the same JSON values.

        Raises:
            ConfigError: in every process alike, with the first value that differs.
            RestartError: one of them is gone.
        """
        if self.leads:
            theirs = [line.receive() for line in self._lines]
            verdict = next(filter(None, map(self._difference, theirs, self.names[1:], [values] * len(theirs))), None)
            for line in self._lines:
                line.send(verdict)
        else:
            (line,) = self._lines
            line.send(values)
            verdict = line.receive()
        if verdict:
            raise ConfigError(f"{rule}; {verdict}")

    def _difference(self, theirs: Mapping[str, Any], name: str, ours: Mapping[str, Any]) -> str | None:
        for key in dict.fromkeys([*ours, *theirs]):
            a, b = json.loads(json.dumps(ours.get(key))), theirs.get(key)
            if a != b:
                return f"{key} is {a!r} at {self.names[0]} and {b!r} at {name}"
        return None

    def close(self) -> None:
        for line in self._lines:
            line.close()


def meet(names: Sequence[str], index: int, address: str, seconds: float) -> Peers:
    """Waits until all processes of a training are here.

    Args:
        names: of all, the first one first.
        index: of this one.
        address: host:port of the first, which listens there only while it waits.
        seconds: to wait.

    Raises:
        TrainingError: some did not come in time, or the first cannot listen.
    """
    host, _, port = address.rpartition(":")
    until = time.monotonic() + seconds
    if index:
        lines = [_reach(names, index, (host.strip("[]"), int(port)), until)]
    else:
        lines = _gather(names, (host.strip("[]"), int(port)), until)
    return Peers(names, index, lines)


def _gather(names: Sequence[str], address: tuple[str, int], until: float) -> list[Line]:
    lines: dict[int, Line] = {}
    # A name in a cluster may lead to this machine from others only.
    loopback = address[0] in ("localhost", "127.0.0.1", "::1")
    try:
        server = socket.create_server((address[0] if loopback else "", address[1]))
    except OSError as error:
        raise TrainingError(f"the first process must be able to listen on port {address[1]}", str(error)) from error
    with server:
        while len(lines) < len(names) - 1:
            server.settimeout(max(until - time.monotonic(), 0.001))
            try:
                connection, _ = server.accept()
            except TimeoutError as error:
                missing = [name for i, name in enumerate(names) if i and i not in lines]
                for line in lines.values():
                    line.close()
                raise _missing(", ".join(missing), "{}:{}".format(*address)) from error
            line = Line("an unknown process", connection)
            index = _hello(line, len(names))
            if index:
                if index in lines:  # it was started again
                    lines[index].close()
                line.peer, lines[index] = names[index], line
            else:
                line.close()
    return [lines[i] for i in sorted(lines)]


def _hello(line: Line, count: int) -> int:
    """Who calls; 0 for whoever does not speak as a process of ours."""
    try:
        index = line.receive(_HELLO_SECONDS)
        if type(index) is not int or not 0 < index < count:  # true is an int too
            return 0
        line.send("welcome")
        return index
    except RestartError:
        return 0


def _reach(names: Sequence[str], index: int, address: tuple[str, int], until: float) -> Line:
    while (left := until - time.monotonic()) > 0:
        with suppress(OSError):
            line = Line(names[0], socket.create_connection(address, timeout=left))
            if _is_welcome(line, index, max(until - time.monotonic(), 0.001)):
                return line
            line.close()
        time.sleep(_AGAIN_SECONDS)
    raise _missing(names[0], "{}:{}".format(*address))


def _is_welcome(line: Line, index: int, seconds: float) -> bool:
    """False where another program listens, as the server of an earlier training that is about to end."""
    try:
        line.send(index)
        return line.receive(seconds) == "welcome"
    except RestartError:
        return False


def _missing(names: str, address: str) -> TrainingError:
    rule = f"all processes of the cluster must come to {address} within train.peer_seconds; these did not: {names}"
    return TrainingError(rule, advice="Start them, with the same cluster in TF_CONFIG, or let this one wait longer")
