"""Raw strings and numbers to tensors: hand-made columns, and any column that hypothesis finds."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfrec.data.preprocess import Preprocessor, Statistics, fit, index_table, raw_columns
from tfrec.errors import DataError
from tfrec.schema import Feature, Schema

TAGS = Feature(name="tags", side="item", kind="categorical", separator="|", max_values=3)
BRAND = Feature(name="brand", side="item", kind="categorical", max_vocabulary=2)
PRICE = Feature(name="price", side="item", kind="numeric")
SCHEMA = Schema(features=(TAGS, BRAND, PRICE), text=("title", "brand"))
NAN, INF = math.nan, math.inf


def strings(*values: str) -> np.ndarray:
    return np.array([value.encode() for value in values], object)


def numbers(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def columns(**given: np.ndarray) -> dict[str, np.ndarray]:
    rows = len(next(iter(given.values())))
    empty = {"tags": strings(*[""] * rows), "brand": strings(*[""] * rows), "price": np.zeros(rows, np.float32)}
    return {**empty, **given}


def fitted(raw: dict[str, np.ndarray], counts: list[int] | None = None) -> Preprocessor:
    rows = len(raw["tags"])
    statistics = fit(SCHEMA, "item", raw, np.array(counts or [1] * rows))
    return Preprocessor(SCHEMA, ["u"], ["i"], statistics)


# Categorical


def test_values_are_ordered_by_frequency_then_name() -> None:
    raw = columns(tags=strings("b|a", "b|c", "c", ""))
    assert fitted(raw).statistics.vocabularies["tags"] == ["b", "c", "a"]


def test_values_are_split_stripped_cut_and_padded() -> None:
    raw = columns(tags=strings("a|b|c|d", " a | b ", "", "|", "x", "a|x|b"))
    preprocessor = Preprocessor(
        SCHEMA, ["u"], ["i"], Statistics({"tags": ["a", "b", "c", "d"], "brand": []}, {"price": (0, 1)})
    )
    got = preprocessor.features("item", raw)["tags"]
    assert got.dtype == tf.int32
    assert got.numpy().tolist() == [[1, 2, 3], [1, 2, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0], [1, 0, 2]]


def test_what_does_not_fit_into_the_vocabulary_is_unknown() -> None:
    raw = columns(brand=strings("x", "x", "y", "y", "z"))
    preprocessor = fitted(raw)
    assert preprocessor.statistics.rows() == {"tags": 1, "brand": 3}
    assert preprocessor.features("item", raw)["brand"].numpy().ravel().tolist() == [1, 1, 2, 2, 0]


def test_only_rows_that_training_saw_count_unless_there_are_none() -> None:
    raw = columns(brand=strings("seen", "unseen"), price=numbers(3, 1000))
    statistics = fitted(raw, [2, 0]).statistics
    assert statistics.vocabularies["brand"] == ["seen"]
    assert statistics.moments["price"] == (3.0, 1.0)
    assert fitted(raw, [0, 0]).statistics.vocabularies["brand"] == ["seen", "unseen"]


def test_no_rows_are_fine() -> None:
    raw = columns(tags=strings())
    got = fitted(raw).features("item", raw)
    assert got["tags"].shape == (0, 3)
    assert got["price"].shape == (0,)


_value = st.text(st.characters(exclude_characters="|", exclude_categories=("Cs",)), max_size=6)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(_value, max_size=5), min_size=1, max_size=6))
def test_any_text_is_split_as_python_splits_it(rows: list[list[str]]) -> None:
    raw = columns(tags=strings(*("|".join(values) for values in rows)))
    preprocessor = fitted(raw)
    vocabulary = preprocessor.statistics.vocabularies["tags"]
    place = {value: index for index, value in enumerate(vocabulary, start=1)}
    assert "" not in place
    got = preprocessor.features("item", raw)["tags"].numpy()
    for row, values in zip(got, rows, strict=True):
        kept = [value.strip(" \t\n\v\f\r") for value in values][:3]
        assert row.tolist() == [place[value] if value else 0 for value in kept] + [0] * (3 - len(kept))


# Numeric


def test_numbers_are_standardised_and_missing_ones_are_the_mean() -> None:
    raw = columns(price=numbers(1, 3, NAN, INF, -INF))
    preprocessor = fitted(raw)
    assert preprocessor.statistics.moments["price"] == (2.0, 1.0)
    assert preprocessor.features("item", raw)["price"].numpy().tolist() == [-1, 1, 0, 0, 0]


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6, 16777217.0])
def test_a_constant_does_not_blow_up_what_differs_from_it(value: float) -> None:
    # The mean of 0.1, 0.1, 0.1 is not 0.1: its deviation is a rounding error.
    preprocessor = fitted(columns(price=numbers(*[value] * 3)))
    got = preprocessor.features("item", columns(price=numbers(value, value + 1)))["price"].numpy()
    np.testing.assert_allclose(got, [0, 1], atol=1e-6 * max(value, 1))


def test_without_a_number_nothing_is_shifted() -> None:
    assert fitted(columns(price=numbers(NAN, INF))).statistics.moments["price"] == (0.0, 1.0)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(width=32), min_size=1, max_size=8), st.lists(st.floats(width=32), max_size=4))
def test_any_number_gives_a_finite_tensor(seen: list[float], asked: list[float]) -> None:
    got = fitted(columns(price=numbers(*seen))).features("item", columns(price=numbers(*asked)))["price"].numpy()
    assert np.isfinite(got).all()
    assert (got[[not math.isfinite(value) for value in asked]] == 0).all()


# Tables


def test_columns_come_as_a_request_carries_them() -> None:
    table = pa.table({"title": ["é", None], "year": [1999, None], "price": [1e300, None], "big": [2**60, 1]})
    raw = raw_columns(table, ["title", "year", "price", "big"], ["price", "big"])
    assert raw["title"].tolist() == ["é".encode(), b""]
    assert raw["year"].tolist() == [b"1999", b""]
    assert raw["price"].dtype == np.float32
    assert raw["price"][0] == INF
    assert np.isnan(raw["price"][1])
    assert raw["big"].tolist() == [2.0**60, 1.0]


def test_a_column_that_is_absent_is_refused() -> None:
    with pytest.raises(DataError, match=r"a feature must be a column of its table; price is not; got \['title'\]"):
        raw_columns(pa.table({"title": ["a"]}), ["price"], [])


@pytest.mark.parametrize("column", [["a"], [[1.0]], [b"x"]])
def test_a_numeric_feature_that_holds_something_else_is_refused(column: list[object]) -> None:
    with pytest.raises(DataError, match="the numeric feature price must hold numbers"):
        raw_columns(pa.table({"price": column}), ["price"], ["price"])


# Ids, text, statistics


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=8), unique=True, max_size=8))
def test_every_id_finds_its_own_index_again(ids: list[str]) -> None:
    table = index_table(np.array(ids, object), "ids")
    keys = np.array([value.encode() for value in ids], object)
    assert table.lookup(tf.constant(keys, tf.string)).numpy().tolist() == list(range(1, len(ids) + 1))
    assert table.lookup(tf.constant(["", "no such id at all"])).numpy().tolist() == [0, 0]


def test_ids_are_found_inside_a_graph_too() -> None:
    ids = np.array(["a", "a\0", "\0", "ü", "🍮"], object)
    table = index_table(ids, "ids")
    assert tf.function(table.lookup)(tf.constant([value.encode() for value in ids])).numpy().tolist() == [1, 2, 3, 4, 5]


def test_an_items_text_joins_its_columns() -> None:
    preprocessor = Preprocessor(SCHEMA, ["u"], ["i"], Statistics({"tags": [], "brand": []}, {"price": (0.0, 1.0)}))
    text = preprocessor.text({"title": strings("Saw ", "", "Nail"), "brand": strings("Acme", "Acme", "")})
    assert [value.decode() for value in text.numpy()] == ["Saw. Acme", "Acme", "Nail"]


def test_tokens_need_a_text_encoder() -> None:
    preprocessor = Preprocessor(SCHEMA, ["u"], ["i"], Statistics({"tags": [], "brand": []}, {"price": (0.0, 1.0)}))
    with pytest.raises(DataError, match=r"tokens need features\.text\.columns"):
        preprocessor.tokens(["a text"])


def test_statistics_come_back_from_their_file(tmp_path: Path) -> None:
    statistics = Statistics({"tags": ["ü", "🍮", "a\0b"]}, {"price": (0.1, 1 / 3)})
    statistics.save(tmp_path / "statistics.json")
    again = Statistics.load(tmp_path / "statistics.json")
    assert again.vocabularies == statistics.vocabularies
    assert tuple(again.moments["price"]) == statistics.moments["price"]
    assert [path.name for path in tmp_path.iterdir()] == ["statistics.json"]
