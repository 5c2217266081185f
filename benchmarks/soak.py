"""Resident memory of the server over many requests: growth after the first tenth of them.

A process of its own (load.py) sends requests in ten parts, several in flight, which the server joins into batches; the
server's resident memory is read after each part. The model is the benchmarks' MLP, or an export.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import tensorflow as tf
from common import arguments, report
from load import WARMUP
from serving import PACKAGES, Process, message, save_mlp
from tensorflow_serving.apis.predict_pb2 import PredictRequest
from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog

PARTS, IN_FLIGHT, LONGEST = 10, 16, 3600
EXAMPLE = "python benchmarks/soak.py --requests 1000000"


def main() -> None:
    parser = arguments(str(__doc__), EXAMPLE, rounds=None)
    parser.add_argument("--requests", type=int, default=100_000, help="in all")
    parser.add_argument("--export", type=Path, help="exports/MODEL; absent = an MLP")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        base = options.export or _mlp(Path(folder))
        flags = ["--port", "0", "--model_name", base.name, "--model_base_path", str(base), "--enable_batching"]
        with Process(["-m", "tfrec.server.grpc_server", *flags]) as server:
            sizes = [_part(server, base, options.requests // PARTS) for _ in range(PARTS)]
    growth = max(sizes[1:]) / sizes[0]
    report(options.results, "soak_memory", growth, max(sizes[1:]), sizes[0], "resident bytes", PACKAGES, growth)


def _mlp(folder: Path) -> Path:
    path = save_mlp(folder / "mlp")
    log = PredictionLog()
    log.predict_log.request.CopyFrom(PredictRequest.FromString(message()))
    file = path / WARMUP
    file.parent.mkdir()
    with tf.io.TFRecordWriter(str(file)) as writer:
        writer.write(log.SerializeToString())
    return path.parent


def _part(server: Process, base: Path, count: int) -> int:
    """Sends a part and returns the resident bytes afterwards."""
    version = max((child for child in base.iterdir() if child.name.isdecimal()), key=lambda child: int(child.name))
    command = [sys.executable, str(Path(__file__).with_name("load.py")), server.target, str(version)]
    flags = ["--model", base.name, "--in-flight", str(IN_FLIGHT), "--count", str(count), "--seconds", str(LONGEST)]
    done = json.loads(subprocess.run([*command, *flags], check=True, capture_output=True).stdout)
    if server.process.poll() is not None:
        raise SystemExit(f"the server must live; it ended with {server.process.returncode} after {done}")
    pages = int(Path(f"/proc/{server.process.pid}/statm").read_text(encoding="utf-8").split()[1])
    size = pages * os.sysconf("SC_PAGE_SIZE")
    print(f"{size / 2**20:.1f} MiB after {done}", flush=True)
    if done["failed"] or done["requests"] != count:
        raise SystemExit("every request must be answered")
    return size


if __name__ == "__main__":
    main()
