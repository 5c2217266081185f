"""Processes of one cluster on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tools"))

from train_cluster import local_configs  # noqa: E402

__all__ = ["HERE", "finish", "local_configs", "start"]


def start(command: Sequence[object], tf_config: str = "", **more: str) -> subprocess.Popen[str]:
    """Python with a command, on few threads: several of them share this machine.

    Args:
        command: arguments.
        tf_config: "" = none.
        more: variables of its environment.
    """
    quiet = {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "2", "TF_CPP_MIN_LOG_LEVEL": "3"}
    path = {"PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)])}
    cluster = {"TF_CONFIG": tf_config} if tf_config else {}
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        env={**os.environ, **quiet, **path, **cluster, **more},
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
