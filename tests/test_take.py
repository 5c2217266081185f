"""No served variable is both gathered from and read whole, which would copy it with every request."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from cascade_twin import make_cascade
from copied import copied
from parts import ITEM_VECTORS, ITEMS, make_parts

from tfrec.artifact.buckets import build
from tfrec.artifact.export import write_model
from tfrec.artifact.indexed import Plan
from tfrec.artifact.take import take

BUCKETS = build(ITEM_VECTORS.astype(np.float32), np.arange(1, len(ITEMS) + 1, dtype=np.int32), 2)
PLANS = {"all scores": None, "scan": Plan(), "packed": Plan(BUCKETS, 1)}
PLANS |= {storage: Plan(BUCKETS, 1, storage) for storage in ("float32", "bfloat16")}


CASES = [(make_parts, plan) for plan in PLANS]
CASES += [(make_cascade, "packed")]
CASES += [pytest.param(make_cascade, plan, marks=pytest.mark.slow) for plan in PLANS if plan != "packed"]


@pytest.mark.parametrize("make, plan", CASES)
def test_no_table_of_an_artefact_is_copied(make, plan, tmp_path: Path) -> None:
    write_model(replace(make(), item_plan=PLANS[plan], text_plan=PLANS[plan]), tmp_path / "1", {})
    assert copied(tmp_path / "1") == []


def save(path: Path, rows) -> Path:
    module = tf.Module()
    module.table = tf.Variable(tf.ones([5, 2]))
    whole = tf.function(lambda: {"sum": tf.reduce_sum(module.table)}, input_signature=[])
    some = tf.function(lambda i: {"rows": rows(module.table, i)}, input_signature=[tf.TensorSpec([None], tf.int32)])
    tf.saved_model.save(module, str(path), signatures={"whole": whole, "some": some})
    return path


def test_rows_that_are_taken_are_those_that_are_gathered_and_leave_the_table_in_its_place(tmp_path: Path) -> None:
    table, index = tf.Variable(np.arange(6.0).reshape(3, 2)), tf.constant([[2, 0]])
    np.testing.assert_array_equal(take(table, index), [[[4, 5], [0, 1]]])
    assert copied(save(tmp_path / "taken", take)) == []
    assert len(copied(save(tmp_path / "gathered", tf.gather))) == 1
