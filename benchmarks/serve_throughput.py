"""Requests per second at eight clients: Predict on a small MLP against a Python gRPC server that echoes.

Eight threads of one client process send one-row requests as fast as they are answered, to one server and then to the
other. CPU-seconds of the server and of the client per request are printed apart.
"""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import grpc
from common import arguments, report
from serving import PACKAGES, PREDICT, Process, echo_server, message, our_server, save_mlp

CLIENTS, SECONDS, THREADS = 8, 3.0, 4
EXAMPLE = "python benchmarks/serve_throughput.py --rounds 5"


class Rate(NamedTuple):
    """Requests per second, and CPU-seconds per request of both sides."""

    rate: float
    server: float
    client: float


def main() -> None:
    options = arguments(str(__doc__), EXAMPLE).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = save_mlp(Path(folder) / "mlp")
        with our_server(path.parent, THREADS) as server, echo_server(THREADS) as echo:
            rounds = [(measure(server), measure(echo)) for _ in range(options.rounds + 1)][1:]
    ours, peer = (median(side) for side in zip(*rounds, strict=True))
    for name, side in (("ours", ours), ("echo", peer)):
        print(f"{name}: {side.rate:.0f}/s, CPU µs per request: server {side.server * 1e6:.0f}, "
              f"client {side.client * 1e6:.0f}")  # fmt: skip
    ratio, cpu = ours.rate / peer.rate, peer.server / ours.server
    print(f"echo's CPU-seconds per request over ours, servers only: {cpu:.2f}")
    report(options.results, "serve_throughput", ratio, ours.rate, peer.rate, "requests/s, 8 clients", PACKAGES, ratio)


def measure(server: Process) -> Rate:
    """Asks for some seconds with all clients."""
    counts, stop = [0] * CLIENTS, threading.Event()

    def ask(number: int) -> None:
        with grpc.insecure_channel(server.target, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            call, data = channel.unary_unary(PREDICT), message()
            while not stop.is_set():
                call(data, timeout=20)
                counts[number] += 1

    threads = [threading.Thread(target=ask, args=[number]) for number in range(CLIENTS)]
    before, cpu, begun = server.cpu(), time.process_time(), time.perf_counter()
    for thread in threads:
        thread.start()
    time.sleep(SECONDS)
    stop.set()
    for thread in threads:
        thread.join()
    seconds, total = time.perf_counter() - begun, sum(counts)
    return Rate(total / seconds, (server.cpu() - before) / total, (time.process_time() - cpu) / total)


def median(rates: Sequence[Rate]) -> Rate:
    """The median of every column."""
    return Rate(*(statistics.median(column) for column in zip(*rates, strict=True)))


if __name__ == "__main__":
    main()
