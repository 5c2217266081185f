"""Shared contract tests: what every ranking model and every head must do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfrec.models.ranking.body import Sizes
from tfrec.models.ranking.fields import Field
from tfrec.models.ranking.ranker import Ranker
from tfrec.ranker_config import Ranker as Settings
from tfrec.ranker_config import Task
from tfrec.training.ranking import objective

USERS, ITEMS, LENGTH, KINDS, AGES = 7, 9, 5, 3, 4
FIELDS = (
    Field("user", "user", "index", USERS + 1),
    Field("item", "item", "index", ITEMS + 1),
    Field("tags", "item", "index", 5),
    Field("price", "item", "number", 1),
    Field("image", "item", "vector", 3),
    Field("age", "user", "number", 1),
    Field("hour", "context", "index", 4),
    Field("wait", "context", "number", 1),
)
SIZES = Sizes(FIELDS, ("item", "tags"), KINDS, LENGTH, ages=AGES)
SMALL: dict[str, Any] = {"embedding": 4, "hidden": (8, 6), "dropout": 0.3, "attention": (6,), "history": True}
BINARY, MONEY = Task(name="like", positive=4.0), Task(name="money", column="paid", kind="value")
STAY = Task(name="stay", column="weeks", kind="survival", observed="left", periods=4, horizon=2)


def make(kind: str, seed: int = 0, **settings: Any) -> Ranker:
    """A built ranker whose tables hold arbitrary features."""
    keras.utils.set_random_seed(seed)
    random = np.random.default_rng(0)
    columns = {
        "tags": random.integers(0, 5, (ITEMS + 1, 2)).astype(np.int32),
        "price": random.normal(size=ITEMS + 1).astype(np.float32),
        "image": random.normal(size=(ITEMS + 1, 3)).astype(np.float32),
    }
    ages = {"age": random.normal(size=USERS + 1).astype(np.float32)}
    shapes = [{name: (c.shape, c.dtype.name) for name, c in side.items()} for side in (ages, columns)]
    model = Ranker(kind, SIZES, Settings(**{**SMALL, **settings}), *shapes)
    model.build()
    model.user_table.fill(ages)
    model.item_table.fill(columns)
    return model


def batch(rows: int, candidates: int = 0, seed: int = 1) -> dict[str, np.ndarray]:
    """Inputs of a ranker; the first row has no history."""
    random = np.random.default_rng(seed)
    history = random.integers(0, ITEMS + 1, (rows, LENGTH)).astype(np.int32)
    history[:1] = 0
    shape = (rows, candidates) if candidates else (rows,)
    return {
        "user": random.integers(0, USERS + 1, rows).astype(np.int32),
        "item": random.integers(0, ITEMS + 1, shape).astype(np.int32),
        "history": history,
        "history_event": random.integers(0, KINDS, (rows, LENGTH)).astype(np.int32),
        "history_age": random.integers(0, AGES, (rows, LENGTH)).astype(np.int32),
        "hour": random.integers(0, 4, (rows, 1)).astype(np.int32),
        "wait": random.normal(size=rows).astype(np.float32),
    }


def labels(model: Ranker, rows: int) -> np.ndarray:
    random = np.random.default_rng(2)
    made = {
        "binary": lambda: random.integers(0, 2, rows),
        "number": lambda: random.normal(size=rows),
        "value": lambda: random.integers(0, 2, rows) * random.lognormal(size=rows),
        "survival": lambda: random.integers(0, 4, rows) + random.integers(0, 2, rows) / 2,
    }
    return np.stack([made[task.kind]() for task in model.settings.tasks], axis=1).astype(np.float32)


def ranker_contract(folder: Path, kind: str, **settings: Any) -> None:
    """All that every ranker promises, whatever its body and head."""
    model = make(kind, **settings)
    gives_one_logit_a_row(model)
    scores_candidates_as_rows(model)
    repeats_itself(model, make(kind, **settings))
    every_variable_moves(make(kind, seed=3, **settings))
    comes_back_from_its_file(model, folder)
    stays_finite_and_ignores_padding(model)


def gives_one_logit_a_row(model: Ranker) -> None:
    for rows in (3, 0):
        logits = model(batch(rows))
        assert list(logits) == [task.name for task in model.settings.tasks]
        for task in model.settings.tasks:
            several = {"value": (3,), "survival": (task.periods,)}
            members = (model.settings.members,) if model.settings.members > 1 else ()
            assert logits[task.name].shape == (rows, *several.get(task.kind, ()), *members)
            assert logits[task.name].dtype == tf.float32
        assert all(value.shape == (rows,) for value in model.predictions(logits).values())


def scores_candidates_as_rows(model: Ranker) -> None:
    many = batch(3, candidates=3)
    whole = model(many)
    for place in range(3):
        single = model({**many, "item": many["item"][:, place]})
        for name, value in whole.items():
            np.testing.assert_allclose(value[:, place], single[name], rtol=1e-5, atol=1e-6)


def repeats_itself(model: Ranker, twin: Ranker) -> None:
    inputs = batch(4)
    for name, value in model(inputs).items():
        np.testing.assert_array_equal(value, model(inputs)[name])
        np.testing.assert_array_equal(value, twin(inputs)[name])


def every_variable_moves(model: Ranker) -> None:
    """In a few steps: what starts at zero behind another zero moves in the second."""
    rows = 64
    inputs = {**batch(rows), "label": labels(model, rows), "weight": np.ones(rows, np.float32)}
    inputs = {name: tf.constant(value) for name, value in inputs.items()}
    before = {v.path: v.numpy() for v in model.trainable_variables}
    optimizer = keras.optimizers.SGD(0.1, clipnorm=1.0)
    loss = objective(model)
    for _ in range(3):  # an odd number: clipped steps of one size may swing back
        with tf.GradientTape() as tape:
            total, weight = loss(inputs)
            mean = total / weight
        variables = model.trainable_variables
        gradients = tape.gradient(mean, [v.value for v in variables])
        optimizer.apply([tf.convert_to_tensor(g) for g in gradients], variables)
    still = [v.path for v in model.trainable_variables if np.array_equal(v.numpy(), before[v.path])]
    assert not still, f"these do not learn: {still}"


def comes_back_from_its_file(model: Ranker, folder: Path) -> None:
    path = folder / "model.keras"
    model.save(path)
    again = keras.saving.load_model(path)
    inputs = batch(4, candidates=2)
    for name, value in model(inputs).items():
        np.testing.assert_array_equal(value, again(inputs)[name])


def stays_finite_and_ignores_padding(model: Ranker) -> None:
    inputs = batch(4)
    assert all(np.isfinite(value).all() for value in model(inputs).values())
    there = inputs["history"] > 0
    other = {**inputs, "history_event": np.where(there, inputs["history_event"], KINDS - 1)}
    other["history_age"] = np.where(there, inputs["history_age"], AGES - 1)
    for name, value in model(inputs).items():
        np.testing.assert_allclose(value, model(other)[name], rtol=1e-5, atol=1e-6)
