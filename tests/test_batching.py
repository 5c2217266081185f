"""Batches: who travels together, padding, refusals, limits, deadlines."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import grpc
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorflow_serving.apis.prediction_service_pb2_grpc import PredictionServiceStub

from tests.half_plus_two import add_version, predict_request, running, write_text
from tfrec.server.batching import Batching, BatchingSession, BatchScheduler, merge, padded
from tfrec.server.protos import BatchingParameters
from tfrec.server.servable import Servable, Signature, TensorInfo
from tfrec.server.status import RequestError


def takes(*names):
    """A signature of these inputs that gives y."""
    infos = {name: TensorInfo(name, tf.float32, None) for name in (*names, "y")}
    return Signature({name: infos[name] for name in names}, {"y": infos["y"]}, {}, "")


class Recorder:
    """A session that doubles its input and remembers the batches; may be held back."""

    def __init__(self):
        self.batches, self.go = [], threading.Event()
        self.go.set()

    def run(self, feeds, fetches, deadline=None):
        assert self.go.wait(20)
        self.batches.append({name: value.copy() for name, value in feeds.items()})
        return [feeds["x"] * 2 for _ in fetches]

    def close(self):
        self.go.set()


@pytest.fixture
def make():
    schedulers = []

    def batched(**limits):
        recorder, scheduler = Recorder(), BatchScheduler(Batching(**limits))
        schedulers.append(scheduler)
        return recorder, BatchingSession(recorder, scheduler, [takes(), takes("x"), takes("x", "z")])

    yield batched
    for scheduler in schedulers:
        scheduler.close()


def rows(*values):
    return {"x": np.array(values, np.float32)}


def together(session, *requests):
    """Sends requests at the same time; answers or refusals in order."""

    def send(feeds):
        try:
            return session.run(feeds, ["y"])[0].tolist()
        except RequestError as error:
            return error.code, str(error)

    with ThreadPoolExecutor(len(requests)) as pool:
        return list(pool.map(send, requests))


def test_requests_travel_together_and_get_their_own_answers(make):
    recorder, session = make(max_batch_size=4, timeout_seconds=10, threads=1)
    assert together(session, rows(1), rows(2, 3), rows(4)) == [[2], [4, 6], [8]]
    assert [sorted(batch["x"]) for batch in recorder.batches] == [[1, 2, 3, 4]]


def test_what_is_no_whole_signature_runs_alone(make):
    """So that a filter of outputs is also the way to a signature that batches cannot ask, as in TensorFlow Serving."""
    recorder, session = make(max_batch_size=4, timeout_seconds=10, threads=1)
    assert session.run({"x": np.float32(3)}, ["y", "z"]) == [6, 6]
    assert session.run({"x": np.ones((9, 1), np.float32)}, []) == []
    assert len(recorder.batches) == 2


def test_a_batch_leaves_when_its_first_request_has_waited_long_enough(make):
    recorder, session = make(max_batch_size=100, timeout_seconds=0.05, threads=1)
    begun = time.monotonic()
    assert together(session, rows(1)) == [[2]]
    assert time.monotonic() - begun >= 0.05 and len(recorder.batches) == 1


def test_batches_are_filled_up_with_the_last_ones_first_row(make):
    recorder, session = make(max_batch_size=8, allowed_sizes=(4, 8), threads=1)
    assert together(session, rows(5, 6)) == [[10, 12]]
    assert recorder.batches[0]["x"].tolist() == [5, 6, 5, 5]


@pytest.mark.parametrize(
    ("feeds", "text"),
    [
        ({}, "Batching Run() must have at least one input tensor"),
        ({"x": np.float32(1)}, "Batching Run() input tensors must have at least one dimension"),
        ({"x": np.ones(2), "z": np.ones(3)}, "Batching Run() input tensors must have equal 0th-dimension size"),
        ({"x": np.ones(5)}, "Task size 5 is larger than maximum input batch size 4"),
    ],
)
def test_what_cannot_be_batched(make, feeds, text):
    _, session = make(max_batch_size=4, threads=1)
    feeds = {name: np.asarray(value) for name, value in feeds.items()}
    assert together(session, feeds) == [("INVALID_ARGUMENT", text)]


def test_a_full_queue_refuses(make):
    recorder, session = make(max_batch_size=1, max_enqueued_batches=2, threads=1)
    recorder.go.clear()
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(together, session, rows(1))]
        end = time.monotonic() + 10
        while session._scheduler._queues[:1] and session._scheduler._queues[0].batches and time.monotonic() < end:
            time.sleep(0.005)  # until the thread has taken the first one
        time.sleep(0.05)
        waiting += [pool.submit(together, session, rows(value)) for value in (2, 3)]
        while len(session._scheduler._queues[0].batches) < 2 and time.monotonic() < end:
            time.sleep(0.005)
        ((code, text),) = together(session, rows(4))
        recorder.go.set()
        assert [future.result() for future in waiting] == [[[2]], [[4]], [[6]]]
    assert code == "UNAVAILABLE"
    assert text == (
        "The batch scheduling queue to which this task was submitted is full; currently 2 batches enqueued and "
        "max_enqueued_batches is 2"
    )


def test_a_batch_of_the_late_is_not_run(make):
    recorder, session = make(timeout_seconds=0.05, threads=1)
    with pytest.raises(RequestError, match="timeout exceeded while waiting in batching queue") as caught:
        session.run(rows(1), ["y"], time.monotonic() + 0.01)
    assert caught.value.code == "RESOURCE_EXHAUSTED" and not recorder.batches


def test_shapes_must_agree_without_padding(make):
    _, session = make(max_batch_size=2, timeout_seconds=10, threads=1)
    answers = together(session, {"x": np.ones((1, 2))}, {"x": np.ones((1, 3))})
    assert {code for code, _ in answers} == {"FAILED_PRECONDITION"}
    assert all(
        text.startswith("Tensors with name 'x' from different tasks have different shapes") for _, text in answers
    )


def test_shapes_are_padded_with_the_tensors_first_element(make):
    recorder, session = make(max_batch_size=2, timeout_seconds=10, threads=1, pad=True)
    together(session, {"x": np.array([[7.0, 1.0]])}, {"x": np.array([[9.0, 8.0, 1.0]])})
    assert sorted(recorder.batches[0]["x"].tolist()) == [[7, 1, 7], [9, 8, 1]]


def test_an_empty_tensor_cannot_be_padded(make):
    _, session = make(max_batch_size=2, timeout_seconds=10, threads=1, pad=True)
    answers = together(session, {"x": np.ones((1, 0))}, {"x": np.ones((1, 3))})
    assert answers == [("INVALID_ARGUMENT", "Got empty tensor in batch of non-empty tensors.")] * 2
    with pytest.raises(RequestError, match="rank from 1 to 6"):
        padded(np.ones((1,) * 7), np.array([1] * 7))


def test_large_requests_are_split_where_wanted(make):
    recorder, session = make(max_batch_size=10, split=True, max_execution_size=3, threads=1)
    assert together(session, rows(1, 2, 3, 4, 5)) == [[2, 4, 6, 8, 10]]
    assert [len(batch["x"]) for batch in recorder.batches] == [3, 2]


def test_an_output_without_the_batch_axis_is_refused(half):
    scheduler = BatchScheduler(Batching(threads=1))
    servable = Servable(half, wrap=lambda session, signatures: BatchingSession(session, scheduler, signatures))
    x = np.ones(2, np.float32)
    assert servable.run("", {"x": x})["y"].tolist() == [2.5, 2.5]
    with pytest.raises(RequestError, match="Batched output tensor has 0 dimensions") as caught:
        servable.run("scalar", {"x": x})
    assert caught.value.code == "FAILED_PRECONDITION"
    servable.close()
    scheduler.close()


@dataclass
class Task:
    feeds: dict


SHAPES = st.lists(st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=4)


@settings(max_examples=40, deadline=None)
@given(SHAPES, st.integers(0, 3), st.sampled_from(["i4", object]))
def test_merging_equals_a_loop_over_elements(shapes, filling, dtype):
    values = [np.arange(1, np.prod(shape) + 1).reshape(shape).astype(dtype) for shape in shapes]
    merged = merge([Task({"x": value}) for value in values], filling, pad=True)["x"]
    most = np.max(shapes, axis=0)
    expected = []
    for value in values:
        for row in value:
            full = np.full(most[1:], value.flat[0], dtype)
            for place, element in np.ndenumerate(row):
                full[place] = element
            expected.append(full)
    first_of_last = expected[-values[-1].shape[0]]
    np.testing.assert_array_equal(merged, np.stack(expected + [first_of_last] * filling))


def test_parameters_are_read():
    text = (
        "max_batch_size { value: 8 } batch_timeout_micros { value: 2000 } max_enqueued_batches { value: 3 } "
        "num_batch_threads { value: 2 } allowed_batch_sizes: 4 allowed_batch_sizes: 8 pad_variable_length_inputs: true"
    )
    made = Batching.from_proto(text_format.Parse(text, BatchingParameters()))
    assert made == Batching(8, 0.002, 3, 2, (4, 8), True, False, 8)
    assert Batching.from_proto(BatchingParameters()) == Batching()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_batch_size { value: 8 } allowed_batch_sizes: 4", "last entry was 4; expected 8"),
        ("num_batch_threads { value: 0 }", "num_batch_threads must be positive; was 0"),
    ],
)
def test_parameters_that_make_no_sense(text, message):
    with pytest.raises(RequestError, match=message):
        Batching.from_proto(text_format.Parse(text, BatchingParameters()))


def test_a_batching_server(half, tmp_path):
    add_version(tmp_path / "half", 1, half)
    file = write_text(tmp_path / "batching.txt", "max_batch_size { value: 4 } batch_timeout_micros { value: 1000 }")
    arguments = ["--model_name=half", f"--model_base_path={tmp_path / 'half'}", "--enable_batching"]
    with running(*arguments, f"--batching_parameters_file={file}") as server:
        with grpc.insecure_channel(server.target) as channel:
            stub = PredictionServiceStub(channel)
            futures = [stub.Predict.future(predict_request("half", x=[i]), timeout=20) for i in range(20)]
            assert [f.result().outputs["y"].float_val[0] for f in futures] == [0.5 * i + 2 for i in range(20)]
            with pytest.raises(grpc.RpcError, match="Task size 5 is larger than maximum input batch size 4"):
                stub.Predict(predict_request("half", x=[1] * 5), timeout=20)
        assert server.stop() == 0
