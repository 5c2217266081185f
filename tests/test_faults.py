"""What goes wrong in production: kills, swaps under load, slow models, stalled and hostile clients."""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
from tensorflow_serving.apis.classification_pb2 import ClassificationRequest
from tensorflow_serving.apis.get_model_metadata_pb2 import GetModelMetadataRequest
from tensorflow_serving.apis.inference_pb2 import MultiInferenceRequest
from tensorflow_serving.apis.predict_pb2 import PredictResponse
from tensorflow_serving.apis.prediction_service_pb2_grpc import PredictionServiceStub
from tensorflow_serving.apis.regression_pb2 import RegressionRequest

from tests.half_plus_two import add_version, edit, predict_request, running, write_text
from tfrec.server import grpc_server
from tfrec.server.api import Api
from tfrec.server.grpc_server import Model, start
from tfrec.server.http_server import HttpServer
from tfrec.server.rest import Rest
from tfrec.server.servable import REGRESS, Servable
from tfrec.server.tensors import to_array

ARGUMENTS = ["--model_name", "half", "--max_num_load_retries=0", "--file_system_poll_wait_seconds=0.1"]
CODES = {code.name for code in grpc.StatusCode}


def ask(stub, x=2.0, **options):
    answer = stub.Predict(predict_request("half", x=[x]), **{"timeout": 20, **options})
    return answer.model_spec.version.value, answer.outputs["y"].float_val[0]


@pytest.fixture(scope="module")
def server(half):
    manager = Model("half", 1, Servable(half))
    server, port = start(manager, "127.0.0.1", 0, 2)
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    server.stop(None).wait()
    manager.close()


@pytest.fixture(scope="module")
def rest(half):
    manager = Model("half", 1, Servable(half))
    server = HttpServer(Rest(Api(manager)), "127.0.0.1", 0, 2)
    yield server.port
    server.close(5.0)
    manager.close()


def test_kill_and_restart(half, tmp_path):
    (tmp_path / "half").mkdir()  # a server waits for the first version
    threading.Timer(3, add_version, [tmp_path / "half", 1, half]).start()
    for kill in (True, False):
        with running(*ARGUMENTS, "--model_base_path", str(tmp_path / "half")) as server:
            with grpc.insecure_channel(server.target) as channel:
                assert ask(PredictionServiceStub(channel)) == (1, 3.0)
            if kill:
                server.process.kill()
                assert server.process.wait(20) == -9
            else:
                assert server.stop() == 0


def test_a_config_file_is_read_again(half, tmp_path):
    add_version(tmp_path / "half", 1, half)
    model = f'name: "half" base_path: "{tmp_path / "half"}" model_platform: "tensorflow"'
    file = write_text(tmp_path / "models.txt", f"model_config_list {{ config {{ {model} }} }}")
    arguments = ["--model_config_file", str(file), "--model_config_file_poll_wait_seconds=1"]
    with running(*arguments) as server, grpc.insecure_channel(server.target) as channel:
        stub, request = PredictionServiceStub(channel), predict_request("half", x=[2.0])
        request.model_spec.version_label = "stable"
        with pytest.raises(grpc.RpcError, match="Unrecognized servable version label: stable"):
            stub.Predict(request, timeout=20)
        write_text(file, "nonsense")  # a broken file changes nothing
        time.sleep(1.5)
        assert ask(stub) == (1, 3.0)
        label = 'version_labels { key: "stable" value: 1 }'
        write_text(file, f"model_config_list {{ config {{ {model} {label} }} }}")
        assert eventually(lambda: stub.Predict(request, timeout=20).model_spec.version.value) == 1


def eventually(call):
    """The first answer that is no refusal."""
    end = time.monotonic() + 30
    while True:
        try:
            return call()
        except grpc.RpcError:
            assert time.monotonic() < end
            time.sleep(0.1)


def test_swaps_and_broken_versions_under_load_fail_no_request(half, tmp_path):
    base, stop, answers = tmp_path / "half", threading.Event(), Counter()
    add_version(base, 1, half)
    broken = add_version(tmp_path / "broken", 1, half)
    edit(broken, lambda meta_graph: meta_graph.graph_def.node[0].__setattr__("op", "NoSuchOp"))

    def load(target):
        with grpc.insecure_channel(target) as channel:
            stub = PredictionServiceStub(channel)
            while not stop.is_set():
                answers[ask(stub)] += 1

    with running(*ARGUMENTS, "--model_base_path", str(base)) as server:
        threads = [threading.Thread(target=load, args=[server.target]) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            for number, source in ((2, half), (3, broken), (4, half)):
                add_version(base, number, source)
                wait_for(answers, number if source is half else 2)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert server.process.poll() is None
    assert set(answers) == {(1, 3.0), (2, 3.0), (4, 3.0)}


def wait_for(answers, number):
    """Until the version has answered a few more requests."""
    before, end = answers[(number, 3.0)], time.monotonic() + 60
    while answers[(number, 3.0)] < before + 20:
        assert time.monotonic() < end, answers
        time.sleep(0.02)


def test_sigterm_lets_the_requests_under_way_end(half, tmp_path):
    add_version(tmp_path / "half", 1, half)
    arguments = [*ARGUMENTS, "--model_base_path", str(tmp_path / "half")]
    with running(*arguments) as server, grpc.insecure_channel(server.target) as channel:
        stub = PredictionServiceStub(channel)
        request = predict_request("half", "loop", n=np.array([40_000], np.int32))
        slow = stub.Predict.future(request, timeout=60)
        with ThreadPoolExecutor(1) as pool:
            over_rest = pool.submit(slow_rest_request, server.rest)
            ask(stub)
            time.sleep(0.3)  # both are under way
            assert server.stop() == 0
            assert over_rest.result() == {"predictions": [40_000]}
        assert list(slow.result().outputs["turns"].int_val) == [40_000]


def slow_rest_request(address):
    body = json.dumps({"signature_name": "loop", "instances": [40_000]}).encode()
    with urllib.request.urlopen(f"{address}/v1/models/half:predict", body, timeout=60) as response:
        return json.loads(response.read())


def test_a_slow_request_does_not_hold_up_others(server):
    stub = PredictionServiceStub(server)
    slow = stub.Predict.future(predict_request("half", "loop", n=np.array([60_000], np.int32)), timeout=60)
    for _ in range(5):
        assert ask(stub) == (1, 3.0)
    assert not slow.done()
    assert list(slow.result().outputs["turns"].int_val) == [60_000]


def test_more_requests_than_may_wait_are_refused(half, monkeypatch):
    monkeypatch.setattr(grpc_server, "_WAITING", 1)
    manager = Model("half", 1, Servable(half))
    server, port = start(manager, "127.0.0.1", 0, 1)
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = PredictionServiceStub(channel)
        request = predict_request("half", "loop", n=np.array([40_000], np.int32))
        futures = [stub.Predict.future(request, timeout=60) for _ in range(6)]
        codes = Counter(future.code().name for future in futures)
    assert codes["RESOURCE_EXHAUSTED"] >= 1 and codes["OK"] >= 1 and len(codes) == 2
    server.stop(None).wait()
    manager.close()


def test_clients_that_go_away_leave_no_trace(server):
    stub = PredictionServiceStub(server)
    for _ in range(20):
        stub.Predict.future(predict_request("half", "loop", n=np.array([2000], np.int32)), timeout=60).cancel()
    assert ask(stub) == (1, 3.0)


@pytest.mark.parametrize("sizes", [[2**40], [2**62, 2**62], [-1], [0, 2**62]])
def test_shapes_that_would_fill_the_memory(server, sizes):
    request = predict_request("half", x=[1])
    del request.inputs["x"].tensor_shape.dim[:]
    for size in sizes:
        request.inputs["x"].tensor_shape.dim.add(size=size)
    with pytest.raises(grpc.RpcError, match="tensor parsing error: x"):
        PredictionServiceStub(server).Predict(request, timeout=20)


def seeds():
    """A valid message for every call that takes one."""
    request = predict_request("half", x=[1.0, 2.0])
    request.output_filter.append("y")
    classify, regress, multi = ClassificationRequest(), RegressionRequest(), MultiInferenceRequest()
    for made, signature in ((classify, "classify"), (regress, "regress")):
        made.model_spec.name, made.model_spec.signature_name = "half", signature
    multi.tasks.add(model_spec=regress.model_spec, method_name=REGRESS)
    for made in (classify, regress, multi):
        made.input.example_list.examples.add().features.feature["x"].float_list.value.append(1.0)
    metadata = GetModelMetadataRequest(model_spec=request.model_spec, metadata_field=["signature_def"])
    messages = {"Predict": request, "Classify": classify, "Regress": regress, "MultiInference": multi}
    messages["GetModelMetadata"] = metadata
    return {name: message.SerializeToString() for name, message in messages.items()}


def fuzz(channel, count, seed):
    """Sends mutated and random messages to every call; returns how often each status came back."""
    random_, valid = random.Random(seed), seeds()
    calls = {name: channel.unary_unary(f"/tensorflow.serving.PredictionService/{name}") for name in valid}
    codes = Counter()
    for _ in range(count):
        name = random_.choice(list(valid))
        try:
            calls[name](_mutated(valid[name], random_), timeout=30)
            codes["OK"] += 1
        except grpc.RpcError as error:
            codes[error.code().name] += 1
    return codes


BODIES = {
    "predict": [b'{"instances": [1.0, 2.5, NaN]}', b'{"inputs": {"x": [1, 2e3]}}',
                b'{"signature_name": "pair", "instances": [{"a": [1], "b": [2]}, {"a": [3], "b": [4]}]}',
                b'{"signature_name": "texts", "inputs": [{"b64": "YWJj"}, "\xc3\xa9\\u00e9"]}'],
    "classify": [b'{"signature_name": "classify", "examples": [{"x": 1.0}, {"x": [2.0]}]}'],
    "regress": [b'{"signature_name": "regress", "context": {"x": 2.0}, "examples": [{}, {"x": 4.0}]}'],
}  # fmt: skip


def fuzz_rest(port, count, seed):
    """Posts mutated and random bodies; returns how often each status came back, once the answer is read as JSON."""
    random_, statuses = random.Random(seed), Counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    for _ in range(count):
        method = random_.choice(list(BODIES))
        connection.request("POST", f"/v1/models/half:{method}", _mutated(random_.choice(BODIES[method]), random_))
        response = connection.getresponse()
        answer = json.loads(response.read().decode("utf-8", "replace"))
        assert ("error" in answer) == (response.status != 200), answer
        statuses[response.status] += 1
    connection.close()
    return statuses


def _mutated(valid, random_):
    data = bytearray(valid if random_.random() < 0.8 else random_.randbytes(random_.randrange(60)))
    for _ in range(random_.randrange(1, 6)):
        _mutate(data, random_)
    return bytes(data)


def _mutate(data, random_):
    place = random_.randrange(len(data) + 1)
    kind = random_.randrange(3)
    if kind == 0:
        data[place:place] = random_.randbytes(random_.randrange(1, 9))
    elif kind == 1:
        del data[place : place + random_.randrange(1, 5)]
    elif place < len(data):
        data[place] = random_.randrange(256)


def check_fuzz(channel, count):
    codes = fuzz(channel, count, seed=5)
    assert sum(codes.values()) == count and codes.keys() <= CODES
    assert codes["OK"] and codes["INVALID_ARGUMENT"]
    assert not codes["UNAVAILABLE"] and not codes["DEADLINE_EXCEEDED"]
    assert ask(PredictionServiceStub(channel)) == (1, 3.0)


def check_fuzz_rest(port, count):
    statuses = fuzz_rest(port, count, seed=6)
    assert sum(statuses.values()) == count
    assert statuses[200] and statuses[400] and statuses.keys() <= {200, 400, 404, 501}


def test_fuzzed_messages_are_all_answered(server, rest):
    check_fuzz(server, 700)
    check_fuzz_rest(rest, 700)


@pytest.mark.slow
def test_a_hundred_thousand_fuzzed_messages_are_all_answered(server):
    check_fuzz(server, 100_000)


@pytest.mark.slow
def test_a_hundred_thousand_fuzzed_bodies_are_all_answered(rest):
    check_fuzz_rest(rest, 100_000)


def test_responses_of_valid_requests_survive_the_wire(server):
    call = server.unary_unary("/tensorflow.serving.PredictionService/Predict")
    answer = PredictResponse.FromString(call(predict_request("half", x=[4.0]).SerializeToString(), timeout=20))
    assert to_array(answer.outputs["y"]).tolist() == [4.0]
