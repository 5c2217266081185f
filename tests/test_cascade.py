"""A trained run with a ranker behind it, from the command line to its SavedModel."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tables
import tensorflow as tf
from conftest import Shop
from copied import copied

from tfrec import cascade, cascade_serving, cli
from tfrec.artifact import export
from tfrec.config import load, validate
from tfrec.earlier import earlier
from tfrec.errors import ConfigError, TrainingError
from tfrec.runs import Run
from tfrec.server.servable import Servable
from tfrec.training import cascade as training
from tfrec.training.cascade import (
    Requests,
    RequestScorer,
    build,
    choose_weights,
    fit,
    likeliest_prior,
    ndcg,
    objective,
)

RANKER = [
    "cascade.candidates=12",
    "cascade.epochs=1",
    "cascade.folds=2",
    "cascade.positions=2",
    "cascade.kind=wide_deep",
    "ranker.members=2",
    "ranker.hidden=[8]",
    "ranker.embedding=4",
    "ranker.user_id=false",
    "ranker.item_id=false",
    'ranker.tasks=[{name="like",loss="listwise"}]',
    "evaluate.baselines=false",
    "evaluate.bootstrap=50",
]


@pytest.fixture(scope="module")
def cascaded(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """The trained shop, with a ranker added to it by training again."""
    folder = tmp_path_factory.mktemp("cascade")
    shutil.copytree(shop.run, folder / "runs" / "shop")
    words = [f"run.folder={folder}/runs", f"export.folder={folder}/exports", *RANKER]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = cli.main(["train", shop.config, *words])
    return dataclasses.replace(shop, folder=folder, code=code, out=out.getvalue(), err=err.getvalue())


@pytest.fixture(scope="module")
def run(cascaded: Shop) -> Run:
    return Run.open(cascaded.run)


@pytest.fixture(scope="module")
def served(cascaded: Shop) -> Iterator[Servable]:
    servable = Servable(cascaded.exports / "1")
    yield servable
    servable.close()


def test_training_ends_with_a_verified_export(cascaded: Shop) -> None:
    assert cascaded.code == 0, cascaded.err
    card = export.read_card(cascaded.exports / "1")
    assert {"recommend", "search", "rank", "similar"} <= {*card["signatures"]}
    assert "cascade: " in cascaded.err and "against_retrieval: ndcg@10" in cascaded.out


def test_no_table_is_copied_with_each_request(cascaded: Shop, shop: Shop) -> None:
    assert copied(cascaded.exports / "1") == copied(shop.exports / "1") == []


def test_the_earlier_position_is_learned_from_without_what_came_after(cascaded: Shop, run: Run) -> None:
    assert {"earlier.keras", "earlier.blend.npz"} <= {path.name for path in (cascaded.run / "models").iterdir()}
    assert (cascaded.run / "checkpoints" / "earlier" / "select").exists()
    past = earlier(run)
    assert run.blend("earlier").weight_of == run.blend("selected").weight_of
    asked = cascade.Retriever(past, "earlier").holdout()
    assert (asked.targets[0] > 0).all() and len(asked) == len(cascade.holdout_of(run, 1))


def test_metrics_say_what_each_stage_loses_and_wins(cascaded: Shop) -> None:
    report = json.loads((cascaded.run / "metrics.json").read_text())
    found = report["cascade"]
    assert [row["candidates"] for row in found["test"]] == [10, 12]
    assert all(row["recall"] <= 1 and row["ndcg@10"] <= 1 for row in found["test"] + found["valid"])
    assert report["test"]["ndcg@10"] == pytest.approx(found["test"][-1]["ndcg@10"], abs=1e-9)
    for name in ("against_retrieval", "artefact"):
        assert found[name]["low"] <= found[name]["mean"] <= found[name]["high"]


def test_the_artefact_is_as_good_as_the_models_that_it_holds(cascaded: Shop) -> None:
    found = json.loads((cascaded.run / "metrics.json").read_text())["cascade"]
    assert found["artefact"]["cascade"] == pytest.approx(found["against_retrieval"]["cascade"], abs=1e-6)
    assert found["artefact"]["retrieval"] == pytest.approx(found["against_retrieval"]["retrieval"], abs=1e-6)


def test_served_scores_equal_the_keras_models(run: Run, served: Servable) -> None:
    same_scores(run, served, 40)


def same_scores(run: Run, served: Servable, users: int) -> None:
    """Requests against the Keras models, one by one: the shop's texts are nearly parallel, so that what another size of
    batch rounds otherwise is blown up to more than 1e-5 of a score."""
    expected = cascade_serving.reference_scores(run, users, 10, at_once=1)
    ids = np.array([str(id_).encode() for id_ in run.prepared.user_ids[:users]], object)
    got = np.concatenate([served.run("recommend", {"user_id": ids[i : i + 1]})["scores"] for i in range(len(ids))])
    assert got.shape == (users, 10)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_cascade_takes_new_items(cascaded: Shop, tmp_path: Path) -> None:
    exports = shutil.copytree(cascaded.exports, tmp_path / "shop")
    row = {"item_id": "tool-77", "title": "steel tool 7", "tags": "tool|odd", "price": 12.0}
    assert cli.main(["reindex", str(exports), tables.write(tmp_path / "new.csv", [row]), "--quiet"]) == 0
    servable = Servable(exports / "2")
    try:
        asked = {"history": np.array([[b"tool-2", b"tool-3"]], object), "k": np.int32(30)}
        answer = servable.run("recommend", asked)
        assert b"tool-77" in answer["item_ids"]
        there = answer["item_ids"] != b""
        assert np.isfinite(answer["like"][there]).all() and (answer["reasons"][there] != b"").all()
        for limit, there in ((11.0, False), (13.0, True)):
            cheap = servable.run("recommend_with", {**asked, "max_price": np.float32(limit)})
            assert (b"tool-77" in cheap["item_ids"]) == there
    finally:
        servable.close()


@pytest.mark.slow
def test_a_thousand_served_requests_equal_the_keras_models(tmp_path: Path, cache: Path) -> None:
    random = np.random.default_rng(0)
    rows = [
        {"user_id": f"{kind}-user-{user}", "item_id": f"{kind}-{item}", "timestamp": 1000 + time}
        for user, kind in enumerate(np.resize(tables.BLOCKS, 1000))
        for time, item in enumerate(random.permutation(tables.ITEMS)[: tables.EVENTS])
    ]
    config = tables.shop(tmp_path, rows)
    assert cli.main(["train", config, *RANKER, "train.epochs=1", "--quiet"]) == 0
    servable = Servable(tmp_path / "exports" / "shop" / "1")
    same_scores(Run.open(tmp_path / "runs" / "shop"), servable, 1000)
    servable.close()


def test_rank_gives_what_recommend_gives(run: Run, served: Servable) -> None:
    user = np.array([str(run.prepared.user_ids[0]).encode()], object)
    found = served.run("recommend", {"user_id": user})
    ranked = served.run("rank", {"user_id": user, "item_ids": found["item_ids"]})
    for name in ("scores", "like"):
        np.testing.assert_allclose(ranked[name], found[name], rtol=0, atol=1e-5)


def test_prices_filter_what_is_served(run: Run, served: Servable) -> None:
    prices = dict(zip(run.prepared.item_ids, run.prepared.items["price"].to_pylist(), strict=True))
    asked = {"min_price": np.float32(3), "max_price": np.float32(12), "k": np.int32(30)}
    ids = [id_.decode() for id_ in served.run("recommend_with", asked)["item_ids"][0] if id_]
    assert ids and all(3 <= prices[id_] <= 12 for id_ in ids)


def test_evaluation_ranks_the_rest_behind_the_candidates() -> None:
    columns = {"item": np.array([[2, 3, 0]], np.int32)}
    requests = Requests(columns, np.zeros((1, 3)), np.zeros((1, 3, 1)), np.ones(1))
    judged = cascade.Judged(requests, np.array([[-5.0, -1.0, -9.0]]))
    scores = cascade.reranked(lambda rows: np.array([[0.0, 7.0, 8.0, 1.0]]), judged)(np.arange(1))
    assert np.argsort(-scores[0, 1:]).tolist() == [2, 1, 0]


# the ranker's training


def requests_of(queries: int, labels: np.ndarray | None = None) -> Requests:
    """Candidates 1 and 2, of which retrieval prefers the first and users take the second."""
    shape = (queries, 2)
    signal = np.broadcast_to(np.array([1.0, -1.0], np.float32), shape).copy()
    columns = {
        "user": np.arange(queries, dtype=np.int32) % 40 + 1,
        "item": np.tile(np.array([1, 2], np.int32), (queries, 1)),
    }
    columns |= {"history": np.zeros((queries, 1), np.int32), "signal.retrieval": signal}
    taken = np.broadcast_to(np.array([0.0, 1.0], np.float32)[:, None], (*shape, 1)).copy()
    return Requests(columns, signal.copy(), taken if labels is None else labels, np.ones(queries, np.int64))


def test_ndcg_counts_what_is_no_candidate() -> None:
    requests = requests_of(1)
    assert ndcg(requests, np.array([[0.0, 1.0]]), 10) == pytest.approx(1.0)
    assert ndcg(requests, np.array([[1.0, 0.0]]), 10) == pytest.approx(1 / np.log2(3))
    two = Requests(requests.columns, requests.retrieval, requests.labels, np.array([2]))
    assert ndcg(two, np.array([[0.0, 1.0]]), 10) == pytest.approx(1 / (1 + 1 / np.log2(3)))


def test_the_likeliest_prior_follows_how_good_retrieval_is() -> None:
    wrong, mixed = requests_of(8), np.zeros((8, 2, 1), np.float32)
    mixed[:6, 0], mixed[6:, 1] = 1, 1  # right three times of four: e^2p = 3
    assert likeliest_prior(wrong) == pytest.approx(0.05)
    assert likeliest_prior(requests_of(8, mixed)) == pytest.approx(np.log(3) / 2, rel=0.06)


def test_what_is_no_candidate_weighs_nothing() -> None:
    config = validate({"run": {"name": "a"}, "data": {"source": "ml-100k"}, "model": {"text": "none"}})
    short = requests_of(8)
    columns = {**short.columns, "item": np.tile(np.array([1, 2, 0], np.int32), (8, 1))}
    columns["signal.retrieval"] = np.pad(short.columns["signal.retrieval"], [(0, 0), (0, 1)])
    retrieval = np.pad(short.retrieval, [(0, 0), (0, 1)], constant_values=np.finfo(np.float32).min)
    requests = Requests(columns, retrieval, np.pad(short.labels, [(0, 0), (0, 1), (0, 0)]), short.wanted)
    scores = np.tile(np.array([0, 1, 9], np.float32)[:, None], (8, 1, 1))
    assert likeliest_prior(requests) == likeliest_prior(short)
    assert choose_weights(config, requests, scores, 1.0, 10) == {"like": 1.0, "retrieval": 0.0}


def test_the_ranker_learns_what_retrieval_gets_wrong(run: Run, tmp_path: Path) -> None:
    config = run.config
    config = config.model_copy(
        update={"cascade": config.cascade.model_copy(update={"learning_rate": 0.05, "batch": 8})}
    )
    tables = cascade.tables_of(run, "selected", ["retrieval"])
    fitted = fit(config, requests_of(120), tables, tmp_path)
    assert fitted.weights["like"] == 1
    assert ndcg(requests_of(4), RequestScorer(fitted.model).score(requests_of(4))[..., 0], 10).mean() == 1


def test_members_start_as_retrieval_and_learn_from_their_own_losses(run: Run) -> None:
    settings = run.config.ranker.model_copy(update={"members": 3, "dropout": 0.0})
    config = run.config.model_copy(
        update={"ranker": settings, "cascade": run.config.cascade.model_copy(update={"kind": "wide_deep"})}
    )
    model = build(config, cascade.tables_of(run, "selected", ["retrieval"]), 2.0)
    requests = requests_of(5)
    np.testing.assert_allclose(RequestScorer(model).score(requests)[..., 0], 2 * requests.retrieval, atol=1e-6)
    for _, head in model.members:
        for layer in head.towers.last:
            layer.kernel.assign(np.random.default_rng(len(layer.name)).normal(size=layer.kernel.shape))
    logits = model(requests.columns)["like"].numpy()  # [B, C, M]
    assert not np.allclose(logits[..., 0], logits[..., 1])
    np.testing.assert_allclose(RequestScorer(model).score(requests)[..., 0], logits.mean(axis=-1), rtol=1e-5)
    batch = {name: tf.constant(x) for name, x in {**requests.columns, "label": requests.labels}.items()}
    total, weight = objective(model)(batch)
    chances = np.exp(logits[:, 1]) / np.exp(logits).sum(axis=1)  # of the second candidate, which is taken
    assert float(total) == pytest.approx(-np.log(chances).mean(axis=-1).sum(), rel=1e-4) and float(weight) == 5


def test_earlier_positions_teach_and_no_user_is_judged_by_a_ranker_that_saw_one_of_them(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, one = [], training.RequestBatches

    def batches(requests: Requests, batch: int, seed: int) -> Any:
        seen.append(requests.columns["user"])
        return one(requests, batch, seed)

    monkeypatch.setattr(training, "RequestBatches", batches)
    tables = cascade.tables_of(run, "selected", ["retrieval"])
    valid, before = requests_of(40), requests_of(30)
    fitted = fit(run.config, valid, tables, tmp_path, earlier=[before])
    assert fitted.scores.shape == (40, 2, 1)
    first, second, everybody = seen[:2], seen[1], seen[-1]
    assert len(everybody) == 70 and sum(map(len, first)) == 70  # two folds
    assert not np.isin(seen[0], second).any()


def test_a_ranker_without_a_held_out_candidate_is_refused(run: Run, tmp_path: Path) -> None:
    tables = cascade.tables_of(run, "selected", ["retrieval"])
    with pytest.raises(TrainingError, match="held-out items among the candidates; got 0"):
        fit(run.config, requests_of(6, np.zeros((6, 2, 1), np.float32)), tables, tmp_path)


# settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"kind": "dcn", "text": "none"}}, 'cascade.candidates goes with model.kind = "two_tower"'),
        ({"ranker": {"negatives": 3}}, "ranker.negatives goes with a ranker alone"),
        ({"ranker": {"tasks": [{"kind": "value"}], "monitor": "rmse"}}, "the first task of a cascade is whether"),
        ({"ranker": {"tasks": [{"name": "retrieval"}]}}, "cannot be named retrieval"),
        ({"ranker": {"tasks": [{}, {"name": "buy"}]}, "cascade": {"kind": "fm"}}, 'cascade.kind = "fm" has one logit'),
        (
            {"features": {"columns": [{"name": "hour", "side": "context", "kind": "numeric"}]}},
            "a cascade reads no context; hour is a context feature",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    tree: dict[str, Any] = {"run": {"name": "a"}, "data": {"source": "ml-100k"}, "model": {"text": "none"}}
    tree["cascade"] = {"candidates": 10}
    for section, values in changes.items():
        tree[section] = tree.get(section, {}) | values
    with pytest.raises(ConfigError, match=message):
        validate(tree)


def test_a_ranker_that_is_trained_keeps_its_settings(cascaded: Shop, shop: Shop, capsys: Any) -> None:
    words = [f"run.folder={cascaded.folder}/runs", *RANKER, "ranker.embedding=8"]
    assert cli.main(["evaluate", shop.config, *words]) == 2
    assert "a run keeps the settings it was trained with; ranker.embedding was 4" in capsys.readouterr().err


def test_categories_are_split_where_a_feature_says_so(shop: Shop, run: Run) -> None:
    config = load(shop.config)
    roles = config.data.roles.model_copy(update={"category": "tags"})
    with_tags = run.with_config(config.model_copy(update={"data": config.data.model_copy(update={"roles": roles})}))
    with_tags.folder = run.folder
    columns = cascade.columns_of(with_tags)
    assert columns.names == ["even", "fruit", "new", "odd", "tool"]
    assert columns.categories is not None and columns.prices is not None
    row = run.prepared.item_ids.tolist().index("tool-1") + 1
    assert {columns.names[c - 1] for c in columns.categories[row] if c} == {"tool", "odd", "new"}
    assert np.isnan(columns.prices[run.prepared.item_ids.tolist().index("nameless") + 1])
