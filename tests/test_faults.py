"""What goes wrong in production: kills, swaps under load, slow models, stalled and hostile clients."""

from __future__ import annotations

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
from tensorflow_serving.apis.inference_pb2 import MultiInferenceRequest
from tensorflow_serving.apis.predict_pb2 import PredictResponse
from tensorflow_serving.apis.prediction_service_pb2_grpc import PredictionServiceStub

from tests.half_plus_two import add_version, edit, predict_request, running, write_text
from tfrec.server import grpc_server
from tfrec.server.grpc_server import Model, start
from tfrec.server.servable import Servable
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


def fuzz(channel, count, seed):
    """Sends mutated and random messages to three calls; returns how often each status came back."""
    random_ = random.Random(seed)
    request = predict_request("half", x=[1.0, 2.0])
    request.output_filter.append("y")
    seeds = {"Predict": request.SerializeToString()}
    for name, kind in (("Classify", ClassificationRequest), ("MultiInference", MultiInferenceRequest)):
        seeds[name] = kind.FromString(b"").SerializeToString() or request.SerializeToString()
    calls = {name: channel.unary_unary(f"/tensorflow.serving.PredictionService/{name}") for name in seeds}
    codes = Counter()
    for _ in range(count):
        name = random_.choice(list(seeds))
        data = bytearray(seeds[name] if random_.random() < 0.8 else random_.randbytes(random_.randrange(60)))
        for _ in range(random_.randrange(1, 6)):
            _mutate(data, random_)
        try:
            calls[name](bytes(data), timeout=30)
            codes["OK"] += 1
        except grpc.RpcError as error:
            codes[error.code().name] += 1
    return codes


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


def test_fuzzed_messages_are_all_answered(server):
    check_fuzz(server, 1500)


@pytest.mark.slow
def test_a_hundred_thousand_fuzzed_messages_are_all_answered(server):
    check_fuzz(server, 100_000)


def test_responses_of_valid_requests_survive_the_wire(server):
    call = server.unary_unary("/tensorflow.serving.PredictionService/Predict")
    answer = PredictResponse.FromString(call(predict_request("half", x=[4.0]).SerializeToString(), timeout=20))
    assert to_array(answer.outputs["y"]).tolist() == [4.0]
