"""The load generator: requests of a warm-up file, an open loop that charges a server for its stalls, summaries."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import grpc
import pytest
from tensorflow_serving.apis.predict_pb2 import PredictRequest

from tests.half_plus_two import add_warmup, warmup_log

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "load.py"
STALL = 0.4


@pytest.fixture(scope="module")
def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("load", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["load"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def serve() -> Iterator[Any]:
    """Starts a server for a handler; gives its target."""
    servers = []

    def start(handler: Any, threads: int = 1) -> str:
        server = grpc.server(ThreadPoolExecutor(threads))
        method = grpc.unary_unary_rpc_method_handler(handler)
        handlers = grpc.method_handlers_generic_handler("tensorflow.serving.PredictionService", {"Predict": method})
        server.add_generic_rpc_handlers((handlers,))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servers.append(server)
        return f"127.0.0.1:{port}"

    yield start
    for server in servers:
        server.stop(None).wait()


def test_requests_are_those_of_the_warm_up_file(load: ModuleType, tmp_path: Path) -> None:
    logs = [warmup_log("half", x=[1.0]), warmup_log("half", a=[2.0])]
    logs[1].predict_log.request.model_spec.signature_name = "pair"
    logs[1].predict_log.request.output_filter.append("sum")
    add_warmup(tmp_path, *logs)
    file = tmp_path / load.WARMUP
    first, second = (PredictRequest.FromString(text) for text in load.read_requests(file, "shop"))
    for read, log in ((first, logs[0]), (second, logs[1])):
        log.predict_log.request.model_spec.name = "shop"
        assert read == log.predict_log.request
    assert [PredictRequest.FromString(text) for text in load.read_requests(file, "shop", ["pair"])] == [second]
    with pytest.raises(SystemExit, match="must hold requests for search"):
        load.read_requests(file, "shop", ["search"])


def test_whoever_waits_behind_a_stall_is_counted_from_when_he_should_have_left(load: ModuleType, serve: Any) -> None:
    calls = iter(range(10**6))

    def handler(request: bytes, context: Any) -> bytes:
        if next(calls) == 20:
            time.sleep(STALL)
        return request

    outcomes = asyncio.run(load.open_loop(serve(handler), [b""], 200.0, 1.0, 0))
    assert 150 < len(outcomes) < 250  # Poisson: 200 ± 3.5 standard deviations
    slow = [outcome for outcome in outcomes if outcome.latency > STALL / 2]
    assert len(slow) > 0.3 * STALL / 2 * 200  # about 40 should have left in the first half of the stall
    assert {outcome.code for outcome in outcomes} == {"OK"}


def test_a_closed_loop_keeps_so_many_under_way(load: ModuleType, serve: Any) -> None:
    inside, most, lock = 0, 0, threading.Lock()

    def handler(request: bytes, context: Any) -> bytes:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        time.sleep(0.01)
        with lock:
            inside -= 1
        return request

    outcomes = asyncio.run(load.closed_loop(serve(handler, 8), [b"x"], 3, 60.0, 60, 0))
    assert (len(outcomes), most) == (60, 3)


def test_failures_are_counted_by_their_code(load: ModuleType, serve: Any) -> None:
    calls = iter(range(100))

    def handler(request: bytes, context: Any) -> bytes:
        if next(calls) % 2:
            context.abort(grpc.StatusCode.NOT_FOUND, "no")
        return request

    outcomes = asyncio.run(load.closed_loop(serve(handler), [b""], 1, 60.0, 10, 0))
    found = load.summary(outcomes)
    assert (found["requests"], found["failed"]) == (10, {"NOT_FOUND": 5})
    assert 0 < found["p50_ms"] <= found["p99_ms"] <= found["worst_ms"]


def test_a_summary_by_hand(load: ModuleType) -> None:
    outcomes = [load.Outcome(100.0 + i, 0.001, (i + 1) / 1000, "OK") for i in range(101)]
    found = load.summary(outcomes)
    assert found["p50_ms"] == 51.0 and found["p99_ms"] == 100.0 and found["worst_ms"] == 101.0
    assert found["per_second"] == 1.0 and found["generator_late_p99_ms"] == 1.0
