"""Data at the edge of what can be learned from: trained, or refused in one sentence; never a NaN."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tables
from tiny_encoder import tiny_encoder

from tfrec import pipeline
from tfrec.config import Config, validate
from tfrec.errors import TfrecError, TrainingError
from tfrec.runs import Run
from tfrec.training import checkpoints

NO_EVENTS = "train, valid and test must each have events; got .* Choose another data.split"
Rows = list[dict[str, Any]]
LOSSES: dict[str, dict[str, Any]] = {
    "softmax": {},
    "in_batch": {"loss": "in_batch"},
    "hard": {"loss": "in_batch", "hard_negatives": 4},
    "sampled_softmax": {"loss": "sampled_softmax", "negatives": 4, "negative_sampling": "popularity"},
    "mixed": {"loss": "sampled_softmax", "negatives": 4, "negative_sampling": "mixed"},
    "gbce": {"loss": "gbce", "negatives": 4},
}
QUICK = ("softmax", "mixed")
every_loss = pytest.mark.parametrize(
    "loss", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in LOSSES]
)


def settings(folder: Path, interactions: Rows, items: Rows | None = None, **changes: dict[str, Any]) -> Config:
    """Tables written, and a model of them that trains in a second."""
    data = {"source": "tables", "interactions": tables.write(folder / "interactions.parquet", interactions)}
    if items:
        data["items"] = tables.write(folder / "items.parquet", items)
    tree: dict[str, Any] = {
        "run": {"name": "edge", "folder": str(folder / "runs")},
        "data": data,
        "features": {},
        "model": {"dimension": 8, "text": "none", "history": ["decay"], "history_length": 4, "blend": []},
        "train": {"epochs": 2, "batch": 8, "warmup_steps": 0, "refit": False},
        "evaluate": {"baselines": False, "bootstrap": 0},
    }
    for section, values in changes.items():
        tree[section] = {**tree[section], **values}
    return validate(tree)


def quiet(line: str) -> None:
    """Progress that nobody reads."""


def history(config: Config) -> list[dict[str, float]]:
    with (config.run_folder / "checkpoints" / "select" / "history.csv").open() as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def assert_trained(config: Config) -> None:
    """Every number of the training, the weights, the item vectors and the evaluation is finite."""
    run = pipeline.train(config, quiet)
    logs = history(config)
    assert len(logs) == config.train.epochs
    assert all(math.isfinite(value) for row in logs for value in row.values()), logs
    model = run.model()
    assert all(np.isfinite(v.numpy()).all() for v in model.trainable_variables)
    assert np.isfinite(model.item_vectors(np.arange(model.sizes["items"] + 1))).all()
    report = pipeline.evaluate(config, quiet)
    assert all(math.isfinite(value) for part in ("valid", "test") for value in report[part].values())


def assert_refused(config: Config, sentence: str) -> None:
    with pytest.raises(TfrecError, match=sentence) as caught:
        pipeline.train(config, quiet)
    assert "\n" not in str(caught.value)


def events(users: int, items: int, each: int) -> Rows:
    """Users go round the items in turn, one event a second."""
    return [
        {"user_id": f"u{user}", "item_id": f"i{(user + turn) % items}", "timestamp": turn}
        for user in range(users)
        for turn in range(each)
    ]


def test_users_with_one_event_beside_others_are_trained(tmp_path: Path) -> None:
    lone = [{"user_id": f"lone{i}", "item_id": f"i{i}", "timestamp": 0} for i in range(5)]
    assert_trained(settings(tmp_path, events(6, 7, 5) + lone))


@pytest.mark.parametrize("user_id", [False, True])
def test_nothing_but_users_with_one_event_is_refused(tmp_path: Path, user_id: bool) -> None:
    config = settings(tmp_path, events(9, 5, 1), model={"dimension": 8, "text": "none", "user_id": user_id})
    assert_refused(config, NO_EVENTS)


@every_loss
@pytest.mark.parametrize("items", [1, 2])
def test_a_catalogue_of_one_or_two_items(tmp_path: Path, items: int, loss: str) -> None:
    repeats = {"repeats": "keep", "baselines": False, "bootstrap": 0}
    config = settings(tmp_path, events(6, items, 5), train={"epochs": 1, **LOSSES[loss]}, evaluate=repeats)
    if loss == "gbce":
        assert_refused(config, f"gbce must draw .* from a catalogue of {items}; got 4.*Set train.negatives")
    else:
        assert_trained(config)


@pytest.mark.slow
def test_two_items_and_one_gbce_negative_are_trained(tmp_path: Path) -> None:
    gbce = {"epochs": 1, "loss": "gbce", "negatives": 1}
    assert_trained(settings(tmp_path, events(6, 2, 5), train=gbce, evaluate={"repeats": "keep"}))


def test_masked_repeats_of_one_item_leave_nothing_to_train(tmp_path: Path) -> None:
    assert_refused(settings(tmp_path, events(6, 1, 5)), NO_EVENTS)


@pytest.mark.parametrize(
    ("titles", "item_id"),
    [(["red shoe", None, "  "], True), ([None], False)],
    ids=["some", "nothing else"],
)
def test_items_without_text(tmp_path: Path, cache: Path, titles: list[str | None], item_id: bool) -> None:
    tiny_encoder(tmp_path / "encoder", ["red", "shoe"])
    rows = [{"item_id": f"i{i}", "title": titles[i % len(titles)]} for i in range(7)]
    text = {"text": {"columns": ["title"], "encoder": str(tmp_path / "encoder"), "tokens": 8}}
    model = {"text": "frozen", "item_id": item_id}
    assert_trained(settings(tmp_path, events(6, 7, 5), rows, features=text, model=model))


@pytest.mark.parametrize("kind", ["leave_last_out", pytest.param("random", marks=pytest.mark.slow)])
def test_equal_timestamps_are_trained(tmp_path: Path, kind: str) -> None:
    rows = [{**row, "timestamp": 5} for row in events(8, 9, 6)]
    data = {"split": {"kind": kind, "valid": 0.2, "test": 0.2}}
    assert_trained(settings(tmp_path, rows, data={"source": "tables", **data, "interactions": _path(tmp_path)}))


def test_equal_timestamps_cannot_be_cut_in_time(tmp_path: Path) -> None:
    rows = [{**row, "timestamp": 5} for row in events(8, 9, 6)]
    data = {"source": "tables", "interactions": _path(tmp_path), "split": {"kind": "temporal"}}
    assert_refused(settings(tmp_path, rows, data=data), NO_EVENTS)


def _path(folder: Path) -> str:
    return str(folder / "interactions.parquet")


@pytest.mark.parametrize("repeats", ["mask", pytest.param("keep", marks=pytest.mark.slow)])
@every_loss
def test_duplicated_interactions(tmp_path: Path, loss: str, repeats: str) -> None:
    rows = [row for row in events(6, 7, 5) for _ in range(3)]
    evaluate = {"repeats": repeats, "baselines": False, "bootstrap": 0}
    assert_trained(settings(tmp_path, rows, train={"epochs": 1, **LOSSES[loss]}, evaluate=evaluate))


@every_loss
def test_a_batch_larger_than_the_data(tmp_path: Path, loss: str) -> None:
    assert_trained(settings(tmp_path, events(6, 7, 5), train={"epochs": 1, "batch": 512, **LOSSES[loss]}))


PRICE = {"columns": [{"name": "price", "side": "item", "kind": "numeric"}]}


def priced(*unsold: float) -> Rows:
    """Ordinary prices, and those of items which nobody has bought."""
    rows = [{"item_id": f"i{i}", "price": float(i)} for i in range(7)]
    return rows + [{"item_id": f"unsold{i}", "price": price} for i, price in enumerate(unsold)]


def test_numbers_beyond_float32_count_as_missing_and_far_ones_are_trained(tmp_path: Path) -> None:
    assert_trained(settings(tmp_path, events(6, 7, 5), priced(-math.inf, math.nan, 1e300, -1e12), features=PRICE))


@pytest.mark.parametrize("loss", ["softmax", "in_batch"])
def test_a_number_that_overflows_names_its_feature_and_range(tmp_path: Path, loss: str) -> None:
    """Also where no loss reads the item: its vector would be NaN in the artefact."""
    wild = {"epochs": 1, "learning_rate": 5.0, **LOSSES[loss]}
    config = settings(tmp_path, events(6, 7, 5), priced(-3e38), features=PRICE, train=wild)
    assert_refused(config, r'epoch 1.* finite.*"price" of items: -1\.5e\+38 to 1\.5 in the standardised tensors')
    assert not Run(config).model_path("final").exists()


def test_a_loss_that_explodes_names_its_step_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    explosive = {"optimizer": "sgd", "learning_rate": 1e38, "checkpoint_steps": 1, "batch": 2, "warmup_steps": 0}
    config = settings(tmp_path, events(6, 7, 5), priced(0.0), features=PRICE, train=explosive)
    with pytest.raises(TrainingError, match=r"not at epoch 1, step \d\. The widest .*\"price\"") as caught:
        pipeline.train(config, quiet)
    step = int(str(caught.value).partition("step ")[2][0])
    kept = checkpoints.read(config.run_folder / "checkpoints" / "select")
    if step == 1:
        assert kept is None
        return
    assert kept is not None
    assert kept.progress["step"] == step - 1
    assert all(np.isfinite(array).all() for array in kept.arrays.values())
