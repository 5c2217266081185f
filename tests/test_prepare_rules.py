"""Preparing: what may be counted, dropped and compared, so that neither the future nor a stale file gets in."""

from __future__ import annotations

import json
import os
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_prepare import THREE, configure, event, run, triples

from tfrec.config import validate
from tfrec.data import files
from tfrec.data.prepare import load, prepare, settings
from tfrec.errors import DataError, TfrecError

LATE_USERS = "valid and test interactions of users that train lacks"
RARE = "interactions of too rare users or items"
TEMPORAL = {"kind": "temporal"}


# Files


def test_settings_name_every_matched_file_with_size_and_time(tmp_path: Path) -> None:
    for name, text in (("b", "user_id,item_id\nv,y\n"), ("a", "user_id,item_id\nu,x\n"), ("items", "item_id\nx\ny\n")):
        (tmp_path / f"{name}.csv").write_text(text)
        os.utime(tmp_path / f"{name}.csv", ns=(1, 1_700_000_000_123_456_789))
    data = {"interactions": str(tmp_path / "[ab].csv"), "items": str(tmp_path / "items.csv")}
    tree = settings(configure(tmp_path, data=data))
    sizes = (("a", 20), ("b", 20), ("items", 12))
    assert tree["files"] == [[str(tmp_path / f"{name}.csv"), size, 1_700_000_000_123_456_789] for name, size in sizes]
    assert json.loads(json.dumps(tree)) == tree


def test_other_sources_have_no_files() -> None:
    config = validate({"run": {"name": "x"}, "model": {"text": "none"}, "data": {"source": "ml-100k"}})
    assert settings(config)["files"] == []


def test_files_that_are_gone_are_other_settings(tmp_path: Path) -> None:
    report = run(tmp_path, THREE).report
    config = configure(tmp_path)
    (tmp_path / "interactions.parquet").unlink()
    assert settings(config)["files"] == []
    assert settings(config) != report["settings"]


@pytest.mark.parametrize("change", ["content", "time"])
def test_a_changed_file_changes_the_settings(tmp_path: Path, change: str) -> None:
    run(tmp_path, THREE)
    config, path = configure(tmp_path), tmp_path / "interactions.parquet"
    assert load(tmp_path / "prepared").report["settings"] == settings(config)
    if change == "content":
        path.write_bytes(path.read_bytes() + b"more")
    else:
        os.utime(path, ns=(1, 1))
    assert load(tmp_path / "prepared").report["settings"] != settings(config)


def test_a_file_that_changes_meanwhile_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = files.as_interactions

    def touched(table: object) -> object:
        os.utime(tmp_path / "interactions.parquet", ns=(1, 1))
        return original(table)  # type: ignore[arg-type]

    monkeypatch.setattr(files, "as_interactions", touched)
    assert run(tmp_path, THREE).report["settings"] != settings(configure(tmp_path))


# The temporal split


def test_temporal_filters_by_what_was_before_the_cut(tmp_path: Path) -> None:
    # Train is times 0 to 7. There, u has six events, v one and w one; b has one and only later a second.
    train = [("u", "a"), ("v", "a"), ("u", "c"), ("w", "c"), ("u", "d"), ("u", "d"), ("u", "a"), ("u", "b")]
    rows = [event(user, item, time) for time, (user, item) in enumerate(train)]
    rows += [event("v", "a", 8), event("u", "a", 8), event("u", "b", 9), event("u", "d", 9)]
    data = {"split": TEMPORAL | {"valid": 0.17, "test": 0.17}, "min_user_interactions": 2, "min_item_interactions": 2}
    prepared = run(tmp_path, rows, data=data, evaluate={"repeats": "keep"})
    # v and w have one train event each; without them c has one; b has one.
    assert triples(prepared) == [
        ("u", "a", 0),
        ("u", "d", 0),
        ("u", "d", 0),
        ("u", "a", 0),
        ("u", "a", 1),
        ("u", "d", 2),
    ]
    assert prepared.report["problems"] == {RARE: 6}


def test_temporal_keeps_new_items_when_only_users_are_filtered(tmp_path: Path) -> None:
    rows = [event("u", f"i{time}", time) for time in range(10)]
    items = [{"item_id": f"i{time}"} for time in range(10)]
    prepared = run(tmp_path, rows, items, data={"split": TEMPORAL, "min_user_interactions": 2})
    assert prepared.report["splits"] == {"train": 8, "valid": 1, "test": 1}
    assert prepared.report["problems"] == {}


def test_temporal_names_the_events_of_users_that_train_lacks(tmp_path: Path) -> None:
    rows = [event("u", f"i{time}", time) for time in range(8)]
    rows += [event("u", "i0", 8), event("late", "i1", 8), event("late", "i2", 9), event("later", "i3", 9)]
    data = {"split": TEMPORAL | {"valid": 0.17, "test": 0.17}}
    prepared = run(tmp_path, rows, data=data, evaluate={"repeats": "keep"})
    assert prepared.report["problems"] == {LATE_USERS: 3}
    assert prepared.events["user"].tolist() == [0] * 3 + [1] * 9


def test_temporal_without_any_usable_event_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="some interactions must be left"):
        run(tmp_path, [event("u", "a", "soon")], data={"split": TEMPORAL})


def test_temporal_without_a_time_before_the_cut_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train, valid and test must each have events.*'train': 0"):
        run(tmp_path, [event(f"u{row}", "a", 7) for row in range(9)], data={"split": TEMPORAL})


def test_temporal_whose_train_is_all_rare_says_so(tmp_path: Path) -> None:
    rows = [event(f"u{time}", "a", time) for time in range(10)]
    with pytest.raises(DataError, match=r"some interactions must be left.*too rare"):
        run(tmp_path, rows, data={"split": TEMPORAL, "min_user_interactions": 2})


# The given split


def test_masked_repeats_of_a_given_split_go_within_each_part_only(tmp_path: Path) -> None:
    parts = [
        ("a", "train"),
        ("b", "train"),
        ("a", "Train "),
        ("a", "valid"),
        ("a", " valid"),
        ("b", "test"),
        ("a", "test"),
    ]
    rows = [event("u", item, time, split=part) for time, (item, part) in enumerate(parts)]
    prepared = run(tmp_path, rows, data={"split": {"kind": "given"}}, evaluate={"repeats": "mask"})
    assert triples(prepared) == [("u", "a", 0), ("u", "b", 0), ("u", "a", 1), ("u", "b", 2), ("u", "a", 2)]
    assert prepared.report["problems"] == {"repeated pairs of user and item": 2}


# Memory and disk


def test_too_little_memory_does_not_blame_the_file() -> None:
    with pytest.raises(TfrecError, match="memory and disk") as caught, files.reading("orders.parquet"):
        connection = duckdb.connect(config={"memory_limit": "1MB", "threads": 1})
        connection.execute("SET temp_directory = ''")
        connection.execute("CREATE TABLE t AS SELECT md5(range::VARCHAR) FROM range(1000000)")
    assert "must be readable" not in str(caught.value)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_does_not_blame_the_file() -> None:
    with pytest.raises(TfrecError, match=r"memory and disk.*No space left") as caught, files.reading("orders.parquet"):
        duckdb.connect().execute("COPY (SELECT * FROM range(1000)) TO '/dev/full' (FORMAT parquet)")
    assert "must be readable" not in str(caught.value)


def test_a_file_that_is_not_there_is_still_blamed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"orders\.parquet must be readable"), files.reading("orders.parquet"):
        duckdb.connect().execute(f"SELECT * FROM '{tmp_path}/orders.parquet'")


@pytest.mark.parametrize("damage", ["no footer", "cut", "a page"])
@pytest.mark.parametrize("broken", ["part-1", "items"])
def test_the_damaged_one_of_many_parquet_files_is_named(tmp_path: Path, broken: str, damage: str) -> None:
    random = np.random.default_rng(0)
    for name in ("part-0", "part-1", "part-2", "items"):
        ids = {"item_id": [f"i{x}" for x in random.integers(0, 10**6, 2_000)]}
        users = {} if name == "items" else {"user_id": [f"u{x}" for x in random.integers(0, 300, 2_000)]}
        pq.write_table(pa.table(users | ids), tmp_path / f"{name}.parquet", compression="snappy")
    path = tmp_path / f"{broken}.parquet"
    whole = path.read_bytes()
    page = whole[:300] + bytes(200) + whole[500:]  # a length that no longer fits
    path.write_bytes({"no footer": whole[:-8], "cut": whole[: len(whole) // 2], "a page": page}[damage])
    data = {
        "source": "tables",
        "interactions": str(tmp_path / "part-*.parquet"),
        "items": str(tmp_path / "items.parquet"),
    }
    config = validate({"run": {"name": "test"}, "model": {"text": "none"}, "data": data})
    with pytest.raises(DataError, match=rf"{broken}\.parquet must be readable"):
        prepare(config, tmp_path / "prepared")
    assert not (tmp_path / "prepared").exists()
