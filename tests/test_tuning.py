"""A search over settings on the small shop: what is tried, what is kept, what is refused."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import tables
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

import tfrec
from tfrec import cli, tuning
from tfrec import config as settings

ROOT = Path(__file__).resolve().parents[1]
TINY = ("features={}", "model.text=none", "model.dimension=24", "train.epochs=1")
GRID = "tune={sampler='grid', space={'model.dimension'={choices=[8, 24]}, 'model.heads'={choices=[1, 3]}}}"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> str:
    """Tables and settings of the small shop, nothing prepared."""
    return tables.shop(tmp_path_factory.mktemp("tuned"))


def words(config: str, name: str, *overrides: str) -> list[str]:
    return ["tune", config, f"run.name={name}", *TINY, *overrides]


def folder(config: str, name: str) -> Path:
    return Path(config).parent / "runs" / f"{name}-tune"


def trials(config: str, name: str) -> list[optuna.trial.FrozenTrial]:
    backend = optuna.storages.journal.JournalFileBackend(str(folder(config, name) / "journal.log"))
    return optuna.load_study(study_name=name, storage=optuna.storages.JournalStorage(backend)).trials


def points(config: str, name: str) -> list[dict[str, Any]]:
    return [{key: json.loads(str(value)) for key, value in t.params.items()} for t in trials(config, name)]


def logged(run: Path, column: str) -> list[float]:
    with (run / "checkpoints" / "select" / "history.csv").open(encoding="utf-8") as file:
        return [float(row[column]) for row in csv.DictReader(file)]


# A grid, once


@pytest.fixture(scope="module")
def grid(config: str) -> Mapping[str, Any]:
    """What ``tfrec tune`` printed for a grid of four, of which one cannot be built."""
    import contextlib
    import io

    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = cli.main(words(config, "grid", GRID))
    return {"code": code, "out": out.getvalue(), "err": err.getvalue()}


def test_a_grid_tries_every_combination_once(config: str, grid: Mapping[str, Any]) -> None:
    assert grid["code"] == 0, grid["err"]
    tried = [(point["model.dimension"], point["model.heads"]) for point in points(config, "grid")]
    assert tried == [(8, 1), (8, 3), (24, 1), (24, 3)]


def test_each_trial_is_a_run_with_its_settings(config: str, grid: Mapping[str, Any]) -> None:
    for trial, (dimension, heads) in {0: (8, 1), 2: (24, 1), 3: (24, 3)}.items():
        run = tfrec.Run.open(folder(config, "grid") / f"trial-{trial}")
        assert (run.config.model.dimension, run.config.model.heads) == (dimension, heads)
        assert run.model("selected").item_vectors(np.array([1])).shape == (1, dimension)
        assert not (run.folder / "checkpoints" / "refit").exists()
        assert trials(config, "grid")[trial].value == max(logged(run.folder, "val_ndcg@10"))


def test_prepared_tables_are_shared(config: str, grid: Mapping[str, Any]) -> None:
    inodes = {(folder(config, "grid") / run / "prepared" / "events.parquet").stat().st_ino for run in
              ("tables", "trial-0", "trial-2", "trial-3")}  # fmt: skip
    assert len(inodes) == 1
    assert grid["err"].count("prepared 40 users") == 1


def test_a_combination_that_cannot_be_built_is_told_and_passed_over(config: str, grid: Mapping[str, Any]) -> None:
    failed = trials(config, "grid")[1]
    assert failed.state == TrialState.FAIL
    assert failed.user_attrs["reason"] == "model: model.heads must divide model.dimension, 8"
    assert "trial 1: failed: model: model.heads must divide model.dimension, 8\n" in grid["err"]


def test_the_best_is_printed_and_trains(config: str, grid: Mapping[str, Any]) -> None:
    best = max((t for t in trials(config, "grid") if t.value is not None), key=lambda t: t.value)
    path = folder(config, "grid") / "best.toml"
    assert grid["out"] == f"{path} ndcg@10 {best.value:.6f}\n"
    dimension, heads = (json.loads(best.params[name]) for name in ("model.dimension", "model.heads"))
    expected = [*TINY, "run.name=grid-best", f"model.dimension={dimension}", f"model.heads={heads}"]
    assert settings.load(path) == settings.load(config, expected)
    assert cli.main(["train", str(path), "--quiet", "--no-export", "train.refit=false"]) == 0


def test_a_search_that_is_done_trains_nothing_again(
    config: str, grid: Mapping[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    before = trials(config, "grid")
    assert cli.main(words(config, "grid", GRID)) == 0
    printed = capsys.readouterr()
    assert printed.out == grid["out"]
    assert printed.err == ""
    assert trials(config, "grid") == before


def test_a_search_keeps_the_settings_it_began_with(
    config: str, grid: Mapping[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words(config, "grid", GRID, "train.batch=8")) == 2
    error = capsys.readouterr().err
    assert error.startswith("tfrec: a search keeps the settings it began with; train.batch was 16; got 8.")


# Pruning and Bayesian trials


def test_a_trial_below_the_median_is_pruned(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    space = "space={'train.learning_rate'={choices=[0.03, 1e-9]}}"
    assert cli.main(words(config, "prune", f"tune={{sampler='grid', prune=1, {space}}}", "train.epochs=3")) == 0
    good, bad = trials(config, "prune")
    assert (good.state, bad.state) == (TrialState.COMPLETE, TrialState.PRUNED)
    assert len(good.intermediate_values) == 3
    assert len(bad.intermediate_values) < 3
    assert bad.last_step is not None
    assert bad.intermediate_values[bad.last_step] < good.intermediate_values[bad.last_step]
    assert f"trial 1: pruned after epoch {bad.last_step + 1}\n" in capsys.readouterr().err
    assert settings.load(folder(config, "prune") / "best.toml").train.learning_rate == 0.03


def test_another_metric_takes_the_place_of_the_monitored_one(config: str) -> None:
    space = "space={'train.batch'={choices=[8]}}"
    assert cli.main(words(config, "metric", "--quiet", f"tune={{sampler='grid', metric='hr@5', {space}}}")) == 0
    assert trials(config, "metric")[0].value == logged(folder(config, "metric") / "trial-0", "val_hr@5")[0]
    assert settings.load(folder(config, "metric") / "best.toml").train.monitor == "hr@5"


@pytest.mark.slow
def test_a_killed_search_continues_and_is_shared(config: str) -> None:
    space = "space={'train.learning_rate'={low=1e-3, high=1e-1, log=true}, 'model.layers'={low=1, high=3}}"
    command = words(config, "shared", f"tune={{trials=3, prune=0, {space}}}", "train.epochs=4")
    killed = started(command)
    assert killed.stderr is not None
    for line in killed.stderr:
        if line.startswith("trial 0: epoch 2/4"):
            break
    killed.kill()
    killed.communicate()
    assert [t.state for t in trials(config, "shared")] == [TrialState.RUNNING]

    both = [started(command), started(command)]
    printed = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], printed
    said = printed[0][1] + printed[1][1]
    ended = trials(config, "shared")
    assert [t.state for t in ended] == [TrialState.COMPLETE] * 3
    assert [len(t.intermediate_values) for t in ended] == [4, 4, 4]
    assert said.count("trial 0: continued\n") == 1
    assert "trial 0: epoch 1/4" not in said
    assert all(len(re.findall(f"^trial {i}: epoch 4/4", said, re.MULTILINE)) == 1 for i in range(3))
    assert printed[0][0] == printed[1][0]
    rates = {t.params["train.learning_rate"] for t in ended}
    assert len(rates) == 3
    assert all(1e-3 <= rate <= 1e-1 for rate in rates)


def started(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tfrec", *command], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


# The space


def test_ranges_have_the_type_of_their_setting(config: str) -> None:
    space = {
        "model.dimension": {"low": 8, "high": 64, "log": True},
        "train.learning_rate": {"low": 1e-4, "high": 1, "log": True},
        "train": {"weight_decay": {"low": 0, "high": 1}, "clip_norm": {"choices": [0.5, 1]}},
        "model": {"history": {"choices": [["mean"], ["decay", "transformer"]]}},
    }
    tree = settings.load(config, TINY).model_dump(mode="json") | {"tune": {"space": space}}
    assert tuning.distributions(settings.validate(tree)) == {
        "model.dimension": IntDistribution(8, 64, log=True),
        "train.learning_rate": FloatDistribution(1e-4, 1.0, log=True),
        "train.weight_decay": FloatDistribution(0.0, 1.0),
        "train.clip_norm": CategoricalDistribution(["0.5", "1"]),
        "model.history": CategoricalDistribution(['["mean"]', '["decay", "transformer"]']),
    }


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sampler=grid", "needs choices; model.dropout has a range"),
        ("sampler=random", "tune.sampler: Input should be 'bayesian' or 'grid'; got 'random'"),
        ("metric=auc", "tune.metric: String should match pattern .*; got 'auc'"),
        ("trials=0", "tune.trials: Input should be greater than or equal to 1; got 0"),
        ("trails=3", "tune.trails is not a setting; the nearest is trials"),
        ("space={}", "a search needs an entry in tune.space"),
        (
            "space={'train.learnin_rate'={low=0.1, high=1}}",
            "train.learnin_rate is not a setting; the nearest is learning",
        ),
        ("space={'trian.epochs'={choices=[1]}}", "trian is not a setting; the nearest is train"),
        ("space={'train.epochs.low'={choices=[1]}}", "tune.space must name settings; epochs has none below it"),
        ("space={'train.dropout'={choices=[1]}}", "train.dropout is not a setting"),
        (
            "space={'model.dropout'={low=0.5, high=0.5}}",
            "tune.space.model.dropout: low must be below high; got 0.5 and 0.5",
        ),
        (
            "space={'model.dropout'={low=0.6, high=0.5}}",
            "tune.space.model.dropout: low must be below high; got 0.6 and 0.5",
        ),
        ("space={'model.dropout'={low=0.5}}", "tune.space.model.dropout: a range must have low and high"),
        ("space={'model.dropout'={}}", "tune.space.model.dropout: an entry must hold choices, or low and high"),
        (
            "space={'model.dropout'={low=0.1, high=0.2, choices=[0.1]}}",
            "model.dropout: an entry must hold choices, or low",
        ),
        (
            "space={'model.dropout'={low=0, high=0.2, log=true}}",
            "dropout: a logarithmic range must begin above 0; got 0",
        ),
        ("space={'model.dropout'={low=0.1, high=0.2, lgo=true}}", "tune.space.model.dropout.lgo is not a setting"),
        ("space={'model.dropout'={low=0.1, high=1.0}}", "model.dropout: Input should be less than 1; got 1.0"),
        ("space={'model.dropout'={low=nan, high=1.0}}", "tune.space.model.dropout.low.*finite number"),
        ("space={'train.epochs'={low=1, high=2.5}}", "train.epochs: Input should be a valid integer.*; got 2.5"),
        ("space={'train.epochs'={choices=[1, 'two']}}", "train.epochs: Input should be a valid integer; got 'two'"),
        ("space={'train.optimizer'={low=1, high=2}}", "train.optimizer: Input should be 'adamw'"),
        ("space={'train.refit'={choices=[true]}}", "settings that change a validation metric .*; got 'train.refit'"),
        ("space={'run.name'={choices=['x']}}", "settings that change a validation metric .*; got 'run.name'"),
        ("space={'serve.port'={choices=[1]}}", "settings that change a validation metric .*; got 'serve.port'"),
        ("space={'train'={choices=[{epochs=1}]}}", "tune.space must hold settings, not sections; got 'train'"),
    ],
)
def test_a_search_that_makes_no_sense_is_refused(
    config: str, capsys: pytest.CaptureFixture[str], override: str, message: str
) -> None:
    space = "tune.space={'model.dropout'={low=0.1, high=0.5}}"
    assert cli.main(words(config, "refused", space, f"tune.{override}")) == 2
    refused(config, capsys, message)


def refused(config: str, capsys: pytest.CaptureFixture[str], message: str) -> None:
    """One sentence, and nothing was begun."""
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("tfrec: ")
    assert printed.err.count("\n") == 1
    assert re.search(message, printed.err), printed.err
    assert not folder(config, "refused").exists()


def test_a_search_without_a_trained_trial_tells_why(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    space = "space={'train.epochs'={choices=[0]}}"
    assert cli.main(words(config, "none", "--quiet", f"tune={{sampler='grid', {space}}}")) == 1
    error = capsys.readouterr().err
    assert error.startswith("tfrec: a search must train a trial to its end; a trial must train an epoch; got 0.")
    assert not (folder(config, "none") / "best.toml").exists()


def test_no_trial_begins_after_the_time_given(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words(config, "late", GRID, "--quiet", "tune.seconds=1e-9")) == 1
    assert "none was trained in the time given" in capsys.readouterr().err
    assert trials(config, "late") == []


def test_without_optuna_one_sentence_says_how_to_get_it(
    config: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.delitem(sys.modules, "tfrec.tuning")
    monkeypatch.delattr(tfrec, "tuning")
    assert cli.main(words(config, "refused", GRID)) == 2
    refused(config, capsys, r"tuning needs Optuna, which is not installed. pip install 'tfrec\[tune\]'")
