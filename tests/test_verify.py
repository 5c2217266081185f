"""verify trusts a good artefact and names what is wrong with a bad one."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog

from tests.saved_models import save_packed_segments, save_shop, save_untracked_variable, shop_requests, strings
from tfrec.artifact import verify as verify_module
from tfrec.artifact.calls import decode, difference, encode
from tfrec.artifact.golden import GOLDEN, WARMUP, read_golden, write_golden
from tfrec.artifact.session_check import check
from tfrec.artifact.verify import Failure, Report, verify
from tfrec.errors import ArtifactError
from tfrec.server.servable import RequestError
from tfrec.server.tensors import to_array, to_proto


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    path = save_shop(tmp_path_factory.mktemp("shop") / "1")
    write_golden(path, shop_requests(), "shop")
    return path


@pytest.fixture
def copy(good, tmp_path):
    return Path(shutil.copytree(good, tmp_path / "1"))


def rewrite_golden(path: Path, change) -> None:
    """Replaces the golden requests by what change makes of them."""
    logs = [PredictionLog(predict_log=log) for log in change(read_golden(path))]
    with tf.io.TFRecordWriter(str(path / GOLDEN)) as writer:
        for log in logs:
            writer.write(log.SerializeToString())


def add_golden(path: Path, signature: str, inputs: dict, outputs: dict) -> None:
    log = PredictionLog()
    log.predict_log.request.model_spec.signature_name = signature
    for alias, value in inputs.items():
        log.predict_log.request.inputs[alias].CopyFrom(to_proto(value))
    for alias, value in outputs.items():
        log.predict_log.response.outputs[alias].CopyFrom(to_proto(value))
    (path / GOLDEN).parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path / GOLDEN)) as writer:
        writer.write(log.SerializeToString())


def test_golden_requests_carry_answers_and_warm_up_requests_do_not(good):
    first = read_golden(good)[0]
    assert (first.request.model_spec.name, first.request.model_spec.signature_name) == ("shop", "recommend")
    assert to_array(first.response.outputs["item_ids"]).tolist() == [[b"apple", b"hammer"]]
    assert to_array(first.request.inputs["exclude"]).shape == (1, 0)
    warmups = [PredictionLog.FromString(r) for r in tf.data.TFRecordDataset(str(good / WARMUP)).as_numpy_iterator()]
    assert [w.predict_log.request for w in warmups] == [g.request for g in read_golden(good)]
    assert not any(w.predict_log.HasField("response") for w in warmups)


def test_at_most_a_thousand_warm_up_requests(copy):
    request = ("rank", shop_requests()[-1][1])
    write_golden(copy, [request] * 1001)
    assert len(read_golden(copy)) == 1001
    assert sum(1 for _ in tf.data.TFRecordDataset(str(copy / WARMUP)).as_numpy_iterator()) == 1000


def test_a_refused_golden_request_leaves_the_files_alone(copy):
    before = (copy / GOLDEN).read_bytes()
    with pytest.raises(RequestError, match="input size does not match"):
        write_golden(copy, [("rank", {})])
    assert (copy / GOLDEN).read_bytes() == before
    assert {file.name for file in (copy / "assets.extra").iterdir()} == {Path(GOLDEN).name, Path(WARMUP).name}


def test_the_session_check_passes_a_good_artefact(good):
    report = check(good)
    assert report["failures"] == []
    assert report["golden"] == {"recommend": 3, "serving_default": 1, "search": 1, "similar": 1, "rank": 1}
    assert "search" in report["ops"]["CaseFoldUTF8"]


def test_a_changed_answer_names_signature_request_and_output(copy):
    def change(logs):
        logs[4].response.outputs["item_ids"].string_val[0] = b"saw"
        logs[6].response.outputs["scores"].float_val[0] += 1e-3
        return logs

    rewrite_golden(copy, change)
    first, second = check(copy)["failures"]
    assert first == (
        "signature search, request 4, output item_ids",
        "1 of 4 values differ; at [0, 0] expected b'saw', got b'hammer'",
    )
    assert second[0] == "signature rank, request 6, output scores"


def test_a_missing_output_is_named(copy):
    def change(logs):
        del logs[0].response.outputs["scores"]
        return logs

    rewrite_golden(copy, change)
    assert check(copy)["failures"] == [("signature recommend, request 0, output scores", "is in one answer only")]


def test_a_signature_without_golden_request_is_named(copy):
    rewrite_golden(copy, lambda logs: [log for log in logs if log.request.model_spec.signature_name != "similar"])
    assert check(copy)["failures"] == [("signature similar", "has no golden request")]


def test_no_golden_requests_at_all(copy):
    (copy / GOLDEN).unlink()
    where, message = check(copy)["failures"][0]
    assert where == "golden requests" and "must hold golden requests" in message


def test_damaged_golden_requests(copy):
    (copy / GOLDEN).write_bytes((copy / GOLDEN).read_bytes()[:-5])
    with pytest.raises(ArtifactError, match="must be a TFRecord of PredictionLog"):
        read_golden(copy)


def test_an_untracked_variable_is_named(tmp_path):
    path = save_untracked_variable(tmp_path / "1")
    add_golden(path, "embed", {"x": np.ones((1, 3), np.float32)}, {"embedding": np.ones((1, 2), np.float32)})
    [(where, message)] = check(path)["failures"]
    assert where == "signature embed, request 0"
    assert "Could not find variable dense" in message


def test_a_truncated_variables_file_does_not_load(copy):
    data = copy / "variables" / "variables.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:40])
    where, message = check(copy)["failures"][0]
    assert where == "load" and "Read less bytes than requested" in message


def test_a_damaged_graph_is_refused(copy):
    (copy / "saved_model.pb").write_bytes(b"\xff\xff")
    with pytest.raises(ArtifactError, match="must hold a readable saved_model"):
        check(copy)


def test_verify_trusts_a_good_artefact(good):
    report = verify(good, "2.18")
    assert report.ok, str(report)
    assert report.golden["recommend"] == 3
    assert str(report).endswith(f"{report.ops} ops")


def test_verify_asks_both_witnesses_and_the_op_lint(tmp_path):
    path = save_packed_segments(tmp_path / "1")
    add_golden(path, "search", {"query": strings(["tool"])}, {"tokens": np.zeros((1, 8), np.int32)})
    report = verify(path, "2.18")
    assert {failure.check for failure in report.failures} == {"session", "C API", "ops"}
    expected = "signature search, request 0, output tokens: "
    assert all(expected in str(failure) for failure in report.failures if failure.check != "ops")
    assert "ops: op TFText>RoundRobinTrim: is absent from TensorFlow Serving 2.18; used by signature search" in str(
        report
    )


@pytest.mark.slow
def test_verify_catches_a_module_that_holds_keras_layers(tmp_path):
    path = save_untracked_variable(tmp_path / "1")
    add_golden(path, "embed", {"x": np.ones((1, 3), np.float32)}, {"embedding": np.ones((1, 2), np.float32)})
    [failure] = verify(path, "2.18").failures
    assert str(failure).startswith("session: signature embed, request 0: FAILED_PRECONDITION: Could not find variable")


def test_a_witness_that_dies_is_a_failure(tmp_path):
    report = verify_module._witness("session", "tfrec.no_such_module", tmp_path, tmp_path)
    [failure] = report["failures"]
    assert failure.where == "process" and "No module named tfrec.no_such_module" in failure.message


def test_verify_needs_a_folder_and_a_known_version(tmp_path):
    with pytest.raises(ArtifactError, match="needs the folder of an exported version"):
        verify(tmp_path / "gone", "2.18")
    with pytest.raises(ArtifactError, match=r"at least 2\.18; got '1\.15'"):
        verify(tmp_path, "1.15")


def test_a_report_prints_one_line_per_failure():
    failures = (Failure("ops", "op X", "is absent"), Failure("session", "load", "no"))
    assert str(Report(Path("p"), "2.18", {}, 0, failures)) == "ops: op X: is absent\nsession: load: no"


@pytest.mark.parametrize(
    ("expected", "got", "words"),
    [
        (np.array([1.0]), np.array([1.0 + 9e-6]), ""),
        (np.array([1.0]), np.array([1.0 + 3e-5]), "1 of 1 values differ; at [0] expected 1.0, got 1.00003"),
        (np.array([1e6]), np.array([1e6 + 5]), ""),
        (np.array([np.nan]), np.array([np.nan]), ""),
        (np.array([1, 2]), np.array([1, 3]), "1 of 2 values differ; at [1] expected 2, got 3"),
        (strings(["a"]), strings(["b"]), "1 of 1 values differ; at [0] expected b'a', got b'b'"),
        (strings([]), strings([]), ""),
        (np.zeros((1, 2)), np.zeros((2, 1)), "expected float64 [1, 2], got float64 [2, 1]"),
        (np.zeros(1, np.int32), np.zeros(1, np.int64), "expected int32 [1], got int64 [1]"),
    ],
)
def test_differences_by_hand(expected, got, words):
    assert difference(expected, got) == words


@pytest.mark.parametrize(
    "array", [strings([["é", ""]]), strings([[]]), np.array(3, np.int32), np.array([[0.1, -1e30]], np.float32)]
)
def test_calls_survive_json(array):
    back = decode(encode(array))
    assert back.dtype == array.dtype and back.shape == array.shape
    assert back.tolist() == array.tolist()
