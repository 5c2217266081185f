"""The gate's bounds, by hand."""

from __future__ import annotations

import numpy as np
import pytest
from tensorflow_serving.apis.prediction_log_pb2 import PredictLog

from tfrec.artifact.gate import Verdict, compare_answers, compare_metric, decide
from tfrec.errors import ArtifactError
from tfrec.server.tensors import to_proto


def card(value: float) -> dict[str, object]:
    return {"metrics": {"test": {"ndcg@10": value}}}


def answer(*rows: list[str]) -> PredictLog:
    log = PredictLog()
    ids = np.array([[item.encode() for item in row] for row in rows], object)
    log.response.outputs["item_ids"].CopyFrom(to_proto(ids))
    return log


@pytest.mark.parametrize(
    ("now", "passed"), [(0.25, True), (0.18, True), (0.1799, False), (0.0, False), (float("nan"), False)]
)
def test_a_tenth_may_be_lost(now: float, passed: bool) -> None:
    verdict = compare_metric(card(0.2), {"ndcg@10": now}, "ndcg@10", 0.1 + 1e-9)
    assert verdict.passed is passed
    assert f"from 0.2000 to {now:.4f}" in verdict.reason


def test_what_cannot_be_compared() -> None:
    assert compare_metric(None, {}, "ndcg@10", 0.1).passed
    assert compare_metric({}, {"ndcg@10": 0.1}, "ndcg@10", 0.1).passed
    assert compare_metric(card(0.0), {"ndcg@10": 0.0}, "ndcg@10", 0.1).passed
    unmeasured = compare_metric(card(0.2), {}, "ndcg@10", 0.1)
    assert not unmeasured.passed and "run tfrec evaluate" in unmeasured.reason


def test_answers_by_hand() -> None:
    before = [answer(["a", "b", "c", "d"], ["a", "", "", ""]), PredictLog()]
    now = [answer(["a", "x", "c", "y"], ["z", "", "", ""]), PredictLog()]
    # Two of a, b, c, d are kept, and none of a: (0.5 + 0) / 2.
    assert compare_answers(before, now, [], 0.25).passed
    assert not compare_answers(before, now, [], 0.26).passed
    # Without the delisted b, two of three are kept; a row of which nothing is left says nothing.
    assert compare_answers(before, now, [b"b", b"a"], 0.49).passed
    assert not compare_answers(before, now, [b"b", b"a"], 0.51).passed
    assert compare_answers([PredictLog()], [PredictLog()], [], 1.0).passed


def test_only_the_first_ten_count() -> None:
    first = [str(i) for i in range(10)]
    assert compare_answers([answer([*first, "x"])], [answer([*first[::-1], "y"])], [], 1.0).passed
    assert not compare_answers([answer([*first, "x"])], [answer(["x", *first])], [], 1.0).passed


def test_a_refusal_says_why_and_force_is_on_record() -> None:
    assert decide(Verdict(True, "fine"), force=True) == {"passed": True, "forced": False, "reason": "fine"}
    assert decide(Verdict(False, "worse"), force=True) == {"passed": False, "forced": True, "reason": "worse"}
    with pytest.raises(ArtifactError, match=r"nothing was published; got 'worse'.*--force"):
        decide(Verdict(False, "worse"), force=False)
