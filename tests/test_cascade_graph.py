"""The served cascade, run by a session as TensorFlow Serving runs it, against its stages in plain Python."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cascade_twin as twin
import numpy as np
import pytest
from cascade_twin import LIKES, NAMES, SPEND, make_cascade
from hypothesis import given, settings
from hypothesis import strategies as st
from parts import ITEM_VECTORS, ITEMS, LOWEST, POPULARITY, make_parts
from saved_models import strings

from tfrec.artifact import export
from tfrec.artifact.buckets import build
from tfrec.artifact.indexed import Plan
from tfrec.artifact.options import LISTS, NUMBERS, WITH
from tfrec.artifact.variables import read_variables, write_variables
from tfrec.server.servable import RequestError, Servable

CANDIDATES = 4
OPTIONS = {*NUMBERS, *LISTS, "weight_names", "weights"}
WEIGHTS = {"like": 1.0, "spend": 0.0, "retrieval": 0.0}


def open_parts(folder: Path, parts: Any) -> Servable:
    return Servable(export.export(parts, folder, {}, lambda path: None))


@pytest.fixture(scope="module", params=["all scores", "an inverted file"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servable]:
    buckets = build(ITEM_VECTORS.astype(np.float32), np.arange(1, len(ITEMS) + 1, dtype=np.int32), 2)
    plans = {"all scores": None, "an inverted file": Plan(buckets, len(buckets.items))}
    parts = make_cascade(CANDIDATES, item_plan=plans[request.param], text_plan=plans[request.param])
    servable = open_parts(tmp_path_factory.mktemp("exports") / "shop", parts)
    yield servable
    servable.close()


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servable]:
    """Without prices and categories; b is out of stock."""
    parts = make_cascade(available=np.array([False, True, False, True, True, True, True]))
    assert parts.cascade is not None
    parts = replace(parts, cascade=replace(parts.cascade, prices=None, categories=None))
    servable = open_parts(tmp_path_factory.mktemp("exports") / "shop", parts)
    yield servable
    servable.close()


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Servable]]:
    """A recommender, and the same one with a ranker that weighs nothing."""
    folder, alone = tmp_path_factory.mktemp("twins"), {"like": 0.0, "spend": 0.0, "retrieval": 1.0}
    both = [open_parts(folder / "plain", make_parts()), open_parts(folder / "alone", make_cascade(2, alone))]
    yield both
    for servable in both:
        servable.close()


def ask(served: Servable, signature: str = "recommend", **inputs: Any) -> dict[str, np.ndarray]:
    """By the plain signature, or where there are options by the one that takes them."""
    ready = {name: strings(value) if isinstance(value, list) else value for name, value in inputs.items()}
    personal = signature == "search" and "history" in inputs
    return served.run(signature + (WITH if personal or OPTIONS & inputs.keys() else ""), ready)


def named(weights: dict[str, list[float]]) -> dict[str, Any]:
    """Weights by term, one a request."""
    return {"weight_names": [[*weights]], "weights": np.array([*weights.values()], np.float32).T}


def rows(found: dict[str, np.ndarray]) -> list[list[tuple[str, float]]]:
    return [
        [(item.decode(), float(score)) for item, score in zip(*row, strict=True)]
        for row in zip(found["item_ids"], found["scores"], strict=True)
    ]


def same(got: list[tuple[str, float]], wanted: list[tuple[str, float]]) -> None:
    assert [item for item, _ in got] == [item for item, _ in wanted]
    np.testing.assert_allclose([s for _, s in got], [s for _, s in wanted], rtol=1e-5, atol=1e-5)


def cosines(item: int) -> np.ndarray:
    return 3 * ITEM_VECTORS @ ITEM_VECTORS[item]  # a history of one item counts three times


# the plain contract


@pytest.mark.parametrize(
    ("signature", "inputs"),
    [
        ("serving_default", {}),
        ("recommend", {"user_id": ["ann", "?"], "history": [["", ""], ["a", "b"]], "k": np.int32(9)}),
        (
            "recommend",
            {"user_id": ["?"], "history": [["a"], ["e"]], "exclude": [["c"]], "k": np.array([1, 3], np.int32)},
        ),
        ("search", {"query": ["up", "no such word"], "exclude": [["d", ""]], "k": np.int32(4)}),
        ("similar", {"item_id": ["a"], "k": np.int32(2)}),
        ("rank", {"user_id": ["bob"], "history": [["a"]], "item_ids": [["a", "e", "no such id"]]}),
    ],
)
def test_a_plain_request_is_answered_as_by_retrieval_alone(
    twins: list[Servable], signature: str, inputs: dict[str, Any]
) -> None:
    wanted, got = (ask(servable, signature, **inputs) for servable in twins)
    for name, value in wanted.items():
        np.testing.assert_array_equal(got[name], value)


def test_the_ranker_orders_what_retrieval_gives(served: Servable) -> None:
    found = ask(served, user_id=["?"], history=[["a"]], k=np.int32(3))
    # Of a's neighbours b, c, d and ü, the four best, d is liked most; e, which is liked too, is no candidate.
    same(rows(found)[0], [("d", 6.0), ("ü", 5.0), ("c", 2.0)])
    np.testing.assert_array_equal(found["like"][0], [6, 5, 2])
    np.testing.assert_array_equal(found["spend"][0], [40, 60, 30])


def test_a_request_for_more_than_the_candidates_gets_them(served: Servable) -> None:
    [got] = rows(ask(served, user_id=["?"], history=[["a"]], k=np.int32(6)))
    assert {item for item, _ in got} == {*ITEMS, ""} - {"a"}


def test_a_caller_shifts_from_likes_to_money(served: Servable) -> None:
    found = ask(
        served,
        user_id=["?"],
        history=[["a"], ["a"]],
        k=np.int32(2),
        **named({"like": [0, 1], "spend": [1, 0]}),
    )
    same(rows(found)[0], [("ü", 60.0), ("d", 40.0)])
    same(rows(found)[1], [("d", 6.0), ("ü", 5.0)])


def test_rank_weighs_the_tasks_too(served: Servable) -> None:
    found = ask(
        served,
        "rank",
        history=[["a"]],
        item_ids=[["e", "b", "?"]],
        **named({"spend": [1], "like": [2]}),
    )
    np.testing.assert_allclose(found["scores"][0], [2 * LIKES[5] + SPEND[5], 2 * LIKES[2] + SPEND[2], LOWEST])
    np.testing.assert_allclose(found["like"][0], [LIKES[5], LIKES[2], LOWEST])


def test_a_search_can_be_personal(served: Servable) -> None:
    plain = ask(served, "search", query=["up"], k=np.int32(3))
    personal = ask(
        served,
        "search",
        query=["up"],
        history=[["a"]],
        k=np.int32(3),
        **named({"like": [1], "retrieval": [0]}),
    )
    np.testing.assert_allclose(plain["scores"][0], sorted(ITEM_VECTORS[1:, 1])[::-1][:3], rtol=1e-6)
    assert personal["item_ids"][0, 0] == b"d" and personal["scores"][0, 0] == 6
    assert plain["reasons"][0, 0] == b"query"
    np.testing.assert_array_equal(plain["reason_weights"], plain["scores"])


def test_a_user_of_whom_nothing_is_known_gets_what_is_popular_among_what_is_allowed(served: Servable) -> None:
    found = ask(served, user_id=["?"], k=np.int32(2), deny_categories=[["food"]])
    same(rows(found)[0], [("e", float(POPULARITY[5])), ("c", float(POPULARITY[3]))])
    assert found["reasons"].tolist() == [[b"popularity", b"popularity"]]
    np.testing.assert_array_equal(found["reason_weights"], found["scores"])


def test_a_reason_names_the_nearest_item_of_the_history_and_its_cosine(served: Servable) -> None:
    found = ask(served, user_id=["?"], history=[["a", "e"]], k=np.int32(5))
    why = dict(
        zip(found["item_ids"][0], zip(found["reasons"][0], found["reason_weights"][0], strict=True), strict=True)
    )
    assert why[b"b"][0] == b"history:a" and why["ü".encode()][0] == b"history:e"
    assert why[b"b"][1] == pytest.approx(np.cos(0.1), abs=1e-6)
    assert why[b""] == (b"", LOWEST)


def test_what_is_out_of_stock_is_not_returned(bare: Servable) -> None:
    found = ask(bare, history=[["a"]], k=np.int32(9))
    ranked = ask(bare, "rank", history=[["a"]], item_ids=[["b", "c"]])
    assert b"b" not in found["item_ids"] and b"c" in found["item_ids"]
    assert ranked["scores"][0, 0] == ranked["like"][0, 0] == LOWEST < ranked["scores"][0, 1]


def test_an_item_that_is_newer_than_prices_and_categories_is_served(tmp_path: Path) -> None:
    path = export.export(make_cascade(), tmp_path / "shop", {}, lambda folder: None)
    grown = read_variables(path, ("item_ids", "item_vectors", "text_vectors", "popularity", "available"))
    grown = {name: np.concatenate([rows, rows[2:3]]) for name, rows in grown.items()}
    grown["item_ids"][-1] = b"new"
    beside = tmp_path / "grown"
    shutil.copytree(path, beside, ignore=shutil.ignore_patterns("variables", "fingerprint.pb"))
    write_variables(path, beside, grown)
    servable = Servable(beside)
    found = ask(servable, history=[["a"]], k=np.int32(9))
    priced = ask(servable, history=[["a"]], k=np.int32(9), min_price=np.float32(1), diversity=np.float32(0.5))
    servable.close()
    assert b"new" in found["item_ids"] and b"new" not in priced["item_ids"]


# every option together, against plain Python

number = st.integers(-3, 3).map(float)
names = st.lists(st.sampled_from([*NAMES, "no such", ""]), max_size=3)


@settings(max_examples=60, deadline=None)
@given(
    item=st.integers(1, 6),
    excluded=st.lists(st.integers(1, 6), max_size=2),
    k=st.integers(1, 7),
    weights=st.fixed_dictionaries({name: number for name in WEIGHTS}),
    bounds=st.tuples(st.sampled_from([0.0, 1.0, 2.5]), st.sampled_from([2.5, 4.0, np.inf])),
    allow=names,
    deny=names,
    strength=st.sampled_from([0.0, 0.3, 0.75, 1.0]),
    most=st.integers(0, 3),
)
def test_every_option_is_what_plain_python_says(
    served: Servable,
    item: int,
    excluded: list[int],
    k: int,
    weights: dict[str, float],
    bounds: tuple[float, float],
    allow: list[str],
    deny: list[str],
    strength: float,
    most: int,
) -> None:
    weights = {**weights, "like": weights["like"] + 0.37, "retrieval": weights["retrieval"] + 0.011}  # no ties
    found = ask(
        served,
        user_id=["?"],
        history=[[ITEMS[item - 1]]],
        exclude=[[ITEMS[i - 1] for i in excluded]],
        k=np.int32(k),
        min_price=np.float32(bounds[0]),
        max_price=np.float32(bounds[1]),
        allow_categories=[allow],
        deny_categories=[deny],
        diversity=np.float32(strength),
        per_category=np.int32(most),
        **named({name: [value] for name, value in weights.items()}),
    )
    wanted = twin.answer(
        cosines(item), {item, *excluded}, k, CANDIDATES, weights, *bounds, allow, [n for n in deny if n], strength, most
    )
    same(rows(found)[0], wanted)


# what is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"diversity": np.float32(1.5)}, "diversity must be in [0, 1]; got] [1.5]"),
        ({"diversity": np.float32(np.nan)}, "diversity must be in [0, 1]; got] [nan]"),
        ({"diversity": np.zeros(3, np.float32)}, "diversity must be one number, or one a request; got"),
        ({"per_category": np.int32(-1)}, "per_category must be at least 0; got] [-1]"),
        ({"min_price": np.float32(-1)}, "min_price must be a number of at least 0; got] [-1]"),
        ({"max_price": np.float32(np.nan)}, "max_price must be a number of at least 0; got] [nan]"),
        (
            {"min_price": np.float32(3), "max_price": np.float32(2)},
            "min_price must not be above max_price; got] [3] [and] [2]",
        ),
        (named({"like": [np.inf]}), "weights must be finite numbers; got] [[inf]]"),
        (named({"clicks": [1]}), "weight_names must be among] [like spend retrieval] [; got] [[clicks]]"),
        (named({"like": [1, 2]}), "weights must have one row, or one a request; got] [2] [for] [1]"),
        ({"weight_names": [["like"]]}, "weights must have as many columns as weight_names; got] [0] [for] [1]"),
        (
            {"weights": np.ones((1, 2), np.float32)},
            "weights must have as many columns as weight_names; got] [2] [for] [0]",
        ),
        ({"diversity": np.int32(1)}, "to be float but int32 is provided"),
        ({"strength": np.float32(1)}, "Inputs contains invalid name"),
        (
            {"allow_categories": [["a"], ["b"]]},
            "allow_categories must have one row, or one a request; got] [2] [for] [1]",
        ),
        ({"k": np.int32(0)}, "k must be at least 1"),
    ],
)
def test_a_wrong_option_is_refused_with_the_rule_and_the_value(
    served: Servable, options: dict[str, Any], message: str
) -> None:
    ready = {name: strings(value) if isinstance(value, list) else value for name, value in options.items()}
    with pytest.raises(RequestError) as caught:
        served.run(f"recommend{WITH}", {"history": strings([["a"]]), **ready})
    assert caught.value.code == "INVALID_ARGUMENT"
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_price": np.float32(1)}, "price bounds need a recommender that knows prices"),
        ({"deny_categories": [["food"]]}, "categories need a recommender that knows them"),
        ({"per_category": np.int32(1)}, "per_category needs a recommender that knows categories"),
    ],
)
def test_bounds_and_categories_need_a_recommender_that_knows_them(
    bare: Servable, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        ask(bare, history=[["a"]], **options)


def test_without_prices_and_categories_answers_can_be_varied(bare: Servable) -> None:
    plain, varied = ask(bare, history=[["a"]]), ask(bare, history=[["a"]], diversity=np.float32(0))
    np.testing.assert_array_equal(plain["item_ids"], varied["item_ids"])
