"""The gRPC server as a second process, asked by bare stubs; start and stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis.get_model_status_pb2 import GetModelStatusRequest, ModelVersionStatus
from tensorflow_serving.apis.model_service_pb2_grpc import ModelServiceStub
from tensorflow_serving.apis.predict_pb2 import PredictRequest
from tensorflow_serving.apis.prediction_service_pb2_grpc import PredictionServiceStub

from tests.saved_models import save_shop, strings
from tfrec.client import Client, Result
from tfrec.server import grpc_server


def start_server(base: Path) -> tuple[subprocess.Popen[str], str]:
    """Starts the server on a free port and waits for its line on stderr."""
    command = [sys.executable, "-m", "tfrec.server.grpc_server", "--port", "0", "--model_name", "shop"]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"}
    process = subprocess.Popen(
        [*command, "--model_base_path", str(base)], stderr=subprocess.PIPE, text=True, env=environment
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("serving shop version 2 on 127.0.0.1:"):
            return process, line.split()[-1]
    raise AssertionError(f"the server ended with {process.wait()}")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    base = tmp_path_factory.mktemp("models") / "shop"
    save_shop(base / "2")
    (base / "1").mkdir()
    return base


@pytest.fixture(scope="module")
def target(base):
    process, target = start_server(base)
    yield target
    process.send_signal(signal.SIGTERM)
    try:
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.stderr.close()


@pytest.fixture(scope="module")
def channel(target):
    with grpc.insecure_channel(target) as channel:
        yield channel


def request(signature: str = "", model: str = "shop", **inputs: object) -> PredictRequest:
    made = PredictRequest()
    made.model_spec.name, made.model_spec.signature_name = model, signature
    for alias, value in inputs.items():
        made.inputs[alias].CopyFrom(tf.make_tensor_proto(value))
    return made


def refusal(call, argument) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call(argument, timeout=20)
    return caught.value.code().name, caught.value.details()


def test_predict_takes_typed_values_and_answers_like_tensorflow_serving(channel):
    asked = request("search", query=strings(["tool"]))
    asked.inputs["k"].dtype = tf.int32.as_datatype_enum  # a scalar by int_val, no tensor_content
    asked.inputs["k"].int_val.append(1)
    asked.output_filter.append("item_ids")
    answer = PredictionServiceStub(channel).Predict(asked, timeout=20)
    assert list(answer.outputs) == ["item_ids"]
    assert list(answer.outputs["item_ids"].string_val) == [b"hammer"]
    assert [d.size for d in answer.outputs["item_ids"].tensor_shape.dim] == [1, 1]
    spec = answer.model_spec
    assert (spec.name, spec.signature_name, spec.version.value) == ("shop", "search", 2)


def test_predict_takes_tensor_content_and_empty_dimensions(channel):
    asked = request("", user_id=strings(["u"]), history=strings([[]]), k=np.array([2], np.int32))
    assert asked.inputs["k"].tensor_content or asked.inputs["k"].int_val
    asked.inputs["k"].ClearField("int_val")
    asked.inputs["k"].tensor_content = np.array([2], np.int32).tobytes()
    asked.model_spec.version.value = 2
    answer = PredictionServiceStub(channel).Predict(asked, timeout=20)
    assert list(answer.outputs["item_ids"].string_val) == [b"apple", b"pear"]
    assert answer.model_spec.signature_name == "serving_default"
    np.testing.assert_allclose(answer.outputs["scores"].float_val, [0.05, 0.04], rtol=1e-6)


def test_predict_refusals(channel):
    predict = PredictionServiceStub(channel).Predict
    version = request("search", query=strings(["a"]))
    version.model_spec.version.value = 1
    label = request("search", query=strings(["a"]))
    label.model_spec.version_label = "canary"
    malformed = request("search", query=strings(["a"]))
    malformed.inputs["query"].tensor_shape.dim[0].size = -1
    assert refusal(predict, PredictRequest()) == ("INVALID_ARGUMENT", "Missing ModelSpec")
    assert refusal(predict, request(model="x")) == ("NOT_FOUND", "Servable not found for request: Latest(x)")
    assert refusal(predict, version) == ("NOT_FOUND", "Servable not found for request: Specific(shop, 1)")
    assert refusal(predict, label) == ("INVALID_ARGUMENT", "Unrecognized servable version label: canary")
    assert refusal(predict, malformed) == ("INVALID_ARGUMENT", "tensor parsing error: query")
    assert refusal(predict, request("x")) == ("FAILED_PRECONDITION", 'Serving signature key "x" not found.')


def test_model_status(channel):
    status = ModelServiceStub(channel).GetModelStatus
    asked = GetModelStatusRequest()
    asked.model_spec.name = "shop"
    versions = status(asked, timeout=20).model_version_status
    assert [(v.version, v.state) for v in versions] == [(2, ModelVersionStatus.AVAILABLE)]
    asked.model_spec.version.value = 7
    assert refusal(status, asked) == ("NOT_FOUND", "Could not find version 7 of model shop")
    asked.model_spec.name = "x"
    asked.model_spec.ClearField("version")
    assert refusal(status, asked) == ("NOT_FOUND", "Could not find any versions of model x")
    assert refusal(status, GetModelStatusRequest()) == ("INVALID_ARGUMENT", "Missing ModelSpec")


def test_the_client_and_bare_stubs_get_the_same(target, channel):
    with Client(target, "shop") as client:
        results = client.search("sweet tools", k=2)
    answer = PredictionServiceStub(channel).Predict(request("search", query=strings(["sweet tools"]), k=2), timeout=20)
    names, scores = answer.outputs["item_ids"].string_val, answer.outputs["scores"].float_val
    assert results == [Result(name.decode(), score) for name, score in zip(names, scores, strict=True)]


def test_a_taken_port_is_one_clear_sentence(target, base, capsys):
    port = target.rsplit(":", 1)[1]
    code = _main(["--port", port, "--model_name", "shop", "--model_base_path", str(base)])
    assert code == 1
    assert f"the address must be free and local; got '127.0.0.1:{port}'" in capsys.readouterr().err


def test_a_missing_base_path_is_one_clear_sentence(tmp_path, capsys):
    assert _main(["--model_base_path", str(tmp_path / "gone")]) == 1
    assert "error: model_base_path must be a folder; got" in capsys.readouterr().err


def test_help_has_an_example(capsys):
    with pytest.raises(SystemExit) as stopped:
        grpc_server.main(["--help"])
    assert stopped.value.code == 0
    assert "tfrec-model-server --port 8500" in capsys.readouterr().out


def _main(argv: list[str]) -> int:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        return grpc_server.main(argv)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
