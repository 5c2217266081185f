"""The served graph, run by a session as TensorFlow Serving runs it, against the same rules in plain Python."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from parts import ITEM_VECTORS, ITEMS, LENGTH, LOWEST, POPULARITY, USERS, expected, make_parts
from saved_models import strings

from tfrec.artifact import export
from tfrec.server.servable import RequestError, Servable

K3 = np.int32(3)


def open_parts(folder: Path, **changes: Any) -> Servable:
    return Servable(export.export(make_parts(**changes), folder, {}, lambda path: None))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servable]:
    servable = open_parts(tmp_path_factory.mktemp("exports") / "shop")
    yield servable
    servable.close()


@pytest.fixture(scope="module")
def keeping(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servable]:
    servable = open_parts(tmp_path_factory.mktemp("exports") / "shop", drop_history=False)
    yield servable
    servable.close()


def recommend(served: Servable, **inputs: Any) -> list[list[tuple[str, float]]]:
    """Rows of (item, score); lists become strings."""
    ready = {name: strings(value) if isinstance(value, list) else value for name, value in inputs.items()}
    return rows(served.run("recommend", ready))


def rows(answer: dict[str, np.ndarray]) -> list[list[tuple[str, float]]]:
    assert answer["scores"].dtype == np.float32
    assert answer["item_ids"].shape == answer["scores"].shape
    return [
        [(item.decode(), float(score)) for item, score in zip(*row, strict=True)]
        for row in zip(answer["item_ids"], answer["scores"], strict=True)
    ]


def same(got: list[tuple[str, float]], wanted: list[tuple[str, float]]) -> None:
    assert [item for item, _ in got] == [item for item, _ in wanted]
    np.testing.assert_allclose([s for _, s in got], [s for _, s in wanted], rtol=1e-5, atol=1e-6)


# recommend


def test_an_unknown_user_is_served_from_the_history(served: Servable) -> None:
    [got] = recommend(served, user_id=["?"], history=[["a", "b"]], k=K3)
    # The newest, b, counts three times and a twice: b's neighbours c and d come first.
    score = [float(ITEM_VECTORS[i] @ (2 * ITEM_VECTORS[1] + 3 * ITEM_VECTORS[2])) for i in (3, 4, 6)]
    same(got, [("c", score[0]), ("d", score[1]), ("ü", score[2])])


def test_an_unknown_user_without_history_gets_what_is_popular(served: Servable) -> None:
    [got] = recommend(served, user_id=["?"], history=[[]], k=K3)
    same(got, [("b", 1.0), ("e", 0.7), ("c", 0.5)])


def test_a_known_user_without_history_is_served_from_the_last_items_that_training_saw(served: Servable) -> None:
    stored, given = recommend(served, user_id=["ann", "?"], history=[["", ""], ["a", "b"]])
    same(stored, given)
    assert not {"a", "b"} & {item for item, _ in stored}


def test_a_known_user_of_whom_nothing_is_stored_gets_what_is_popular(served: Servable) -> None:
    [got] = recommend(served, user_id=["new"], k=np.int32(1))
    same(got, [("b", 1.0)])


def test_a_history_that_is_given_replaces_the_stored_one(served: Servable) -> None:
    [got] = recommend(served, user_id=["ann"], history=[["e"]], k=np.int32(6))
    same(got, expected("?", ["e"], [], 6))
    assert {"a", "b"} <= {item for item, _ in got}


def test_all_inputs_are_optional(served: Servable) -> None:
    [got] = rows(served.run("serving_default", {}))
    same(got, expected("?", [], [], 10))


def test_one_row_serves_for_all(served: Servable) -> None:
    got = recommend(served, user_id=["?"], history=[["a"], ["e"]], exclude=[["c"]], k=K3)
    for row, history in zip(got, (["a"], ["e"]), strict=True):
        same(row, expected("?", history, ["c"], 3))
    for row in recommend(served, user_id=["ann", "bob"], history=[["d"]], k=K3):
        same(row, expected("?", ["d"], [], 3))


def test_rows_that_ask_for_less_are_padded(served: Servable) -> None:
    got = recommend(served, user_id=["ann", "?"], history=[[], []], k=np.array([1, 4], np.int32))
    same(got[0], [*expected("ann", [], [], 1), *[("", LOWEST)] * 3])
    same(got[1], expected("?", [], [], 4))


def test_an_answer_shorter_than_k_is_padded(served: Servable) -> None:
    [got] = recommend(served, user_id=["?"], history=[["a"]], exclude=[["b", "c"]], k=np.int32(12))
    assert [item for item, _ in got[3:]] == [""] * 9
    assert [score for _, score in got[3:]] == [LOWEST] * 9


def test_what_is_excluded_never_comes_back_even_when_nothing_is_left(served: Servable) -> None:
    [got] = recommend(served, exclude=[list(ITEMS)], k=K3)
    same(got, [("", LOWEST)] * 3)


def test_with_drop_history_off_seen_items_come_back(keeping: Servable) -> None:
    [got] = recommend(keeping, user_id=["?"], history=[["a"]], exclude=[["b"]], k=K3)
    same(got, expected("?", ["a"], ["b"], 3, drop=False))
    assert got[0][0] == "a"
    [stored] = recommend(keeping, user_id=["ann"], k=np.int32(1))
    assert stored[0][0] in ("a", "b")


@pytest.mark.parametrize("rows_sent", [0, 1, 2])
@pytest.mark.parametrize("width", [0, 2])
def test_rows_history_and_exclude_may_be_empty(served: Servable, rows_sent: int, width: int) -> None:
    ids = np.full((rows_sent, width), b"", object)
    request = {"user_id": strings(["?"] * rows_sent), "history": ids, "exclude": ids, "k": K3}
    assert served.run("recommend", request)["item_ids"].shape == (rows_sent, 3)


def test_no_rows_with_the_defaults_of_the_others(served: Servable) -> None:
    assert served.run("recommend", {"user_id": strings([])})["scores"].shape == (0, 10)
    empty = np.empty((0, 2), object)
    assert served.run("rank", {"item_ids": empty, "user_id": strings([])})["scores"].shape == (0, 2)
    assert served.run("similar", {"item_id": strings([])})["scores"].shape == (0, 10)
    assert served.run("search", {"query": strings([]), "k": np.empty(0, np.int32)})["scores"].shape == (0, 0)


@pytest.mark.parametrize("k", [np.int32(0), np.int32(-1), np.array([3, 0], np.int32)])
@pytest.mark.parametrize("signature", ["recommend", "search", "similar"])
def test_k_below_one_is_refused(served: Servable, signature: str, k: np.ndarray) -> None:
    first = {"recommend": "user_id", "search": "query", "similar": "item_id"}[signature]
    with pytest.raises(RequestError, match="k must be at least 1") as caught:
        served.run(signature, {first: strings(["a", "b"]), "k": k})
    assert caught.value.code == "INVALID_ARGUMENT"


@pytest.mark.parametrize("k", [np.array([1, 2, 3], np.int32), np.array([[1], [2]], np.int32)])
def test_k_must_be_one_number_or_one_a_request(served: Servable, k: np.ndarray) -> None:
    with pytest.raises(RequestError, match="k must be one number, or one a request") as caught:
        recommend(served, user_id=["ann", "bob"], history=[["a"], ["b"]], k=k)
    assert caught.value.code == "INVALID_ARGUMENT"


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"user_id": ["ann", "bob", "?"], "history": [["a"], ["b"]]}, "history must have one row, or one a request"),
        ({"user_id": ["ann"], "exclude": [["a"], ["b"]]}, "exclude must have one row, or one a request"),
    ],
)
def test_rows_that_do_not_fit_are_refused(served: Servable, inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        recommend(served, **inputs)
    assert caught.value.code == "INVALID_ARGUMENT"


_ids = st.lists(st.sampled_from([*ITEMS, "", "no such item", "a "]), max_size=6)
_request = st.tuples(st.sampled_from([*USERS, "", "?"]), _ids, _ids, st.integers(1, 9))


@settings(max_examples=60, deadline=None)
@given(st.lists(_request, min_size=1, max_size=4), st.booleans())
def test_recommend_equals_plain_python(
    served: Servable, keeping: Servable, requests: list[tuple[str, list[str], list[str], int]], drop: bool
) -> None:
    users, histories, excludes, ks = zip(*requests, strict=True)
    widest = max(len(ids) for ids in (*histories, *excludes))
    got = recommend(
        served if drop else keeping,
        user_id=list(users),
        # TensorFlow Serving's batching fills up on the right.
        history=[ids + [""] * (widest - len(ids)) for ids in histories],
        exclude=[ids + [""] * (widest - len(ids)) for ids in excludes],
        k=np.array(ks, np.int32),
    )
    for row, (user, history, exclude, k) in zip(got, requests, strict=True):
        same(row[:k], expected(user, history, exclude, k, drop))
        assert all(entry == ("", LOWEST) for entry in row[k:])


@settings(max_examples=20, deadline=None)
@given(_request)
def test_the_batched_form_gives_the_same_as_the_ragged_one(served: Servable, request_: tuple[Any, ...]) -> None:
    user, history, exclude, k = request_
    ragged = recommend(served, user_id=[user], history=[history], exclude=[exclude], k=np.int32(k))
    filled = {name: ids + [""] * (8 - len(ids)) for name, ids in (("history", history), ("exclude", exclude))}
    batched = recommend(
        served,
        user_id=["ann", user],
        history=[["", *["a"] * 7], filled["history"]],
        exclude=[[""] * 8, filled["exclude"]],
        k=np.array([9, k], np.int32),
    )
    same(batched[1][:k], ragged[0])


def test_a_user_tower_that_knows_users_answers_without_history(tmp_path: Path) -> None:
    parts = make_parts()
    taste = tf.Variable([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])

    def user_vector(read: tf.Tensor, mask: tf.Tensor, user: tf.Tensor) -> tf.Tensor:
        return tf.gather(taste, user)

    parts = replace(parts, user_vector=user_vector, knows_users=True, variables=[*parts.variables, taste])
    servable = Servable(export.export(parts, tmp_path / "shop", {}, lambda path: None))
    try:
        known, unknown = recommend(servable, user_id=["new", "?"], k=np.int32(1))
        assert known[0] == ("e", pytest.approx(float(-ITEM_VECTORS[5][0])))
        assert unknown[0] == ("b", 1.0)
    finally:
        servable.close()


# rank, similar, search, embed


def test_rank_scores_the_items_as_recommend_does_and_unknown_ones_lowest(served: Servable) -> None:
    items = ["e", "nope", "a", "", "a"]
    scores = served.run("rank", {"history": strings([["b"]]), "item_ids": strings([items])})["scores"][0]
    wanted = [ITEM_VECTORS[i] @ ITEM_VECTORS[2] * LENGTH for i in (5, 1)]
    np.testing.assert_allclose(scores, [wanted[0], LOWEST, wanted[1], LOWEST, wanted[1]], rtol=1e-5)


def test_rank_of_an_unknown_user_without_history_is_popularity(served: Servable) -> None:
    scores = served.run("rank", {"item_ids": strings([["a", "b"]])})["scores"]
    np.testing.assert_allclose(scores, [POPULARITY[1:3]])


def test_rank_ranks_several_users_each_with_own_items(served: Servable) -> None:
    request = {"user_id": strings(["ann", "bob"]), "item_ids": strings([["c", "d"], ["e", "a"]])}
    scores = served.run("rank", {**request, "history": np.empty((2, 0), object)})["scores"]
    for row, user, items in zip(scores, ("ann", "bob"), (("c", "d"), ("e", "a")), strict=True):
        liking = dict(expected(user, [], [], 6, drop=False))
        np.testing.assert_allclose(row, [liking[item] for item in items], rtol=1e-5)


def test_similar_items_are_near_and_never_the_item_itself(served: Servable) -> None:
    request = {"item_id": strings(["a", "ü", "?"]), "exclude": strings([["b"]] * 3), "k": np.int32(2)}
    near_a, near_u, unknown = rows(served.run("similar", request))
    assert [item for item, _ in near_a] == ["c", "d"]
    assert near_u[0] == ("e", pytest.approx(float(np.cos(0.5))))
    assert unknown == [("", LOWEST)] * 2


def test_search_finds_by_text(served: Servable) -> None:
    request = {"query": strings(["up", "right"]), "exclude": strings([["", "d"]]), "k": np.array([1, 2], np.int32)}
    up, right = rows(served.run("search", request))
    assert up[0][0] == "c"
    assert up[1] == ("", LOWEST)
    assert [item for item, _ in right] == ["a", "b"]


def test_embeddings_come_out_by_name(served: Servable) -> None:
    user = served.run("embed_user", {"history": strings([["", "c"]])})["embedding"]
    np.testing.assert_allclose(user, LENGTH * ITEM_VECTORS[3:4], rtol=1e-5)
    item = served.run("embed_item", {"title": strings(["up"]), "price": np.array([2], np.float32)})
    np.testing.assert_allclose(item["embedding"], [[0, 2]])
    np.testing.assert_allclose(item["text_embedding"], [[0, 1]])
    np.testing.assert_allclose(served.run("embed_query", {"query": strings(["right"])})["text_embedding"], [[1, 0]])


def test_without_text_there_is_no_search(tmp_path: Path) -> None:
    servable = open_parts(tmp_path / "shop", text_vectors=None, embed_query=None)
    try:
        assert not {"search", "embed_query"} & servable.signatures.keys()
        with pytest.raises(RequestError, match="search"):
            servable.run("search", {"query": strings(["up"])})
    finally:
        servable.close()


def test_an_unknown_input_is_refused(served: Servable) -> None:
    with pytest.raises(RequestError) as caught:
        served.run("recommend", {"user": strings(["ann"])})
    assert caught.value.code == "INVALID_ARGUMENT"
