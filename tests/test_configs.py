"""Every experiment that ships can be read, and trains on tables of its shape."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tables
from tiny_encoder import tiny_encoder

from tfrec.config import Config, load, validate

CONFIGS = sorted((Path(__file__).resolve().parents[1] / "configs").glob("*.toml"))
NAMES = [path.name for path in CONFIGS]
# A retrieval model, a ranker, and one behind the other.
QUICK = ("ml100k.toml", "ml100k_ctr.toml", "online_retail_cascade.toml")
STEPS = [pytest.param(p, id=p.name, marks=() if p.name in QUICK else pytest.mark.slow) for p in CONFIGS]


@pytest.mark.parametrize("path", CONFIGS, ids=NAMES)
def test_it_loads_and_comes_back_from_json(path: Path) -> None:
    config = load(path)
    assert validate(json.loads(config.model_dump_json())) == config
    assert config.run.name == path.stem


@pytest.mark.parametrize("path", CONFIGS, ids=NAMES)
def test_its_header_gives_the_command(path: Path) -> None:
    head = path.read_text(encoding="utf-8").partition("\n\n")[0]
    assert all(line.startswith("#") for line in head.splitlines())
    assert f"tfrec train configs/{path.name}" in head


@pytest.mark.parametrize("path", STEPS)
def test_it_takes_a_training_step(path: Path, tmp_path: Path, cache: Path) -> None:
    from tfrec import pipeline

    config = small(load(path), tmp_path)
    run = pipeline.train(config, lambda line: None)
    history = np.genfromtxt(run.folder / "checkpoints" / "select" / "history.csv", delimiter=",", names=True)
    assert np.isfinite(history["loss"])
    assert run.model().count_params() > 0


def small(config: Config, folder: Path) -> Config:
    """The same settings on tables of a few rows, for one epoch of small batches."""
    tree = config.model_dump(mode="json")
    items, users = columns(config, "item"), columns(config, "user")
    rows = [filled("item_id", row, items, i) for i, row in enumerate(tables.items())]
    people = [filled("user_id", row, users, i) for i, row in enumerate(tables.users())]
    events = tables.baskets() if config.evaluate.holdout == "basket" else tables.interactions()
    for place, event in enumerate(events):
        event |= {"value": float(1 + 4 * (place % 2)), "split": ("train", "train", "valid", "test")[place % 4]}
    paths = {
        "interactions": tables.write(folder / "interactions.parquet", events),
        "items": tables.write(folder / "items.parquet", rows),
        "users": tables.write(folder / "users.parquet", people),
    }
    if tree["data"]["split"]["kind"] == "per_user":
        tree["data"]["split"] |= {"valid": 0.3, "test": 0.3}  # of seven events
    core = {"min_user_interactions": 1, "min_item_interactions": 1}
    tree["data"] |= {"source": "tables", **paths, **core}
    tree["run"]["folder"] = str(folder / "runs")
    tree["features"]["text"]["encoder"] = tiny_encoder(folder / "encoder", tables.WORDS)
    tree["train"] |= {"epochs": 1, "refit": False, "batch": 8, "accumulate": 1, "strategy": "none", "devices": 0}
    tree["cascade"] |= {"epochs": 1, "folds": 2}
    return validate(tree)


def filled(key: str, row: dict[str, Any], makers: dict[str, Any], number: int) -> dict[str, Any]:
    return {key: row[key], **{name: make(number) for name, make in makers.items()}}


def columns(config: Config, side: str) -> dict[str, Any]:
    """A maker of values for every column that the settings name."""
    schema = config.features.schema_
    made: dict[str, Any] = {}
    if side == "item":
        named = [*schema.text, *(name for name in config.data.roles.model_dump().values() if name)]
        made = {name: lambda i: f"fresh fruit {i % 10}" for name in named}
        made |= {name: float for name in (config.data.roles.price, config.data.roles.available) if name}
    for feature in schema.features:
        if feature.side == side:
            made[feature.name] = float if feature.kind == "numeric" else lambda i: f"value {i % 3}"
    return made
