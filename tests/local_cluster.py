"""Processes of one cluster on this machine."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

HERE = Path(__file__).parent


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def configs(jobs: Mapping[str, int]) -> list[str]:
    """TF_CONFIG of each process, job after job."""
    ports = iter(free_ports(sum(jobs.values())))
    cluster = {job: [f"127.0.0.1:{next(ports)}" for _ in range(count)] for job, count in jobs.items()}
    tasks = [{"type": job, "index": i} for job, addresses in cluster.items() for i in range(len(addresses))]
    return [json.dumps({"cluster": cluster, "task": task}) for task in tasks]


def environment(tf_config: str | None = None) -> dict[str, str]:
    """Of a process that may import tests' modules."""
    path = os.pathsep.join([str(HERE.parent), str(HERE)])
    one_thread = {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    more = {"TF_CONFIG": tf_config} if tf_config else {}
    return {**os.environ, "PYTHONPATH": path, **one_thread, **more}


def start(command: Sequence[object], tf_config: str | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        env=environment(tf_config),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(processes: Sequence[subprocess.Popen[str]], seconds: float = 240) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of each; whatever happens, none is left behind."""
    try:
        outputs = [process.communicate(timeout=seconds) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [(process.returncode, *output) for process, output in zip(processes, outputs, strict=True)]
