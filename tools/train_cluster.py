"""Trains with several workers on this machine: python tools/train_cluster.py --workers 2 CONFIG [key=value …].

As an orchestrator would, it starts all again when they end with 75, "saved, restart me".
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

AGAIN = 75


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 on which nothing listens."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def local_configs(jobs: Mapping[str, int]) -> list[str]:
    """TF_CONFIG of each process of a cluster on 127.0.0.1, job after job."""
    ports = iter(free_ports(sum(jobs.values())))
    cluster = {job: [f"127.0.0.1:{next(ports)}" for _ in range(count)] for job, count in jobs.items()}
    tasks = [{"type": job, "index": i} for job, addresses in cluster.items() for i in range(len(addresses))]
    return [json.dumps({"cluster": cluster, "task": task}) for task in tasks]


def run_once(workers: int, words: Sequence[str]) -> int:
    """Starts the workers and returns the largest exit code; SIGTERM is passed on to all."""
    command = [sys.executable, "-m", "tfrec", "train", *words, "train.strategy=multi_worker"]
    processes = [
        subprocess.Popen(command, env={**os.environ, "TF_CONFIG": config})
        for config in local_configs({"worker": workers})
    ]

    def pass_on(number: int, frame: Any) -> None:
        for process in processes:
            process.terminate()

    signal.signal(signal.SIGTERM, pass_on)
    return max(abs(process.wait()) for process in processes)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=2, help="processes, of which the first writes")
    parser.add_argument("--restarts", type=int, default=3, help="how often all are started again after 75")
    arguments, words = parser.parse_known_args()
    for left in range(arguments.restarts, -1, -1):
        code = run_once(arguments.workers, words)
        if code != AGAIN or not left:
            return code
        print("starting all workers again", file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
