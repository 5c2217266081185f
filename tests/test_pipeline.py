"""The road from tables to a verified export, on a shop whose right answers are known."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tables
from conftest import Shop
from saved_models import strings
from tables import block

from tfrec import cli, pipeline
from tfrec import config as settings
from tfrec.artifact import verify as verification
from tfrec.artifact.export import versions
from tfrec.artifact.verify import Failure, Report
from tfrec.config import Config
from tfrec.errors import ConfigError
from tfrec.evaluation.ranks import Holdout
from tfrec.runs import Run
from tfrec.server.servable import Servable


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
    # Four items of the block are unseen before the test item: they come before all others.
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


def test_the_metric_of_each_query_is_kept(shop: Shop) -> None:
    report = metrics(shop.run)
    with np.load(shop.run / "per_query.npz") as kept:
        assert len(kept["users"]) == report["queries"]["test"]
        assert kept["tfrec"].mean() == pytest.approx(report["test"]["ndcg@10"])
        for name, row in report["baselines"].items():
            assert kept[name].mean() == pytest.approx(row["ndcg@10"])


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
            assert {block(item.decode()) for item in found} == {block(user)}
        found = servable.run("search", {"query": strings(["steel TOOL"]), "k": np.int32(5)})["item_ids"][0]
        assert {block(item.decode()) for item in found} == {"tool"}
        found = servable.run("similar", {"item_id": strings(["fruit-3"]), "k": np.int32(5)})["item_ids"][0]
        assert {block(item.decode()) for item in found} == {"fruit"}
    finally:
        servable.close()


# Doing it again


@pytest.fixture
def unverified(monkeypatch: pytest.MonkeyPatch) -> None:
    """No witnesses: for what the shop's own export has shown them already."""
    monkeypatch.setattr(verification, "verify", lambda path, version: Report(path, version, {}, 1, ()))


@pytest.mark.usefixtures("unverified")
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


def test_an_export_that_fails_verification_is_not_published(
    shop: Shop, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    failure = Failure("ops", "op Fancy", "is absent from TensorFlow Serving 2.18")
    monkeypatch.setattr(verification, "verify", lambda path, version: Report(path, version, {}, 1, (failure,)))
    before = versions(shop.exports)
    assert cli.main(command(shop, "export", "--quiet")) == 1
    assert "op Fancy: is absent from TensorFlow Serving 2.18" in capsys.readouterr().err
    assert versions(shop.exports) == before


# Other settings on the same shop: overrides, and whether the last baskets are the question

NO_TEXT = "model.text=none"
BASKETS = ("data.interactions={folder}/baskets.parquet", "evaluate.repeats=keep", "evaluate.holdout=basket")
VARIANTS = {
    "baskets": (NO_TEXT, *BASKETS, "export.drop_history=false"),
    "csv": (NO_TEXT, "data.interactions={folder}/interactions.csv", "data.split.kind=random", "train.targets=last"),
}
SLOW = {
    "ids": (NO_TEXT, "features.columns=[]", "export.stored_history=0"),
    "users": (NO_TEXT, "model.user_id=true", "data.split.kind=temporal", "train.refit=false"),
    "lora": ("model.text=lora", "train.loss=in_batch"),
    "full": ("model.text=full", "train.loss=in_batch", "model.item_id=false", "train.learning_rate=0.003"),
    "bfloat16": ("train.precision=mixed_bfloat16", "model.history=['transformer']"),
}


def trained(shop: Shop, name: str, overrides: tuple[str, ...]) -> Config:
    """A run with these overrides, exported."""
    tables.write(shop.folder / "baskets.parquet", tables.baskets())
    tables.write(shop.folder / "interactions.csv", tables.interactions())
    tables.write(shop.folder / "few.csv", [row for row in tables.interactions() if row["user_id"].endswith("-1")])
    ready = [override.replace("{folder}", str(shop.folder)) for override in overrides]
    words = [f"run.name={name}", *ready]
    assert cli.main(["train", shop.config, "--quiet", *words]) == 0
    return settings.load(shop.config, words)


def served_blocks(config: Config, users: list[str], k: int) -> list[set[str]]:
    """The blocks of the k items that each user gets."""
    servable = Servable(Path(config.export.folder) / config.run.name / "1")
    try:
        found = servable.run("recommend", {"user_id": strings(users), "k": np.int32(k)})["item_ids"]
    finally:
        servable.close()
    return [{block(item.decode()) for item in row} for row in found]


def check(config: Config) -> None:
    report = metrics(config.run_folder)
    assert report["test"]["hr@10"] == 1.0
    users = ["fruit-user-1", "tool-user-1"]
    if config.export.stored_history:
        assert served_blocks(config, users, 3) == [{"fruit"}, {"tool"}]
    else:
        fruit, tool = served_blocks(config, users, 3)
        assert fruit == tool  # nobody is known: what is popular
    if config.evaluate.repeats == "keep":
        assert report["baselines"]["personal_frequency"]["hr@10"] == 1.0
        assert report["test"]["recall@10"] > 0.9


@pytest.mark.usefixtures("unverified")
@pytest.mark.parametrize("name", VARIANTS)
def test_it_learns_with_other_settings(shop: Shop, name: str) -> None:
    check(trained(shop, name, VARIANTS[name]))


@pytest.mark.usefixtures("unverified")
def test_two_users_and_few_items_are_enough(shop: Shop) -> None:
    data = f"data={{source='tables', interactions='{shop.folder}/few.csv'}}"
    config = trained(shop, "few", (NO_TEXT, data, "features={}", "train.epochs=1"))
    assert served_blocks(config, ["fruit-user-1", "nobody"], 20)[0] >= {"tool", ""}


@pytest.mark.slow
@pytest.mark.parametrize("name", [*VARIANTS, *SLOW])
def test_it_learns_and_verifies_with_other_settings(shop: Shop, name: str) -> None:
    check(trained(shop, f"{name}-verified", {**VARIANTS, **SLOW}[name]))


def test_a_warm_start_knows_what_the_earlier_run_knew(shop: Shop) -> None:
    words = [f"train.init_from={shop.run}", "train.epochs=0", "model.text=frozen"]
    assert cli.main(["train", shop.config, "--quiet", "--no-export", "run.name=warm", *words]) == 0
    warm, earlier = Run.open(shop.folder / "runs" / "warm").model(), Run.open(shop.run).model()
    np.testing.assert_allclose(warm.item_vectors(np.arange(22)), earlier.item_vectors(np.arange(22)), atol=1e-5)


# What a changed setting must not do in silence (goes with the changes of pipeline.py and runs.py)


@pytest.mark.parametrize("stage", ["train", "evaluate", "export"])
@pytest.mark.parametrize("change", ["run.seed=7", "evaluate.repeats=keep", "model.history_length=3"])
def test_no_stage_takes_other_settings_than_the_training_had(
    shop: Shop, capsys: pytest.CaptureFixture[str], stage: str, change: str
) -> None:
    before = times(shop.run)
    assert cli.main(command(shop, stage, change)) == 2
    error = capsys.readouterr().err
    assert error.startswith("tfrec: a run keeps the settings it was trained with; " + change.partition("=")[0])
    assert times(shop.run) == before


def test_evaluation_and_export_may_change(shop: Shop) -> None:
    assert cli.main(command(shop, "evaluate", "--quiet", "evaluate.k=[5]", "evaluate.baselines=false")) == 0
    assert set(metrics(shop.run)["test"]) >= {"hr@5"}
    assert cli.main(command(shop, "evaluate", "--quiet")) == 0


def test_tables_prepared_without_text_are_prepared_again_for_text(shop: Shop) -> None:
    words = ["run.name=late", "train.epochs=1", "train.refit=false"]
    assert cli.main(command(shop, "prepare", "--quiet", *words, NO_TEXT)) == 0
    assert cli.main(command(shop, "train", "--quiet", "--no-export", *words)) == 0


def test_a_prepare_that_dies_is_done_again(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["run.name=dies", NO_TEXT]
    assert cli.main(command(shop, "prepare", "--quiet", *words)) == 0

    def die(run: Run) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(Run, "make_features", die)
        assert cli.main(command(shop, "prepare", "--quiet", *words, "data.split.kind=random", "run.seed=9")) == 1
    say: list[str] = []
    pipeline.prepare(settings.load(shop.config, [*words, "data.split.kind=random", "run.seed=9"]), say.append)
    assert any(line.startswith("prepared ") for line in say)


# What the review of the road found


def test_preparing_again_with_other_settings_reads_the_new_tables(shop: Shop) -> None:
    words = ["run.name=again", NO_TEXT]
    first = pipeline.prepare(settings.load(shop.config, words), lambda line: None)
    second = pipeline.prepare(settings.load(shop.config, [*words, "data.split.kind=random"]), lambda line: None)
    on_disk = Run(second.config).prepared
    assert not np.array_equal(first.prepared.events["split"], on_disk.events["split"])
    np.testing.assert_array_equal(second.prepared.events["split"], on_disk.events["split"])


def test_users_without_history_are_scored_by_popularity_as_they_are_served(shop: Shop) -> None:
    words = ["run.name=nobody", NO_TEXT, "features.columns=[]", "train.epochs=1", "model.blend=[]", "train.refit=false"]
    run = pipeline.train(settings.load(shop.config, words), lambda line: None)
    nothing = np.zeros(0, np.int32), np.zeros(2, np.int64)
    asked = Holdout(np.array([0], np.int32), nothing, (np.array([1], np.int32), np.array([0, 1])), nothing)
    scores = pipeline._scorer(run, "final", asked)(np.array([0]))[0]
    counts = np.bincount(run.prepared.events["item"][run.prepared.events["split"] < 2], minlength=len(scores))
    assert list(np.argsort(-scores[1:], kind="stable")) == list(np.argsort(-counts[1:], kind="stable"))


def test_a_damaged_config_of_a_run_is_named(shop: Shop, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="must be JSON"):
        Run.open(tmp_path)


def test_a_trained_run_refuses_tables_that_changed(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["run.name=fixed", NO_TEXT, "train.epochs=1", "train.refit=false"]
    assert cli.main(command(shop, "train", "--quiet", "--no-export", *words)) == 0
    interactions = Path(settings.load(shop.config).data.interactions or "")
    before = interactions.stat()
    os.utime(interactions, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    try:
        assert cli.main(command(shop, "train", "--quiet", "--no-export", *words)) == 2
    finally:
        os.utime(interactions, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert "they have changed since" in capsys.readouterr().err
