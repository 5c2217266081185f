"""Tiny SavedModels for tests of the server: TensorFlow Serving's own half_plus_two, and signatures that try it out."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf.message import Message
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel
from tensorflow_serving.apis.predict_pb2 import PredictRequest
from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog

_EXAMPLES = tf.TensorSpec([None], tf.string, name="inputs")
ECHOED = (
    *("float16", "bfloat16", "float64", "complex64", "complex128", "bool"),
    *("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"),
)


class Half(tf.Module):
    """y = 0.5 x + bias."""

    def __init__(self, bias: float):
        super().__init__()
        self.bias = tf.Variable(bias)

    def of(self, x: Any) -> Any:
        return 0.5 * x + self.bias


def save_half_plus_two(path: Path, bias: float = 2.0) -> Path:
    """Writes y = x / 2 + bias with predict, regress and classify signatures.

    ``joint_regress`` and ``joint_classify`` share their input; ``serving_default`` x → y; ``pair`` a, b [B, ?] → sum,
    difference; ``texts`` → themselves, as text and as bytes; ``loop`` n → n, after n turns; ``scalar`` x → one number;
    ``echo_DTYPE``.
    """
    half = Half(bias)
    signatures = {"serving_default": _predict(half), "pair": _pair(), "texts": _texts(), "loop": _loop()}
    signatures |= {"scalar": _scalar(), "regress": _regress(half), "classify": _classify(half)}
    signatures |= {f"echo_{name}": _echo(name) for name in ECHOED}
    tf.saved_model.save(half, str(path), signatures=signatures)
    edit(path, _name_methods)
    return path


def edit(path: Path, change: Any) -> None:
    """Changes the MetaGraphDef of a SavedModel."""
    file = path / "saved_model.pb"
    model = SavedModel.FromString(file.read_bytes())
    change(model.meta_graphs[0])
    file.write_bytes(model.SerializeToString())


def add_version(base: Path, number: int, source: Path) -> Path:
    """Publishes a copy of a version: beside, then renamed."""
    beside = base.parent / f"{base.name}-{number}.tmp"
    shutil.copytree(source, beside)
    base.mkdir(exist_ok=True)
    return beside.rename(base / str(number))


def add_warmup(path: Path, *logs: PredictionLog) -> None:
    """Writes warm-up records into a version."""
    folder = path / "assets.extra"
    folder.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(folder / "tf_serving_warmup_requests")) as writer:
        for log in logs:
            writer.write(log.SerializeToString())


def predict_request(model: str, signature: str = "", **inputs: Any) -> PredictRequest:
    """A request with arrays as tensor_content or typed values, as TensorFlow makes them."""
    request = PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = model, signature
    for alias, value in inputs.items():
        array = value if isinstance(value, np.ndarray) else np.asarray(value, np.float32)
        request.inputs[alias].CopyFrom(tf.make_tensor_proto(array))
    return request


def warmup_log(model: str, **inputs: Any) -> PredictionLog:
    log = PredictionLog()
    log.predict_log.request.CopyFrom(predict_request(model, **inputs))
    return log


def write_text(file: Path, text: str | Message) -> Path:
    file.write_text(str(text), encoding="utf-8")
    return file


class Server:
    """A server in a process of its own, with everything that it said."""

    def __init__(self, arguments: list[str]):
        command = [sys.executable, "-m", "tfrec.server.grpc_server", "--port", "0", "--rest_api_port", "-1", *arguments]
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"}
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        self.said: list[str] = []
        self.target = self._address("serving ")
        self.rest = "http://" + self._address("REST on ")

    def _address(self, beginning: str) -> str:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line)
            if line.startswith(beginning):
                return line.split()[-1]
        raise AssertionError(f"the server ended with {self.process.wait()}: {self.said}")

    def stop(self) -> int:
        """Asks it to end; returns its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(40)


@contextmanager
def running(*arguments: str) -> Iterator[Server]:
    """A server that is gone afterwards."""
    server = Server(list(arguments))
    try:
        yield server
    finally:
        server.process.kill()
        server.process.wait()
        assert server.process.stderr is not None
        server.process.stderr.close()


def _predict(half: Half) -> Any:
    return tf.function(lambda x: {"y": half.of(x)}, input_signature=[tf.TensorSpec([None], tf.float32, name="x")])


def _pair() -> Any:
    specs = [tf.TensorSpec([None, None], tf.float32, name=name) for name in ("a", "b")]
    return tf.function(lambda a, b: {"sum": a + b, "difference": a - b}, input_signature=specs)


def _texts() -> Any:
    return tf.function(
        lambda text: {"text": tf.identity(text), "raw_bytes": tf.identity(text)},
        input_signature=[tf.TensorSpec([None], tf.string, name="text")],
    )


def _loop() -> Any:
    def loop(n: Any) -> dict[str, Any]:
        turns = tf.while_loop(lambda i: i < tf.reduce_max(n), lambda i: [i + 1], [0], parallel_iterations=1)[0]
        return {"turns": tf.zeros_like(n) + turns}

    return tf.function(loop, input_signature=[tf.TensorSpec([None], tf.int32, name="n")])


def _scalar() -> Any:
    return tf.function(
        lambda x: {"total": tf.reduce_sum(x)}, input_signature=[tf.TensorSpec([None], tf.float32, name="x")]
    )


def _echo(name: str) -> Any:
    return tf.function(lambda x: {"x": tf.identity(x)}, input_signature=[tf.TensorSpec(None, name, name="x")])


def _x_of(examples: Any) -> Any:
    return tf.io.parse_example(examples, {"x": tf.io.FixedLenFeature([], tf.float32)})["x"]


def _regress(half: Half) -> Any:
    return tf.function(lambda inputs: {"outputs": half.of(_x_of(inputs))}, input_signature=[_EXAMPLES])


def _classify(half: Half) -> Any:
    def classify(inputs: Any) -> dict[str, Any]:
        x = _x_of(inputs)
        classes = tf.tile([["low", "high"]], [tf.shape(x)[0], 1])
        return {"classes": classes, "scores": tf.stack([-x, half.of(x)], 1), "outputs": half.of(x)}

    return tf.function(classify, input_signature=[_EXAMPLES])


def _name_methods(meta_graph: Any) -> None:
    signatures = meta_graph.signature_def
    signatures["joint_regress"].CopyFrom(signatures["classify"])
    for alias in ("classes", "scores"):
        del signatures["joint_regress"].outputs[alias]
    del signatures["classify"].outputs["outputs"]
    signatures["joint_classify"].CopyFrom(signatures["classify"])
    for name in ("regress", "classify", "joint_regress", "joint_classify"):
        signatures[name].method_name = f"tensorflow/serving/{name.removeprefix('joint_')}"
