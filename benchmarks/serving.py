"""What the benchmarks of the server share: a small MLP, our server, and an echo server, each in its own process."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis.predict_pb2 import PredictRequest

WIDTH, LAYERS = 64, 3
PACKAGES = ["tensorflow", "grpcio", "tensorflow-serving-api"]
PREDICT = "/tensorflow.serving.PredictionService/Predict"
_READY = "serving "


class Mlp(tf.Module):
    """Three dense layers of 64."""

    def __init__(self) -> None:
        super().__init__()
        random = np.random.default_rng(0)
        self.weights = [tf.Variable(random.normal(size=(WIDTH, WIDTH)) / 8, dtype=tf.float32) for _ in range(LAYERS)]

    @tf.function(input_signature=[tf.TensorSpec([None, WIDTH], tf.float32, name="x")])
    def predict(self, x: Any) -> dict[str, Any]:
        for weight in self.weights:
            x = tf.nn.relu(x @ weight)
        return {"y": x}


def save_mlp(base: Path) -> Path:
    """Writes version 1 of the MLP below a base path."""
    mlp = Mlp()
    tf.saved_model.save(mlp, str(base / "1"), signatures={"serving_default": mlp.predict})
    return base / "1"


def row() -> np.ndarray:
    """One row of input."""
    return np.random.default_rng(1).normal(size=(1, WIDTH)).astype(np.float32)


def message() -> bytes:
    """A serialized PredictRequest of one row, as tensor_content."""
    request = PredictRequest()
    request.model_spec.name = "mlp"
    request.inputs["x"].CopyFrom(tf.make_tensor_proto(row()))
    return request.SerializeToString()


class Process:
    """A server in a process of its own."""

    def __init__(self, arguments: Sequence[str]):
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2", "CUDA_VISIBLE_DEVICES": ""}
        self.process = subprocess.Popen(
            [sys.executable, *arguments], stderr=subprocess.PIPE, text=True, env=environment
        )
        assert self.process.stderr is not None
        self.target = next(line.split()[-1] for line in self.process.stderr if line.startswith(_READY))

    def cpu(self) -> float:
        """CPU-seconds so far, of all threads."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait()


def our_server(base: Path, threads: int, *flags: str) -> Process:
    """tfrec-model-server over the MLP."""
    arguments = [
        "--port",
        "0",
        "--model_name",
        "mlp",
        "--model_base_path",
        str(base),
        "--grpc_max_threads",
        str(threads),
    ]
    return Process(["-m", "tfrec.server.grpc_server", *arguments, *flags])


def echo_server(threads: int) -> Process:
    """A Python gRPC server that sends back the bytes it gets."""
    return Process([__file__, str(threads)])


def _echo(threads: int) -> None:
    handler = grpc.unary_unary_rpc_method_handler(lambda request, context: request)
    handlers = grpc.method_handlers_generic_handler("tensorflow.serving.PredictionService", {"Predict": handler})
    server = grpc.server(ThreadPoolExecutor(threads), handlers=[handlers])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(f"{_READY}echo on 127.0.0.1:{port}", file=sys.stderr, flush=True)
    while True:
        time.sleep(60)


if __name__ == "__main__":
    _echo(int(sys.argv[1]))
