"""The very training step of every ranker compiles with XLA in static shapes, and ends with the weights of the plain
step: what a TPU asks for, as far as a machine without one can tell. Two towers: test_objectives.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import contracts
import numpy as np
import pytest
import tensorflow as tf
import world
from contracts import BINARY, MONEY

from tfrec.models.ranking.ranker import BODIES
from tfrec.ranker_config import Task
from tfrec.training.loop import Trainer
from tfrec.training.optimizers import make_optimizer
from tfrec.training.ranking import objective

ROWS = 6
TWO = (Task(name="click", column="click"), Task(name="buy", column="buy"))
MANY = (BINARY, MONEY, Task(name="stars", kind="number"))
FOCAL = Task(name="like", positive=4.0, loss="focal")
CASES: dict[str, dict[str, Any]] = {kind: {"kind": kind, "tasks": (BINARY,)} for kind in BODIES}
CASES |= {
    "low-rank dcn": {"kind": "dcn", "tasks": (BINARY,), "cross_rank": 2, "cross_experts": 3},
    "crosses": {"kind": "wide_deep", "tasks": (FOCAL,), "crosses": (("user", "tags"),), "cross_rows": 11},
    "shared head": {"kind": "wide_deep", "tasks": MANY, "head": "shared"},
    "mmoe head": {"kind": "wide_deep", "tasks": MANY, "head": "mmoe", "tower": (5,), "experts": 2, "expert_units": 4},
    "ple head": {"kind": "wide_deep", "tasks": MANY, "head": "ple", "tower": (5,), "experts": 2, "expert_units": 4},
    "esmm head": {"kind": "wide_deep", "tasks": TWO, "head": "esmm", "tower": (5,)},
    "uncertainty": {"kind": "deepfm", "tasks": TWO, "weighting": "uncertainty"},
    "bpr": {"kind": "din", "tasks": (Task(name="like", loss="bpr"),), "negatives": 2},
    "listwise": {"kind": "transformer", "tasks": (Task(name="like", loss="listwise"),), "negatives": 2},
}
QUICK = ["dcn"]
OPTIMIZERS = ["lazy_adam", "sparse_adagrad", "rowwise_adagrad", "adamw"]
# Their losses do not see what shifts all candidates alike, so that rounding is the gradient of some biases: SGD leaves
# it as small as it is, the others make a whole step of it.
SHIFTED = ["bpr", "listwise"]


class Two:
    """Two batches of a ranker's rows, or of positives with their negatives."""

    steps = 2

    def __init__(self, model: Any, negatives: int):
        candidates = negatives + 1 if negatives else 0
        parts = [contracts.batch(ROWS, candidates, seed=seed) for seed in (1, 2)]
        self._columns = {name: np.stack([part[name] for part in parts]) for name in parts[0]}
        label = contracts.labels(model, ROWS)
        if negatives:
            label = np.zeros((ROWS, candidates, 1), np.float32)
            label[:, 0] = 1
        self._columns |= {"label": np.stack([label, label]), "weight": np.ones((2, ROWS), np.float32)}

    def dataset(self, epoch: int, first_step: int = 0) -> tf.data.Dataset:
        return tf.data.Dataset.from_tensor_slices(self._columns).skip(first_step)


def train(folder: Path, case: str, optimizer: str, jit: bool) -> tuple[Any, list[dict[str, float]]]:
    model = contracts.make(**{"dropout": 0.0, **CASES[case]})
    model.compile(make_optimizer(world.settings(optimizer=optimizer).train))
    model.optimizer.build(model.trainable_variables)
    batches = Two(model, CASES[case].get("negatives", 0))
    trainer = Trainer(
        model, objective(model), batches, tf.distribute.get_strategy(), folder / str(jit), clip_norm=1.0, jit=jit
    )
    history = trainer.fit(2)
    assert trainer._update.function_spec.jit_compile == (jit or None)
    return model, history


def assert_compiled_equals_plain(folder: Path, case: str, optimizer: str) -> None:
    (plain, losses), (compiled, their_losses) = (train(folder, case, optimizer, jit) for jit in (False, True))
    np.testing.assert_allclose([log["loss"] for log in losses], [log["loss"] for log in their_losses], rtol=1e-5)
    before = contracts.make(**{"dropout": 0.0, **CASES[case]})
    assert world.largest_difference(before, compiled) > 1e-3
    assert world.largest_difference(plain, compiled) < 1e-5


@pytest.mark.parametrize("case", [*(pytest.param(c, marks=() if c in QUICK else pytest.mark.slow) for c in CASES)])
def test_the_step_of_a_ranker_compiles_with_equal_weights(tmp_path: Path, case: str) -> None:
    optimizer = "sgd" if case in SHIFTED else OPTIMIZERS[list(CASES).index(case) % len(OPTIMIZERS)]
    assert_compiled_equals_plain(tmp_path, case, optimizer)
