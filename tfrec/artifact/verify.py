"""Proves that an exported SavedModel runs in stock TensorFlow Serving: two witnesses and an op lint.

1. A clean Python process runs every signature on the golden requests in a v1 session (session_check).
2. A process without Python TensorFlow runs the same calls through the C API (capi).
3. Every op of the graph and its functions must be one that TensorFlow Serving links (ops).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfrec.artifact.ops import missing_ops, serving_ops
from tfrec.errors import ArtifactError

_TIMEOUT = 900  # seconds; a witness that takes longer than this hangs


@dataclass(frozen=True)
class Failure:
    """One thing that is wrong: which check found it, where, and what."""

    check: str
    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.check}: {self.where}: {self.message}"


@dataclass(frozen=True)
class Report:
    """What verify found.

    Args:
        path: the SavedModel's folder.
        tf_serving: the TensorFlow Serving version that it was held to.
        golden: golden requests per signature.
        ops: how many different ops it uses.
        failures: empty when the artefact can be trusted.
    """

    path: Path
    tf_serving: str
    golden: dict[str, int]
    ops: int
    failures: tuple[Failure, ...]

    @property
    def ok(self) -> bool:
        return not self.failures

    def __str__(self) -> str:
        if self.failures:
            return "\n".join(str(failure) for failure in self.failures)
        requests = ", ".join(f"{name} {number}" for name, number in self.golden.items())
        return f"{self.path} runs in TensorFlow Serving {self.tf_serving}: golden requests {requests}; {self.ops} ops"


def verify(path: Path, tf_serving: str) -> Report:
    """Runs every check on one SavedModel folder.

    Args:
        path: exports/MODEL/VERSION.
        tf_serving: the oldest TensorFlow Serving that must run it, as "2.18".

    Raises:
        ArtifactError: there is no such folder, or no op list for a version that old.
    """
    path = Path(path).resolve()
    if not path.is_dir():
        raise ArtifactError("verify needs the folder of an exported version", str(path), "Export first")
    serving_ops(tf_serving)
    with tempfile.TemporaryDirectory() as folder:
        calls = Path(folder) / "calls.json"
        calls.write_text("[]", encoding="utf-8")
        session = _witness("session", "tfrec.artifact.session_check", path, calls)
        capi = _witness("C API", "tfrec.artifact.capi", path, calls)
    failures = [*session["failures"], *capi["failures"]]
    for op, signatures in missing_ops(session.get("ops", {}), tf_serving).items():
        used_by = f"signature {', '.join(signatures)}" if signatures else "no signature, but the graph"
        failures.append(
            Failure("ops", f"op {op}", f"is absent from TensorFlow Serving {tf_serving}; used by {used_by}")
        )
    return Report(path, tf_serving, session.get("golden", {}), len(session.get("ops", {})), tuple(failures))


def _witness(check: str, module: str, path: Path, calls: Path) -> dict[str, Any]:
    """Runs a witness in a clean process and returns its JSON report; a crash is a failure too."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "TF_CPP_MIN_LOG_LEVEL": "2"}
    command = [sys.executable, "-m", module, str(path), str(calls)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=_TIMEOUT, check=False)
    except subprocess.TimeoutExpired:
        return {"failures": [Failure(check, "process", f"no answer after {_TIMEOUT} s")]}
    if done.returncode:
        tail = done.stderr.strip().splitlines()[-1:] or [""]
        return {"failures": [Failure(check, "process", f"ended with exit code {done.returncode}: {tail[0]}")]}
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    report["failures"] = [Failure(check, where, message) for where, message in report["failures"]]
    return report
