"""The served graph with an index in place of all scores answers by the same rules."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from parts import ITEM_VECTORS, ITEMS, LOWEST, USERS, expected, make_parts
from saved_models import strings
from shop_server import serving_shop

from tfrec import publishing
from tfrec.artifact import export, ops, recommender
from tfrec.artifact.buckets import build
from tfrec.artifact.indexed import Plan
from tfrec.artifact.session_check import read_meta_graph
from tfrec.client import CallError, Client
from tfrec.server.servable import RequestError, Servable

VECTORS = ITEM_VECTORS.astype(np.float32)
BUCKETS = build(VECTORS, np.arange(1, len(ITEMS) + 1, dtype=np.int32), 2)
ALL = len(BUCKETS.items)


@pytest.fixture(scope="module", params=["packed", "float32", "bfloat16", "scan"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servable]:
    plan = Plan() if request.param == "scan" else Plan(BUCKETS, ALL, request.param)
    parts = replace(make_parts(), item_plan=plan, text_plan=plan)
    servable = Servable(export.export(parts, tmp_path_factory.mktemp("exports") / "shop", {}, lambda path: None))
    yield servable
    servable.close()


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servable]:
    """One bucket is looked into."""
    parts = replace(make_parts(), item_plan=Plan(BUCKETS, 1), text_plan=Plan(BUCKETS, 1))
    servable = Servable(export.export(parts, tmp_path_factory.mktemp("exports") / "shop", {}, lambda path: None))
    yield servable
    servable.close()


def rows(answer: dict[str, np.ndarray]) -> list[list[tuple[str, float]]]:
    return [
        [(item.decode(), float(score)) for item, score in zip(*row, strict=True)]
        for row in zip(answer["item_ids"], answer["scores"], strict=True)
    ]


def same(got: list[tuple[str, float]], wanted: list[tuple[str, float]]) -> None:
    assert [item for item, _ in got] == [item for item, _ in wanted]
    np.testing.assert_allclose([s for _, s in got], [s for _, s in wanted], rtol=1e-5, atol=1e-6)


_ids = st.lists(st.sampled_from([*ITEMS, "", "no such item"]), max_size=6)
_request = st.tuples(st.sampled_from([*USERS, "", "?"]), _ids, _ids, st.integers(1, 9))


@settings(max_examples=25, deadline=None)
@given(st.lists(_request, min_size=1, max_size=4))
def test_recommend_equals_plain_python(served: Servable, requests: list[tuple[str, list[str], list[str], int]]) -> None:
    users, histories, excludes, ks = zip(*requests, strict=True)
    widest = max(len(ids) for ids in (*histories, *excludes))
    filled = [strings([[*ids, *[""] * (widest - len(ids))] for ids in lists]) for lists in (histories, excludes)]
    inputs = {"user_id": strings(list(users)), "history": filled[0], "exclude": filled[1], "k": np.array(ks, np.int32)}
    for row, (user, history, exclude, k) in zip(rows(served.run("recommend", inputs)), requests, strict=True):
        same(row[:k], expected(user, history, exclude, k))
        assert all(entry == ("", LOWEST) for entry in row[k:])


def test_similar_search_and_rank_answer_as_without_an_index(served: Servable) -> None:
    request = {"item_id": strings(["a", "ü", "?"]), "exclude": strings([["b"]] * 3), "k": np.int32(2)}
    near_a, near_u, unknown = rows(served.run("similar", request))
    assert [item for item, _ in near_a] == ["c", "d"]
    assert near_u[0] == ("e", pytest.approx(float(np.cos(0.5))))
    assert unknown == [("", LOWEST)] * 2
    request = {"query": strings(["up", "right"]), "exclude": strings([["", "d"]]), "k": np.array([1, 2], np.int32)}
    up, right = rows(served.run("search", request))
    assert [item for item, _ in (up[0], *right)] == ["c", "a", "b"]
    scores = served.run("rank", {"history": strings([["b"]]), "item_ids": strings([["e", "nope", "a"]])})["scores"][0]
    wanted = [3 * ITEM_VECTORS[i] @ ITEM_VECTORS[2] for i in (5, 1)]
    np.testing.assert_allclose(scores, [wanted[0], LOWEST, wanted[1]], rtol=1e-5)
    popular = served.run("rank", {"item_ids": strings([["a", "b"]])})["scores"][0]
    np.testing.assert_allclose(popular, [0.1, 1.0])


def test_no_rows(served: Servable) -> None:
    assert served.run("recommend", {"user_id": strings([])})["scores"].shape == (0, 10)
    assert served.run("similar", {"item_id": strings([])})["scores"].shape == (0, 10)


def test_stock_tensorflow_serving_has_the_ops(served: Servable) -> None:
    assert ops.missing_ops(ops.used_ops(read_meta_graph(served.path)), "2.18") == {}


def test_fewer_buckets_find_fewer_items_and_a_request_may_ask_for_more(narrow: Servable) -> None:
    [few] = rows(narrow.run("similar", {"item_id": strings(["a"])}))
    assert sum(item != "" for item, _ in few) <= 2
    [more] = rows(narrow.run("similar_nprobe", {"item_id": strings(["a"]), "nprobe": np.int32(ALL)}))
    assert [item for item, _ in more][:5] == ["b", "c", "d", "ü", "e"]
    both = narrow.run("similar_nprobe", {"item_id": strings(["a", "b"]), "nprobe": np.array([1, 99], np.int32)})
    assert (both["item_ids"] != b"").sum(axis=1).tolist() == [5, 5]


@pytest.mark.parametrize("signature", ["recommend", "similar", "search"])
@pytest.mark.parametrize("nprobe", [np.int32(0), np.array([1, -1], np.int32)])
def test_nprobe_below_one_is_refused(narrow: Servable, signature: str, nprobe: np.ndarray) -> None:
    first = {"recommend": "user_id", "search": "query", "similar": "item_id"}[signature]
    with pytest.raises(RequestError, match="nprobe must be at least 1") as caught:
        narrow.run(f"{signature}_nprobe", {first: strings(["a", "b"]), "nprobe": nprobe})
    assert caught.value.code == "INVALID_ARGUMENT"


def test_who_names_no_nprobe_gets_what_was_planned(narrow: Servable) -> None:
    plain, told = ({"item_id": strings(["a"])} | more for more in ({}, {"nprobe": np.int32(1)}))
    for answer in (narrow.run("similar_nprobe", plain), narrow.run("similar_nprobe", told)):
        assert answer["item_ids"].tolist() == narrow.run("similar", plain)["item_ids"].tolist()


def test_plain_signatures_have_no_input_that_json_and_batches_would_want(served: Servable) -> None:
    for name in ("recommend", "similar", "search", "serving_default"):
        assert "nprobe" not in served.signatures[name].inputs


def test_a_client_asks_with_and_without_nprobe_over_grpc_and_rest(narrow: Servable) -> None:
    with serving_shop(narrow.path) as targets:
        for target in targets.values():
            with Client(target, "shop") as client:
                assert len(client.similar("a", k=10)) <= 2
                assert [found.item_id for found in client.similar("a", k=10, nprobe=99)] == ["b", "c", "d", "ü", "e"]
                assert client.recommend(history=["b"]) == client.recommend(history=["b"], nprobe=1)
                assert client.search("up", k=1, nprobe=99)[0].item_id == "d"
                with pytest.raises(CallError, match="nprobe must be at least 1"):
                    client.search("up", nprobe=0)


def test_every_signature_that_is_told_nprobe_has_a_golden_request(narrow: Servable) -> None:
    parts = replace(make_parts(), item_plan=Plan(BUCKETS, 3), text_plan=Plan(BUCKETS, 1))
    names = ["serving_default", "recommend", "recommend", "similar", "search", "rank", "recommend_with", "rank_with"]
    requests = [(name, {"k": np.array(k, np.int32)}) for k, name in enumerate(names)]
    found = publishing.probing_requests(requests, parts)
    assert list(found[: len(names)]) == requests
    more = dict(found[len(names) :])
    assert {*more} == {"recommend_with_nprobe", *(name for name in narrow.signatures if name.endswith("_nprobe"))}
    assert more["recommend_nprobe"] == {"k": 1, "nprobe": 6} and more["search_nprobe"] == {"k": 4, "nprobe": 2}
    assert publishing.probing_requests(requests, make_parts()) == requests


def test_what_has_no_buckets_takes_no_nprobe() -> None:
    assert recommender.defaults("recommend_nprobe", replace(make_parts(), item_plan=Plan())) == {}
    assert recommender.defaults("search_nprobe", replace(make_parts(), text_plan=Plan(BUCKETS, 3)))["nprobe"] == 3
