"""What was trained is what is served: no tensor differs between preparation, the Keras model and the artefact."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from conftest import Shop
from parts import LOWEST
from saved_models import strings

from tfrec.models.two_tower import TwoTower
from tfrec.runs import Run
from tfrec.server.servable import RequestError, Servable
from tfrec.serving import golden_requests, make_parts, reference_scores


@pytest.fixture(scope="module")
def run(shop: Shop) -> Run:
    assert shop.code == 0, shop.err
    return Run.open(shop.run)


@pytest.fixture(scope="module")
def model(run: Run) -> TwoTower:
    return run.model()


@pytest.fixture(scope="module")
def served(shop: Shop, run: Run) -> Iterator[Servable]:
    servable = Servable(shop.exports / "1")
    yield servable
    servable.close()


def stored(run: Run, side: str) -> dict[str, np.ndarray]:
    with np.load(run.features_folder / f"{side}.npz") as file:
        return {name: file[name] for name in file.files}


def ids(run: Run, key: str) -> np.ndarray:
    return strings([str(value) for value in getattr(run.prepared, f"{key}_ids")])


# The same code, the same tensors, row by row


@pytest.mark.parametrize("side", ["item", "user"])
def test_features_of_training_equal_those_of_a_request(run: Run, side: Any) -> None:
    trained, raw = stored(run, side), run.raw(side)
    assert not any(np.any(column[0]) for column in trained.values())
    assert {feature.name for feature in run.config.features.schema_.side(side)} <= trained.keys()
    rows = len(next(iter(raw.values())))
    for row in range(rows):  # one at a time, as a request may come
        one = {name: column[row : row + 1] for name, column in raw.items()}
        for name, tensor in run.preprocessor.features(side, one).items():
            np.testing.assert_array_equal(tensor.numpy()[0], trained[name][row + 1], err_msg=f"{name} of {row}")


def test_tokens_of_training_equal_those_of_a_request(run: Run) -> None:
    trained, raw = stored(run, "item")["tokens"], run.raw("item")
    for row in range(len(trained) - 1):
        one = {name: column[row : row + 1] for name, column in raw.items()}
        tokens = run.preprocessor.tokens(run.preprocessor.text(one)).numpy()
        np.testing.assert_array_equal(tokens[0], trained[row + 1])


@pytest.mark.parametrize("key", ["item", "user"])
def test_indices_of_training_equal_those_of_a_request(run: Run, key: str) -> None:
    table = run.preprocessor.items if key == "item" else run.preprocessor.users
    wanted = ids(run, key)
    assert table.lookup(tf.constant(wanted)).numpy().tolist() == list(range(1, len(wanted) + 1))
    assert table.lookup(tf.constant(["", "no such id"])).numpy().tolist() == [0, 0]


def test_every_item_is_embedded_to_its_own_vector(run: Run, model: TwoTower, served: Servable) -> None:
    raw = {name: column for name, column in run.raw("item").items()}
    got = served.run("embed_item", {"item_id": ids(run, "item"), **raw})
    vectors = model.item_vectors(np.arange(1, len(ids(run, "item")) + 1, dtype=np.int32)).numpy()
    np.testing.assert_allclose(got["embedding"], vectors, atol=1e-5)
    np.testing.assert_allclose(got["text_embedding"], run.item_text_vectors()[1:], atol=1e-5)


def test_a_new_item_is_embedded_from_its_columns_alone(run: Run, served: Servable) -> None:
    raw = {"title": strings(["fresh fruit 3"]), "tags": strings(["fruit|odd"]), "price": np.array([3.0], np.float32)}
    vector = served.run("embed_item", raw)["embedding"][0]
    np.testing.assert_allclose(np.linalg.norm(vector), 1, atol=1e-5)
    likes = {
        user: float(served.run("embed_user", {"user_id": strings([f"{user}-user-1"])})["embedding"][0] @ vector)
        for user in ("fruit", "tool")
    }
    assert likes["fruit"] > likes["tool"]


def test_the_query_space_is_the_item_text_space(run: Run, served: Servable) -> None:
    titles = run.raw("item")["title"]
    got = served.run("embed_query", {"query": titles})["text_embedding"]
    np.testing.assert_allclose(got, run.item_text_vectors()[1:], atol=1e-5)
    assert np.all(got[titles == b""] == 0)


def test_served_scores_equal_the_keras_models(run: Run, model: TwoTower, served: Servable) -> None:
    users = ids(run, "user")
    got = served.run("recommend", {"user_id": users, "k": np.int32(12)})["scores"]
    np.testing.assert_allclose(got, reference_scores(run, model, len(users), 12), atol=1e-5)


def test_a_given_history_gives_what_the_stored_one_gives(run: Run, served: Servable) -> None:
    users = ids(run, "user")
    values, offsets = run.prepared.ragged((0, 1))
    lists = [[str(run.prepared.item_ids[i - 1]) for i in values[a:b]] for a, b in itertools.pairwise(offsets[1:])]
    assert {len(items) for items in lists} == {6}
    given = served.run("recommend", {"user_id": users, "history": strings(lists)})
    empty = served.run("recommend", {"user_id": users, "history": strings([["", "no such item"]] * len(users))})
    np.testing.assert_array_equal(given["item_ids"], empty["item_ids"])
    np.testing.assert_allclose(given["scores"], empty["scores"], atol=1e-6)


# Requests that nobody planned for


@pytest.mark.parametrize(
    "text", ["", " ", "x" * 10_000, "🍮" * 50, "خوخ שזיף 梅 สาม", "\0", "[CLS] [SEP]", "\u202e\ufeff"]
)
def test_any_text_can_be_searched(served: Servable, text: str) -> None:
    answer = served.run("search", {"query": strings([text]), "k": np.int32(3)})
    assert np.isfinite(answer["scores"]).all()
    assert all(item for item in answer["item_ids"][0])


def test_bytes_that_are_not_utf8_are_skipped(served: Servable) -> None:
    broken, whole = (np.array([text], object) for text in (b"steel \xff\xfe tool", b"steel  tool"))
    scores = [served.run("search", {"query": text})["scores"] for text in (broken, whole)]
    np.testing.assert_allclose(*scores, atol=1e-6)


@pytest.mark.parametrize("price", [np.nan, np.inf, -np.inf, 3e38])
def test_any_number_can_be_embedded(served: Servable, price: float) -> None:
    raw = {"title": strings([""]), "tags": strings([""]), "price": np.array([price], np.float32)}
    assert np.isfinite(served.run("embed_item", raw)["embedding"]).all()


def test_columns_of_different_lengths_are_refused(served: Servable) -> None:
    raw = {"title": strings(["a", "b", "c"]), "tags": strings(["a", "b"]), "price": np.zeros(3, np.float32)}
    with pytest.raises(RequestError, match="tags must have one row, or one a request") as caught:
        served.run("embed_item", raw)
    assert caught.value.code == "INVALID_ARGUMENT"
    one = served.run("embed_item", {**raw, "tags": strings(["a"])})["embedding"]
    np.testing.assert_array_equal(one, served.run("embed_item", {**raw, "tags": strings(["a"] * 3)})["embedding"])


# Golden requests


def test_golden_requests_reach_every_signature(run: Run, model: TwoTower, served: Servable) -> None:
    requests = golden_requests(run, make_parts(run, model))
    assert {name for name, _ in requests} == served.signatures.keys()
    answers = [served.run(name, request) for name, request in requests if name == "recommend"]
    assert any((answer["scores"] == LOWEST).any() for answer in answers)


def test_the_card_offers_a_form_for_batched_requests(shop: Shop, run: Run, served: Servable) -> None:
    card = json.loads((shop.exports / "1" / "assets.extra" / "tfrec.json").read_text(encoding="utf-8"))
    form, users, item = card["batched_requests"], ids(run, "user")[:2], str(run.prepared.item_ids[0])
    filled = {name: np.full((2, form[name]), form["filler"].encode(), object) for name in ("history", "exclude")}
    filled["history"][1, 0] = item.encode()
    batched = served.run("recommend", {"user_id": users, **filled, "k": np.array([5, 5], np.int32)})
    for row, history in enumerate(([], [item])):
        alone = served.run(
            "recommend", {"user_id": users[row : row + 1], "history": strings([history]), "k": np.int32(5)}
        )
        np.testing.assert_array_equal(batched["item_ids"][row], alone["item_ids"][0])
        np.testing.assert_allclose(batched["scores"][row], alone["scores"][0], atol=1e-6)
