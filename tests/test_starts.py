"""Where outputs start: the constant that fits the labels, by hand and by search."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tensorflow as tf
from contracts import MONEY, STAY, batch, make

from tfrec.models.ranking_losses import ziln_mean
from tfrec.ranker_config import Task
from tfrec.training.ranking import task_loss
from tfrec.training.starts import start

NUMBER, NAN = Task(name="stars", kind="number"), math.nan


def labels(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def test_a_number_starts_at_its_mean_and_a_probability_at_a_half() -> None:
    assert start(NUMBER, labels(1, 4, NAN)) == pytest.approx([2.5])
    assert start(NUMBER, labels(NAN)) is None
    assert start(Task(), labels(0, 1)) is None


def test_money_starts_at_its_share_and_its_logarithms() -> None:
    logit, mean, scale = start(MONEY, labels(0, 0, 0, NAN, math.e, math.e**3, math.e, math.e**3)[1:])
    assert (logit, mean) == pytest.approx((math.log(4 / 2), 2))
    assert math.log1p(math.exp(scale)) == pytest.approx(1)
    assert start(MONEY, labels(0, 0)) is None
    one = start(MONEY, labels(0, 5.0))
    assert one is not None and np.isfinite(one).all()
    assert float(ziln_mean(tf.constant(start(MONEY, labels(5.0, 5.0))))) == pytest.approx(5, rel=0.01)


def test_hazards_start_at_their_shares_of_who_is_at_risk() -> None:
    spells = labels(0, 0, 0.5, 1, 1.5, 3, 4.5, NAN)  # periods 0 to 3
    # At risk: all six but who was lost in period 0; then four, of whom one is lost in period 1; then two, and two.
    shares = [(2 + 0.5) / 7, (1 + 0.5) / 4, 0.5 / 3, (1 + 0.5) / 3]
    assert start(STAY, spells) == pytest.approx([math.log(p / (1 - p)) for p in shares])


@pytest.mark.parametrize("task", [MONEY, STAY, NUMBER])
def test_no_constant_near_by_fits_better(task: Task) -> None:
    random = np.random.default_rng(0)
    made = {
        "value": random.integers(0, 2, 4000) * random.lognormal(2, 1, 4000),
        "survival": random.integers(0, 5, 4000) + random.integers(0, 2, 4000) / 2,
        "number": random.normal(3, 1, 4000),
    }[task.kind].astype(np.float32)
    best = start(task, made)
    assert best is not None and best.shape == (task.outputs,)

    def loss(outputs: np.ndarray) -> float:
        rows = np.tile(outputs if task.outputs > 1 else outputs[0], (len(made), *[1] * (task.outputs > 1)))
        return float(np.mean(task_loss(task, tf.constant(rows, tf.float32), tf.constant(made))))

    for step in (*np.eye(task.outputs) * 0.1, *np.eye(task.outputs) * -0.1):
        assert loss(best) < loss(best + step)


@pytest.mark.parametrize("head", ["shared", "mmoe", "ple"])
def test_a_start_reaches_the_outputs_of_its_task_alone(head: str) -> None:
    model = make("wide_deep", tasks=(STAY, MONEY), head=head, crosses=())
    before = model(batch(2))
    model.start_at({"money": np.array([1.0, 2.0, 3.0])})
    after = model(batch(2))
    np.testing.assert_array_equal(after["stay"], before["stay"])
    np.testing.assert_array_equal(after["money"], [[1, 2, 3]] * 2)  # whatever the features


def test_a_linear_model_starts_too() -> None:
    model = make("fm", tasks=(NUMBER,), monitor="rmse")
    model.start_at({"stars": np.array([2.5])})
    assert float(model.body.linear.bias) == 2.5
