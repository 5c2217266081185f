"""Hashed, logged, bucketed and vector features: by hand, and equal in tables and in an exported graph."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tfrec.data.preprocess import AGE_ROWS, Preprocessor, Statistics, age_rows, fit, joined
from tfrec.schema import Feature, Schema

CITY = Feature(name="city", side="user", kind="categorical", hash_rows=50)
TAGS = Feature(name="tags", side="item", kind="categorical", separator="|", max_values=3, hash_rows=1000)
SPENT = Feature(name="spent", side="user", kind="numeric", log=True)
AGE = Feature(name="age", side="user", kind="numeric", buckets=4)
IMAGE = Feature(name="image", side="item", kind="vector", width=3)
WAIT = Feature(name="wait", side="context", kind="numeric", buckets=2)
SCHEMA = Schema(features=(CITY, TAGS, SPENT, AGE, IMAGE, WAIT))
NAN, INF = math.nan, math.inf


def strings(*values: str) -> np.ndarray:
    return np.array([value.encode() for value in values], object)


def numbers(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def users(age: np.ndarray, spent: np.ndarray | None = None, city: np.ndarray | None = None) -> dict[str, np.ndarray]:
    rows = len(age)
    spent = np.zeros(rows, np.float32) if spent is None else spent
    return {"age": age, "spent": spent, "city": strings(*[""] * rows) if city is None else city}


def fitted(raw: dict[str, np.ndarray]) -> Preprocessor:
    rows = len(raw["age"])
    items = {"tags": strings(*[""] * rows), "image": strings(*[""] * rows)}
    sides: list[tuple[Any, dict[str, np.ndarray]]] = [("user", raw), ("item", items), ("context", {"wait": raw["age"]})]
    parts = [fit(SCHEMA, side, columns, np.ones(rows)) for side, columns in sides]
    return Preprocessor(SCHEMA, ["u"], ["i"], joined(parts))


def test_buckets_are_quantiles_by_hand() -> None:
    preprocessor = fitted(users(numbers(10, 20, 30, 40, NAN)))
    assert preprocessor.statistics.boundaries["age"] == [10, 20, 30]
    got = preprocessor.features("user", users(numbers(-INF, 5, 10, 11, 20, 30, 31, 1e9, NAN)))["age"].numpy()
    assert got.tolist() == [[0], [1], [1], [2], [2], [3], [4], [4], [0]]


def test_buckets_of_few_values_are_fewer_and_of_none_is_one() -> None:
    assert fitted(users(numbers(7, 7, 7))).statistics.boundaries["age"] == [7]
    nothing = fitted(users(numbers(NAN, INF)))
    assert nothing.features("user", users(numbers(3, NAN)))["age"].numpy().tolist() == [[1], [0]]
    assert nothing.rows()["age"] == 2


# TensorFlow takes subnormal numbers for 0.
FLOATS = st.floats(width=32, allow_subnormal=False)


@settings(max_examples=50, deadline=None)
@given(st.lists(FLOATS, min_size=1, max_size=20), st.lists(FLOATS, max_size=8))
def test_buckets_count_the_boundaries_below(seen: list[float], asked: list[float]) -> None:
    preprocessor = fitted(users(numbers(*seen)))
    cuts = preprocessor.statistics.boundaries["age"]
    got = preprocessor.features("user", users(numbers(*asked)))["age"].numpy()
    expected = [[1 + sum(cut < x for cut in cuts)] if math.isfinite(x) else [0] for x in asked]
    assert got.tolist() == expected
    assert all(row < preprocessor.rows()["age"] for (row,) in expected)


def test_logs_are_standardised_with_their_sign() -> None:
    e = math.e - 1
    preprocessor = fitted(users(np.zeros(3, np.float32), numbers(e, -e, NAN)))
    assert preprocessor.statistics.moments["spent"] == pytest.approx((0, 1), abs=1e-6)
    got = preprocessor.features("user", users(np.zeros(4, np.float32), numbers(0, e, -e, INF)))["spent"]
    np.testing.assert_allclose(got, [0, 1, -1, 0], atol=1e-6)


def test_hashed_values_need_no_vocabulary_and_nothing_is_row_0() -> None:
    preprocessor = fitted(users(numbers(1)))
    assert "city" not in preprocessor.statistics.vocabularies
    assert preprocessor.rows() == {"city": 51, "tags": 1001, "age": 3, "wait": 3}
    names = strings(" Köln ", "Köln", "", "never seen")
    got = preprocessor.features("user", users(np.zeros(4, np.float32), city=names))["city"].numpy().ravel()
    assert got[0] == got[1] > 0 and got[2] == 0 and 0 < got[3] <= 50
    tags = preprocessor.features("item", {"tags": strings("a|b", ""), "image": strings("", "")})["tags"].numpy()
    assert tags.shape == (2, 3) and (tags[0] > 0).tolist() == [True, True, False] and not tags[1].any()


def test_vectors_are_read_and_what_is_no_vector_is_zeros() -> None:
    texts = strings("1 -2.5 3e-1", " 1  2 3 ", "", "1 2", "1 2 3 4", "1 2 x", "nan 1 2", "1e99 0 0")
    got = fitted(users(numbers(1))).features("item", {"image": texts, "tags": strings(*[""] * 8)})["image"]
    assert got.shape == (8, 3) and got.dtype == tf.float32
    np.testing.assert_allclose(got[:2], [[1, -2.5, 0.3], [1, 2, 3]])
    assert not got[2:].numpy().any()


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=3, max_size=3), st.text(max_size=9)
)
def test_any_text_gives_a_finite_vector(vector: list[float], noise: str) -> None:
    texts = strings(" ".join(map(repr, vector)), noise.encode("utf-8", "replace").decode())
    got = fitted(users(numbers(1))).features("item", {"image": texts, "tags": strings("", "")})["image"].numpy()
    np.testing.assert_array_equal(got[0], np.array(vector, np.float32))
    assert np.isfinite(got).all()


def test_ages_double_and_nothing_is_older_than_the_last_row() -> None:
    now = tf.constant(10**10, tf.int64)
    minutes = tf.constant([0, 0.99, 1, 2.9, 3, 6.9, 7, 2**20 - 1, -5], tf.float64)
    got = age_rows(now, now - tf.cast(minutes * 60, tf.int64)).numpy()
    assert got.tolist() == [1, 1, 2, 2, 3, 3, 4, 21, 1]
    assert age_rows(now, tf.constant([0, -1, 1], tf.int64)).numpy().tolist() == [0, 0, AGE_ROWS - 1]


def test_tables_and_an_exported_graph_give_equal_tensors(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    ages, spent = random.normal(30, 20, 200).astype(np.float32), random.lognormal(size=200).astype(np.float32)
    ages[::17], spent[::13] = NAN, INF
    raw = users(ages, spent, strings(*(f"city {i % 23}" if i % 5 else "" for i in range(200))))
    preprocessor = fitted(raw)
    table = {name: value.numpy() for name, value in preprocessor.features("user", raw).items()}
    module = tf.Module()
    module.tables = preprocessor.tables
    module.run = tf.function(
        lambda age, spent, city: preprocessor.features("user", {"age": age, "spent": spent, "city": city}),
        input_signature=[tf.TensorSpec([None], t) for t in (tf.float32, tf.float32, tf.string)],
    )
    tf.saved_model.save(module, str(tmp_path / "module"))
    served = tf.saved_model.load(str(tmp_path / "module")).run
    for rows in (slice(None), slice(3, 4), slice(0, 0)):
        got = served(raw["age"][rows], raw["spent"][rows], tf.constant(raw["city"][rows], tf.string))
        for name, column in table.items():
            # A graph multiplies by the reciprocal of a deviation; indices have nothing to round.
            np.testing.assert_allclose(got[name], column[rows], rtol=3e-7 if name == "spent" else 0, err_msg=name)


def test_statistics_with_buckets_come_back_and_old_ones_are_read(tmp_path: Path) -> None:
    statistics = Statistics({}, {}, {"age": [0.1, 2.0]})
    statistics.save(tmp_path / "statistics.json")
    assert Statistics.load(tmp_path / "statistics.json").boundaries == {"age": [0.1, 2.0]}
    (tmp_path / "old.json").write_text('{"vocabularies": {}, "moments": {}}', encoding="utf-8")
    assert Statistics.load(tmp_path / "old.json").boundaries == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "numeric", "hash_rows": 5}, 'hash_rows goes with kind = "categorical"'),
        ({"kind": "categorical", "log": True}, 'log goes with kind = "numeric"'),
        ({"kind": "categorical", "buckets": 3}, 'buckets goes with kind = "numeric"'),
        ({"kind": "numeric", "width": 3}, 'width goes with kind = "vector"'),
        ({"kind": "vector"}, "a vector needs a width"),
        ({"kind": "numeric", "log": True, "buckets": 3}, "quantiles do not change under a log"),
    ],
)
def test_settings_that_do_not_fit_a_kind_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Feature(**{"name": "x", "side": "item", **change})


def test_rare_values_share_the_row_of_the_unknown() -> None:
    brand = Feature(name="brand", side="item", kind="categorical", min_count=2)
    schema, raw = Schema(features=(brand,)), {"brand": strings("a", "b", "a", "c", "b", "b")}
    statistics = fit(schema, "item", raw, np.ones(6, int))
    assert statistics.vocabularies["brand"] == ["b", "a"]
    features = Preprocessor(schema, [], [], statistics).features("item", raw)
    assert features["brand"].numpy()[:, 0].tolist() == [2, 1, 2, 0, 1, 1]
