"""The ranker's road on a shop whose answers are known: whoever is of a block likes that block's items."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tables
import tensorflow as tf
from conftest import Shop
from local_cluster import HERE, finish, start
from saved_models import strings

from tfrec import cli, pipeline, ranking
from tfrec.config import Config, validate
from tfrec.data.preprocess import age_rows
from tfrec.errors import ConfigError, DataError
from tfrec.runs import Run
from tfrec.server.servable import Servable

ROWS = 16  # of each user
STAY = {"name": "stay", "column": "weeks", "kind": "survival", "observed": "left", "periods": 4, "horizon": 2}


def impressions(seed: int = 0) -> list[dict[str, Any]]:
    """Ratings of items of both blocks: 5 of the own one, 1 of the other; ``paid`` is money, mostly 0."""
    random = np.random.default_rng(seed)
    items = [f"{kind}-{item}" for kind in tables.BLOCKS for item in range(tables.ITEMS)]
    rows = []
    for kind in tables.BLOCKS:
        for user in range(tables.USERS):
            for time, place in enumerate(random.permutation(len(items))[:ROWS]):
                own = tables.block(items[place]) == kind
                rows.append(
                    {
                        "user_id": f"{kind}-user-{user}",
                        "item_id": items[place],
                        "timestamp": 1000 + time,
                        "value": 5.0 if own else 1.0,
                        "bought": float(own and place % 2),
                        "paid": float(random.lognormal()) if own else 0.0,
                        "place": f"{time % 3}",
                        "weeks": float(3 * (tables.block(items[place]) == "tool") + random.integers(2)),
                        "left": float(place % 3 > 0),
                    }
                )
    return rows


def configured(folder: Path, rows: list[dict[str, Any]] | None = None, **sections: Any) -> Config:
    paths = {
        "interactions": tables.write(folder / "interactions.parquet", impressions() if rows is None else rows),
        "items": tables.write(folder / "items.parquet", tables.items()),
        "users": tables.write(folder / "users.parquet", tables.users()),
    }
    tree: dict[str, Any] = {
        "run": {"name": "rank", "folder": str(folder / "runs")},
        "data": {"source": "tables", **paths, "split": {"kind": "per_user", "valid": 0.2, "test": 0.2}},
        "features": {
            "columns": [
                {"name": "tags", "side": "item", "kind": "categorical", "separator": "|", "max_values": 3},
                {"name": "age", "side": "user", "kind": "numeric", "buckets": 4},
                {"name": "place", "side": "context", "kind": "categorical"},
            ]
        },
        "model": {"kind": "din", "text": "none", "history_length": 6},
        "ranker": {
            "embedding": 8,
            "hidden": [16],
            "dropout": 0.0,
            "history_event": "value",
            "history_age": True,
            "position": "place",
            "tasks": [{"positive": 4.0}],
        },
        "train": {"epochs": 6, "batch": 64, "learning_rate": 0.02, "warmup_steps": 0, "patience": 2},
        "evaluate": {"bootstrap": 50, "k": [3]},
        "export": {"folder": str(folder / "exports")},
    }
    for name, section in sections.items():
        tree[name] = {**tree[name], **section}
    return validate(tree)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    folder = tmp_path_factory.mktemp("rank")
    config = configured(folder)
    pipeline.train(config, lambda line: None)
    pipeline.evaluate(config, lambda line: None)
    return config


@pytest.fixture(scope="module")
def report(config: Config) -> dict[str, Any]:
    return json.loads((config.run_folder / "metrics.json").read_text(encoding="utf-8"))


def test_a_ranker_learns_the_blocks(report: dict[str, Any]) -> None:
    assert report["test"]["auc"] > 0.97
    assert report["valid"]["logloss"] < 0.35
    assert report["test"]["ndcg@3"] > 0.95


def test_logistic_regression_stands_beside_it_and_cannot_know_who_likes_what(report: dict[str, Any]) -> None:
    assert report["baselines"]["logistic"]["auc"] < 0.7
    assert report["against_logistic"]["auc"]["low"] > 0.2
    assert report["against_logistic"]["logloss"]["high"] < 0


def test_the_report_counts_its_rows_and_draws_a_curve(report: dict[str, Any]) -> None:
    assert report["rows"] == {"valid": 40 * 3, "test": 40 * 3}
    assert sum(report["reliability"]["rows"]) == 120
    assert report["parameters"] > 0


def test_the_table_shows_both(report: dict[str, Any]) -> None:
    lines = pipeline.results_table(report).splitlines()
    assert lines[1].startswith("tfrec ") and lines[2].startswith("logistic ")
    assert lines[3].startswith("against logistic regression: auc +")


def test_a_saved_ranker_scores_candidates_of_the_own_block_higher(config: Config) -> None:
    run = Run(config)
    model, prepared = run.model(), run.prepared
    place = {item: i + 1 for i, item in enumerate(prepared.item_ids)}
    own = [place[f"fruit-{i}"] for i in range(5)]
    other = [place[f"tool-{i}"] for i in range(5)]
    history = np.array([[0, 0, own[0], other[0], own[1], other[1]]] * 2, np.int32)
    names = {row: i for i, row in enumerate(("", "1", "5"))}
    events = np.array([[0, 0, names["5"], names["1"], names["5"], names["1"]]] * 2, np.int32)
    inputs = {
        "user": np.zeros(2, np.int32),  # strangers: only the history tells
        "item": np.array([own[2:] + other[2:]] * 2, np.int32),
        "history": history,
        "history_event": np.stack([events[0], np.where(events[1] > 0, 3 - events[1], 0)]),
        "history_age": np.zeros((2, 6), np.int32),
    }
    scores = model(inputs)["like"].numpy()
    assert scores[0, :3].min() > scores[0, 3:].max()
    assert scores[1, :3].max() < scores[1, 3:].min()


def test_a_second_training_finds_everything_done(config: Config) -> None:
    assert ranking.BASELINE in {p.stem for p in (config.run_folder / "models").iterdir()}
    again = pipeline.train(config, lambda line: pytest.fail(f"trained again: {line}"))
    assert again.folder == config.run_folder


def test_folds_in_time_are_measured_one_by_one(tmp_path: Path) -> None:
    logistic = {"kind": "logistic", "text": "none"}
    config = configured(
        tmp_path, model=logistic, train={"epochs": 1, "batch": 64}, evaluate={"folds": 2, "bootstrap": 0}
    )
    pipeline.train(config, lambda line: None)
    report = pipeline.evaluate(config, lambda line: None)["cross_validation"]
    assert len(report["folds"]) == 2
    assert report["mean"]["auc"] == pytest.approx(np.mean([fold["auc"] for fold in report["folds"]]))
    assert 0 < report["mean"]["logloss"] < 1


# The artefact


@pytest.fixture(scope="module")
def servable(config: Config) -> Iterator[Servable]:
    lines: list[str] = []
    folder = pipeline.export(config, lines.append)
    assert folder == Path(config.export.folder) / "rank" / "1" and "verifying in a clean process" in lines
    servable = Servable(folder)
    yield servable
    servable.close()


def test_served_scores_are_the_models(config: Config, servable: Servable) -> None:
    """Every user with the history of the run, every item: the graph looks up, pads and gathers by itself."""
    prepared = Run(config).prepared
    served = servable.run("rank", {"user_id": strings(prepared.user_ids), "item_ids": strings([prepared.item_ids])})
    rows, expected = model_scores(config, "like")
    np.testing.assert_allclose(served["scores"][rows], expected, atol=1e-5)


def model_scores(config: Config, task: str) -> tuple[np.ndarray, np.ndarray]:
    """What the Keras model predicts of every item for the user of every test row: places of users [R], float32 [R, N].

    A history is what a request of that user is served from.
    """
    run = Run(config)
    rows, model = ranking.ranking_data(run).held_out(2), run.model()
    history, events, times = np.zeros((3, len(rows), 6), np.int64)
    for place, (first, end) in enumerate(zip(rows.start, rows.end, strict=True)):
        look = [column[first:end][-6:] for column in rows.history]
        for padded, column in zip((history, events, times), look, strict=True):
            padded[place, 6 - len(column) :] = column
    everything = np.arange(1, len(run.prepared.item_ids) + 1, dtype=np.int32)
    inputs = {
        "user": rows.columns["user"],
        "item": np.tile(everything, (len(rows), 1)),
        "history": history.astype(np.int32),
        "history_event": events.astype(np.int32),
        "history_age": age_rows(tf.constant(max(rows.history.times), tf.int64), tf.constant(times)),
    }
    return rows.columns["user"] - 1, model.predictions(model(inputs))[task].numpy()


def test_a_request_may_bring_its_own_history(servable: Servable) -> None:
    items = [["fruit-7", "tool-7", "no such item", ""]]
    likes = {"history": strings([["", "fruit-1", "who", "tool-1", "fruit-2"]]), "item_ids": strings(items)}
    loves_fruit = servable.run("rank", likes | {"history_event": strings([["", "5", "1", "1", "5"]])})["scores"][0]
    loves_tools = servable.run("rank", likes | {"history_event": strings([["", "1", "5", "5", "1"]])})["scores"][0]
    assert loves_fruit[0] > loves_fruit[1] and loves_tools[1] > loves_tools[0]
    lowest = np.finfo(np.float32).min
    assert (loves_fruit[2:] == lowest).all()
    assert servable.run("rank", likes)["like"].shape == (1, 4)


def test_how_long_ago_a_history_was_is_read_from_the_request(servable: Servable) -> None:
    items = strings([["fruit-7", "tool-7"]])
    request = {"history": strings([["fruit-1", "tool-1"]]), "history_event": strings([["5", "1"]]), "item_ids": items}

    def scores(**times: Any) -> np.ndarray:
        return servable.run("rank", request | {name: np.array(value, np.int64) for name, value in times.items()})[
            "scores"
        ]

    unknown = scores()
    np.testing.assert_array_equal(unknown, scores(history_time=[[0, 0]], now=[10**9]))
    fresh = scores(history_time=[[10**9, 10**9]], now=[10**9])
    assert not np.allclose(fresh, unknown)
    np.testing.assert_array_equal(fresh, scores(history_time=[[10**9 - 59, 10**9 + 500]], now=[10**9]))
    with pytest.raises(Exception, match="history_time must have as many columns as history"):
        scores(history_time=[[1]])


def test_where_an_item_was_shown_does_not_change_its_score(servable: Servable) -> None:
    request = {"user_id": strings(["fruit-user-1"]), "item_ids": strings([["fruit-7", "tool-7"]])}
    scores = [servable.run("rank", request | {"place": strings([place])})["scores"] for place in ("", "0", "2")]
    np.testing.assert_array_equal(scores[0], scores[1])
    np.testing.assert_array_equal(scores[0], scores[2])


def test_no_items_give_no_scores_and_odd_shapes_are_refused(servable: Servable) -> None:
    empty = servable.run("rank", {"user_id": strings(["x"]), "item_ids": np.empty((1, 0), object)})
    assert empty["scores"].shape == (1, 0)
    bad = {"history": strings([["a", "b"]]), "history_event": strings([["1"]]), "item_ids": strings([["fruit-1"]])}
    with pytest.raises(Exception, match="history_event must have as many columns as history"):
        servable.run("rank", bad)


# Tasks, heads, and what is refused


PAID = {"name": "paid", "column": "paid", "kind": "value"}


@pytest.mark.parametrize(
    ("kind", "ranker"),
    [
        ("wide_deep", {"head": "esmm", "tasks": [{"positive": 4.0}, {"name": "buy", "column": "bought"}]}),
        pytest.param("dcn", {"head": "mmoe", "tasks": [{"positive": 4.0}, PAID]}, marks=pytest.mark.slow),
        pytest.param("dlrm", {"tasks": [PAID], "monitor": "spearman"}, marks=pytest.mark.slow),
    ],
)
def test_tasks_and_heads_take_the_same_road(kind: str, ranker: dict[str, Any], tmp_path: Path) -> None:
    small = {"embedding": 4, "hidden": [8], "experts": 2, "expert_units": 4}
    config = configured(
        tmp_path,
        model={"kind": kind, "text": "none"},
        ranker={**small, **ranker},
        train={"epochs": 2, "batch": 64, "learning_rate": 0.02},
        evaluate={"bootstrap": 0, "baselines": False, "k": [3]},
    )
    pipeline.train(config, lambda line: None)
    report = pipeline.evaluate(config, lambda line: None)
    first = config.ranker.tasks[0]
    wanted = {"rmse", "spearman", "gini", "top_decile"} if first.kind == "value" else {"auc", "logloss", "ece"}
    assert wanted <= report["test"].keys()
    for task in config.ranker.tasks[1:]:
        assert np.isfinite(list(report["test"][task.name].values())).all()


@pytest.fixture(scope="module")
def survival(tmp_path_factory: pytest.TempPathFactory) -> Config:
    config = configured(
        tmp_path_factory.mktemp("survival"),
        ranker={"tasks": [STAY], "monitor": "logloss"},
        train={"epochs": 20, "batch": 64, "learning_rate": 0.02, "warmup_steps": 0, "patience": 5},
        evaluate={"bootstrap": 0, "k": [3]},
    )
    pipeline.train(config, lambda line: None)
    return config


def test_survival_is_learned_as_the_chance_to_stay(survival: Config) -> None:
    """Fruit keeps nobody for two weeks and tools keep everybody for three; but of every third item, nobody was seen to
    leave: the chances that make the rows most likely are 0 and 1.
    """
    report = pipeline.evaluate(survival, lambda line: None)
    assert report["test"]["concordance"] > 0.7 and report["test"]["auc"] > 0.97
    chances = model_scores(survival, "stay")[1].mean(0)
    items = Run(survival).prepared.item_ids.tolist()
    left = [f"fruit-{i}" for i in range(tables.ITEMS) if i % 3]
    kept = [f"fruit-{i}" for i in range(tables.ITEMS) if not i % 3] + [f"tool-{i}" for i in range(tables.ITEMS)]
    assert max(chances[items.index(item)] for item in left) < 0.05
    assert min(chances[items.index(item)] for item in kept) > 0.95


@pytest.mark.slow
def test_survival_in_a_plain_session_is_the_models(survival: Config, tmp_path: Path) -> None:
    folder, prepared = pipeline.export(survival, lambda line: None), Run(survival).prepared
    request, answer = tmp_path / "request.json", tmp_path / "answer.npz"
    inputs = {"user_id": prepared.user_ids.tolist(), "item_ids": [prepared.item_ids.tolist()]}
    request.write_text(json.dumps(inputs), encoding="utf-8")
    [(code, _, error)] = finish([start([HERE / "plain_session.py", folder, "rank", request, answer])])
    assert code == 0, error
    rows, expected = model_scores(survival, "stay")
    np.testing.assert_allclose(np.load(answer)["stay"][rows], expected, atol=1e-5)


def test_negatives_come_from_what_retrieval_gives(shop: Shop, tmp_path: Path) -> None:
    ranker = {
        "negatives": 2,
        "negatives_from": "retrieval",
        "retriever": str(shop.run),
        "retrieved": 6,
        "tasks": [{"loss": "bpr"}],
    }
    config = configured(
        tmp_path,
        tables.interactions(),
        features={"columns": []},
        ranker={**ranker, "history_event": None, "position": None},
        model={"kind": "fm", "text": "none"},
        train={"epochs": 1, "batch": 64},
        evaluate={"bootstrap": 0, "k": [3]},
    )
    run = pipeline.train(config, lambda line: None)
    sampler = ranking.ranking_data(run).sampler
    assert sampler
    candidates = sampler((0,)).candidates
    assert candidates is not None and candidates.shape == (41, 6) and not candidates[0].any()
    blocks = [tables.block(str(item)) for item in run.prepared.item_ids]
    for user, row in zip(run.prepared.user_ids, candidates[1:], strict=True):
        own = [blocks[item - 1] == tables.block(str(user)) for item in row]
        assert np.mean(own) > 0.8  # the retriever knows the blocks
    report = pipeline.evaluate(config, lambda line: None)
    assert report["valid"]["positives"] == pytest.approx(1 / 3)


def test_a_class_without_positives_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = configured(tmp_path, ranker={"tasks": [{"positive": 9.0}]})
    with pytest.raises(DataError, match="task like needs positives and negatives in train"):
        pipeline.train(config, lambda line: None)


def test_a_missing_label_column_is_refused(tmp_path: Path) -> None:
    config = configured(tmp_path, ranker={"tasks": [{"column": "clicked"}], "history_event": None})
    with pytest.raises(DataError, match="clicked"):
        pipeline.prepare(config, lambda line: None)


def test_too_many_kinds_of_events_are_refused(tmp_path: Path) -> None:
    rows = [{**row, "event": f"kind {i}"} for i, row in enumerate(impressions())]
    config = configured(tmp_path, rows, ranker={"tasks": [{"positive": 4.0}], "history_event": "event"})
    with pytest.raises(ConfigError, match="must tell at most 100 kinds apart"):
        pipeline.train(config, lambda line: None)


def test_other_labels_need_another_run(config: Config) -> None:
    task = config.ranker.tasks[0].model_copy(update={"positive": 5.0})
    other = config.model_copy(update={"ranker": config.ranker.model_copy(update={"tasks": (task,)})})
    with pytest.raises(ConfigError, match=r"a run keeps the settings it was trained with; ranker\.tasks was"):
        pipeline.evaluate(other)


def test_the_command_line_takes_a_ranker(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = configured(tmp_path, model={"kind": "logistic", "text": "none"}, train={"epochs": 1, "batch": 64})
    file = tmp_path / "rank.toml"
    file.write_text(as_toml(config), encoding="utf-8")
    assert cli.main(["train", str(file), "--quiet", "--no-export"]) == 0
    assert cli.main(["evaluate", str(file), "--quiet"]) == 0
    assert "tfrec" in capsys.readouterr().out


def as_toml(config: Config) -> str:
    """The settings as TOML that has JSON's values in it."""
    tree = config.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    return "\n".join(f"{name} = {_inline(section)}" for name, section in tree.items())


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{name} = {_inline(item)}" for name, item in value.items()) + " }"
    return "[" + ", ".join(map(_inline, value)) + "]" if isinstance(value, list) else json.dumps(value)
