"""Spark prepares what DuckDB prepares, table by table."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tfrec.config import validate
from tfrec.data.prepare import Prepared, prepare
from tfrec.errors import ConfigError, DataError

pyspark = pytest.importorskip("pyspark", reason="pip install tfrec[spark] is needed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("java") is None and "JAVA_HOME" not in os.environ, reason="Spark needs a Java runtime"
    ),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning"),
]


@pytest.fixture(scope="module")
def session() -> Iterator[Any]:
    from pyspark.sql import SparkSession

    settings = {
        "spark.ui.enabled": "false",
        "spark.sql.shuffle.partitions": "3",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.host": "127.0.0.1",
        "spark.log.level": "OFF",
    }
    made = SparkSession.builder.master("local[2]").config(map=settings).getOrCreate()
    yield made
    made.stop()


def write(folder: Path, seed: int = 0) -> dict[str, str]:
    """Interactions in three files, with ties in time, repeats and every kind of unusable row; items and users."""
    random = np.random.default_rng(seed)
    for part in range(3):
        rows = 120
        table = {
            "user_id": [None if x == 0 else f"ü{x}" for x in random.integers(0, 12, rows)],
            "item_id": random.choice([*(float(x) for x in range(9)), float("nan")], rows),
            "timestamp": random.choice([*(f"2024-01-0{x} 00:00:00.5" for x in range(1, 9)), "17", "soon"], rows),
            "value": random.choice(["1.5", "x", None], rows).tolist(),
            "hour": random.integers(0, 24, rows),
        }
        pq.write_table(pa.table(table), folder / f"part-{part}.parquet", row_group_size=50)
    items = {
        "item_id": [str(x) for x in [3, 1, 2, 0, 5, 4, 6, 8, 3]],
        "title": ["a", None, "ü", "", "e", "f", "g", "h", "again"],
        "tags": [["x", "y"], [], None, ["z"], ["x"], ["x"], ["x"], ["x"], ["x"]],
        "price": ["1", "2.5", "?", None, "4", "5", "6", "7", "8"],
    }
    pq.write_table(pa.table(items), folder / "items.parquet")
    pq.write_table(pa.table({"user_id": [f"ü{x}" for x in range(8)], "age": [20.0] * 8}), folder / "users.parquet")
    named = {"items": str(folder / "items.parquet"), "users": str(folder / "users.parquet")}
    return {"interactions": str(folder / "part-*.parquet"), **named}


COLUMNS = [
    {"name": "price", "side": "item", "kind": "numeric"},
    {"name": "tags", "side": "item", "kind": "categorical", "separator": "|", "max_values": 2},
    {"name": "hour", "side": "context", "kind": "numeric"},
]


def prepared_by(backend: str, folder: Path, data: dict[str, Any], **sections: Any) -> Prepared:
    tree = {"run": {"name": "x"}, "model": {"text": "none"}, "data": {"source": "tables", "backend": backend, **data}}
    return prepare(validate(tree | sections), folder / backend)


@pytest.mark.parametrize(
    "split",
    [
        {"split": {"kind": "leave_last_out"}, "min_user_interactions": 4, "min_item_interactions": 3},
        {"split": {"kind": "temporal"}, "min_item_interactions": 2},
        {"split": {"kind": "random"}},
        {"split": {"kind": "per_user", "valid": 0.2, "test": 0.2}},
    ],
    ids=["leave_last_out", "temporal", "random", "per_user"],
)
def test_the_tables_equal_those_of_duckdb(session: Any, tmp_path: Path, split: dict[str, Any]) -> None:
    named, sides = write(tmp_path), split["split"]["kind"] in ("leave_last_out", "random")
    data = (named if sides else {"interactions": named["interactions"]}) | split
    sections = {"features": {"columns": COLUMNS if sides else COLUMNS[2:]}}
    ours, theirs = (prepared_by(backend, tmp_path, data, **sections) for backend in ("duckdb", "spark"))
    for name in ("items", "users"):
        assert getattr(ours, name).equals(getattr(theirs, name)), name
    assert list(ours.events) == list(theirs.events)
    for name, column in ours.events.items():
        np.testing.assert_array_equal(column, theirs.events[name], err_msg=name)
    for key in ("problems", "splits", "hashes", "interactions", "cold_items"):
        assert ours.report[key] == theirs.report[key]
    assert ours.report["problems"]


def test_what_spark_cannot_read_is_named(session: Any, tmp_path: Path) -> None:
    path = tmp_path / "events.csv"
    path.write_text("user_id,item_id\na,b\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"reads Parquet files.*events\.csv"):
        prepared_by("spark", tmp_path, {"interactions": str(path)})
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no more PAR1")
    with pytest.raises(DataError, match=r"broken\.parquet must be"):
        prepared_by("spark", tmp_path, {"interactions": str(tmp_path / "broken.parquet")})
    with pytest.raises(ConfigError, match='goes with source = "tables"'):
        validate({"run": {"name": "x"}, "data": {"source": "ml-100k", "backend": "spark"}})
