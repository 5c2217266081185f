"""The client's options of a cascade, over both transports."""

from __future__ import annotations

import pytest
from cascade_twin import LIKES, SPEND, make_cascade

from tests.shop_server import serving_shop
from tfrec.artifact import export
from tfrec.client import BatchedForm, CallError, Client, calls
from tfrec.errors import ConfigError


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return export.export(make_cascade(), tmp_path_factory.mktemp("exports") / "shop", {}, lambda folder: None)


@pytest.fixture(scope="module")
def targets(path):
    with serving_shop(path) as targets:
        yield targets


@pytest.fixture(scope="module", params=["grpc", "rest"])
def client(targets, request):
    with Client(targets[request.param], "shop") as client:
        yield client


def names(results):
    return [result.item_id for result in results]


def test_results_carry_the_scores_of_tasks_and_the_reason(client):
    first, *_ = client.recommend(history=["a"], k=2)
    assert (first.item_id, first.score, first.tasks) == ("d", LIKES[4], {"like": LIKES[4], "spend": SPEND[4]})
    assert first.reason == "history:a"
    assert first.reason_weight == pytest.approx(0.8253, abs=1e-4)  # cos 0.6


def test_filters_weights_and_diversity_go_by_keyword(client):
    assert names(client.recommend(history=["a"], k=2, weights={"like": 0, "spend": 1})) == ["ü", "d"]
    assert names(client.recommend(history=["a"], min_price=2, max_price=3.5)) == ["c", "b"]
    assert names(client.recommend(history=["a"], allow_categories=["tool"], deny_categories=["food"])) == ["ü", "c"]
    assert names(client.recommend(history=["a"], diversity=1.0, per_category=1, k=2))[0] == "d"


def test_a_search_is_for_somebody(client):
    plain, personal = client.search("up"), client.search("up", history=["a"], weights={"like": 1, "retrieval": 0})
    assert names(plain) != names(personal) and names(personal)[0] == "d"
    assert plain[0].reason == "query"


def test_rank_takes_weights(client):
    results = client.rank("", ["a"], ["e", "b", "?"], weights={"like": 0, "spend": 1})
    assert names(results) == ["e", "b", "?"] and results[0].tasks["like"] == LIKES[5]


def test_an_unknown_weight_is_refused(client):
    with pytest.raises(CallError) as caught:
        client.recommend(weights={"clicks": 1})
    assert caught.value.code == "INVALID_ARGUMENT"


def test_a_batching_server_gets_every_option_in_one_width(path):
    form = BatchedForm(**export.read_card(path)["batched_requests"])
    inputs = calls.recommend(form, "", ["a"], [], 3, weights={"spend": 2}, deny_categories=["food"]).inputs
    assert inputs["weight_names"] == [["", "", "spend"]] and inputs["weights"] == [[0.0, 0.0, 2.0]]
    assert inputs["deny_categories"] == [["", "", "food"]] and inputs["allow_categories"] == [["", "", ""]]
    assert inputs["diversity"] == [0.0]
    with pytest.raises(ConfigError, match="at most 3 categories or weights; got 4"):
        calls.recommend(form, "", [], [], 3, deny_categories=["a", "b", "c", "d"])
