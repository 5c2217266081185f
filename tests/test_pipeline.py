"""The road from tables to a verified export, on a shop whose right answers are known."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tables
from conftest import Shop
from saved_models import strings
from tables import block

from tfrec import cli
from tfrec import config as settings
from tfrec.config import Config
from tfrec.runs import Run
from tfrec.server.servable import Servable


def road(shop: Shop, name: str, *overrides: str) -> Config:
    return settings.load(shop.config, [f"run.name={name}", *overrides])


def command(shop: Shop, *words: str) -> list[str]:
    return [words[0], shop.config, *words[1:]]


def metrics(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


# The whole road, once


def test_train_ends_with_an_export(shop: Shop) -> None:
    assert shop.code == 0, shop.err
    assert "prepared 40 users, 22 items, 280 events" in shop.err
    assert "0.0% unknown tokens" in shop.err
    assert shop.out.splitlines()[0] == str(shop.run)
    assert shop.out.splitlines()[-1] == str(shop.exports / "1")
    assert (shop.exports / "1" / "saved_model.pb").is_file()


def test_the_run_keeps_its_resolved_settings(shop: Shop) -> None:
    assert Run.open(shop.run).config == settings.load(shop.config)


def test_the_model_knows_the_blocks(shop: Shop) -> None:
    report = metrics(shop.run)
    # 12 candidates are left in a user's half: 5 unseen ones of the block (with the test item) come before the rest.
    assert report["test"]["hr@5"] == 1.0
    assert report["valid"]["hr@5"] == 1.0
    assert report["baselines"]["popularity"]["hr@5"] < 0.6


def test_metrics_have_the_names_that_others_rely_on(shop: Shop) -> None:
    report = metrics(shop.run)
    names = {f"{name}@{k}" for name in ("hr", "ndcg", "mrr", "recall", "map") for k in (5, 10)}
    assert names <= report["valid"].keys()
    assert names <= report["test"].keys()
    assert names <= report["baselines"]["item_knn"].keys()
    assert report["queries"] == {"valid": 40, "test": 40}
    assert report["intervals"]["ndcg@10"].keys() >= {"mean", "low", "high"}
    assert report["against_best_baseline"]["metric"] == "ndcg@10"


def test_the_card_carries_data_and_metrics(shop: Shop) -> None:
    card = json.loads((shop.exports / "1" / "assets.extra" / "tfrec.json").read_text(encoding="utf-8"))
    assert card["data"]["users"] == 40
    assert card["data"]["hashes"].keys() == {"events", "users", "items"}
    assert card["metrics"]["test"] == metrics(shop.run)["test"]
    assert card["settings"]["run"]["name"] == "shop"
    assert {"recommend", "search", "similar", "rank"} <= set(card["signatures"])


def test_served_users_get_unseen_items_of_their_block(shop: Shop) -> None:
    servable = Servable(shop.exports / "1")
    try:
        users = [f"{kind}-user-{user}" for kind in tables.BLOCKS for user in range(tables.USERS)]
        answer = servable.run("recommend", {"user_id": strings(users), "k": np.int32(4)})
        for user, found in zip(users, answer["item_ids"], strict=True):
            # 7 of 10 were bought, one of them is held out as test.
            assert {block(item.decode()) for item in found} == {block(user)}
        found = servable.run("search", {"query": strings(["steel TOOL"]), "k": np.int32(5)})["item_ids"][0]
        assert {block(item.decode()) for item in found} == {"tool"}
        found = servable.run("similar", {"item_id": strings(["fruit-3"]), "k": np.int32(5)})["item_ids"][0]
        assert {block(item.decode()) for item in found} == {"fruit"}
    finally:
        servable.close()


# Doing it again


def test_a_second_train_only_exports_again(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    before = times(shop.run / "prepared") | times(shop.run / "features")
    assert cli.main(command(shop, "train")) == 0
    printed = capsys.readouterr()
    assert "epoch" not in printed.err
    assert "prepared" not in printed.err
    assert times(shop.run / "prepared") | times(shop.run / "features") == before
    version = int(Path(printed.out.splitlines()[-1]).name)
    assert version >= 2
    assert (shop.exports / str(version) / "saved_model.pb").is_file()


def test_evaluate_alone_gives_the_same_numbers(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    before = metrics(shop.run)
    assert cli.main(command(shop, "evaluate", "--quiet")) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert printed.out.splitlines()[1].startswith("tfrec ")
    for name in ("valid", "test"):
        assert metrics(shop.run)[name] == before[name]


@pytest.mark.parametrize("change", ["model.dimension=32", "train.learning_rate=0.5", "data.min_item_interactions=2"])
def test_a_trained_run_keeps_its_settings(shop: Shop, capsys: pytest.CaptureFixture[str], change: str) -> None:
    before = times(shop.run)
    assert cli.main(command(shop, "train", change)) == 2
    error = capsys.readouterr().err
    assert error.startswith("tfrec: a run keeps the settings it was trained with; " + change.partition("=")[0])
    assert error.count("\n") == 1
    assert times(shop.run) == before


@pytest.mark.parametrize("stage", ["evaluate", "export"])
def test_a_run_that_is_not_trained_cannot_go_on(shop: Shop, capsys: pytest.CaptureFixture[str], stage: str) -> None:
    assert cli.main(command(shop, stage, "run.name=untrained")) == 1
    error = capsys.readouterr().err
    assert "Run tfrec" in error
    assert error.count("\n") == 1


def test_serving_needs_an_export(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(command(shop, "serve", "run.name=untrained")) == 1
    assert capsys.readouterr().err.startswith("tfrec: serving needs an exported version")
