"""Preparing: hand-made tables give the events, vocabularies and counts that one would write down by hand."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tfrec.config import Config, validate
from tfrec.data.prepare import Prepared, load, prepare
from tfrec.errors import ConfigError, DataError, TfrecError

Row = dict[str, Any]


def event(user: str, item: str, timestamp: Any = None, **more: Any) -> Row:
    return {"user_id": user, "item_id": item} | ({} if timestamp is None else {"timestamp": timestamp}) | more


def configure(folder: Path, **sections: Any) -> Config:
    data = {"source": "tables", **sections.pop("data", {})}
    for name in ("interactions", "items", "users"):
        if (folder / f"{name}.parquet").exists():
            data[name] = str(folder / f"{name}.parquet")
    return validate({"run": {"name": "test"}, "model": {"text": "none"}, "data": data, **sections})


def run(
    folder: Path, rows: list[Row], items: list[Row] | None = None, users: list[Row] | None = None, **sections: Any
) -> Prepared:
    for name, table in (("interactions", rows), ("items", items), ("users", users)):
        if table is not None:
            pq.write_table(pa.Table.from_pylist(table), folder / f"{name}.parquet")
    return prepare(configure(folder, **sections), folder / "prepared")


def triples(prepared: Prepared) -> list[tuple[str | None, str, int]]:
    """(user id, item id, split) of every event, in their order."""
    users = [None, *prepared.user_ids]
    columns = (prepared.events[name] for name in ("user", "item", "split"))
    return [(users[user], prepared.item_ids[item - 1], int(split)) for user, item, split in zip(*columns, strict=True)]


THREE = [event("u", item, time) for time, item in enumerate("abc")]


# Events


def test_the_last_event_is_test_and_the_one_before_is_valid(tmp_path: Path) -> None:
    rows = [event("v", "c", 9), event("u", "b", 2), event("u", "a", 1), event("u", "d", 4), event("u", "c", 3)]
    prepared = run(tmp_path, [*rows, event("v", "a", 8)])
    assert triples(prepared) == [
        ("v", "a", 0),  # fewer than three: all train
        ("v", "c", 0),
        ("u", "a", 0),
        ("u", "b", 0),
        ("u", "c", 1),
        ("u", "d", 2),
    ]
    assert prepared.events["timestamp"].tolist() == [8, 9, 1, 2, 3, 4]
    assert {name: array.dtype.name for name, array in prepared.events.items()} == {
        "user": "int32",
        "item": "int32",
        "split": "int8",
        "timestamp": "int64",
    }


def test_vocabularies_follow_the_first_appearance_in_the_files(tmp_path: Path) -> None:
    prepared = run(tmp_path, [event("ü", "z", 5), event("ü", "a", 4), event("ü", "東", 3)])
    assert prepared.user_ids.tolist() == ["ü"]
    assert prepared.item_ids.tolist() == ["z", "a", "東"]
    assert prepared.events["item"].tolist() == [3, 2, 1]


def test_ties_in_time_keep_the_order_of_the_file(tmp_path: Path) -> None:
    # The first user's events number the items otherwise than the second user's order.
    rows = [event("v", item) for item in "abcd"] + [event("u", item) for item in "dbca"]
    prepared = run(tmp_path, [row | {"timestamp": 7} for row in rows])
    assert triples(prepared)[4:] == [("u", "d", 0), ("u", "b", 0), ("u", "c", 1), ("u", "a", 2)]


def test_without_times_the_file_is_the_order(tmp_path: Path) -> None:
    prepared = run(tmp_path, [event("u", item) for item in "dbca"])
    assert [item for _, item, _ in triples(prepared)] == list("dbca")
    assert "timestamp" not in prepared.events


def test_order_below_a_second_counts(tmp_path: Path) -> None:
    prepared = run(tmp_path, [event("u", "a", 1.75), event("u", "b", 1.25), event("u", "c", 1.5)])
    assert [item for _, item, _ in triples(prepared)] == ["b", "c", "a"]
    assert prepared.events["timestamp"].tolist() == [1, 1, 1]


def test_values_and_context_columns_stay_with_their_event(tmp_path: Path) -> None:
    rows = [event("u", item, time, value=time / 2, hour=time, device=d, skipped=1) for time, (item, d) in REVERSED]
    columns = [
        {"name": "hour", "side": "context", "kind": "numeric"},
        {"name": "device", "side": "context", "kind": "categorical"},
    ]
    prepared = run(tmp_path, rows, features={"columns": columns})
    assert list(prepared.events) == ["user", "item", "split", "timestamp", "value", "hour", "device"]
    assert prepared.events["value"].tolist() == [0.5, 1.0, 1.5]
    assert prepared.events["hour"].tolist() == [1.0, 2.0, 3.0]
    assert prepared.events["device"].tolist() == ["phone", None, "päd"]


REVERSED = [(3, ("a", "päd")), (2, ("b", None)), (1, ("c", "phone"))]


# Repeats, baskets, filters


def test_masked_repeats_keep_the_first_of_a_pair(tmp_path: Path) -> None:
    rows = [event("u", item, time) for time, item in enumerate("abacb")]
    prepared = run(tmp_path, rows, evaluate={"repeats": "mask"})
    assert triples(prepared) == [("u", "a", 0), ("u", "b", 1), ("u", "c", 2)]
    assert prepared.report["problems"] == {"repeated pairs of user and item": 2}


def test_kept_repeats_are_all_there(tmp_path: Path) -> None:
    rows = [event("u", item, time) for time, item in enumerate("abacb")]
    prepared = run(tmp_path, rows, evaluate={"repeats": "keep"})
    assert [item for _, item, _ in triples(prepared)] == list("abacb")
    assert prepared.report["problems"] == {}


def test_the_last_basket_is_held_out_whole(tmp_path: Path) -> None:
    baskets = [(1, "ab"), (2, "c"), (3, "de"), (4, "fgh")]
    rows = [event("u", item, time) for time, basket in baskets for item in basket]
    rows += [event("two baskets", item, time) for time, basket in baskets[:2] for item in basket]
    prepared = run(tmp_path, rows, evaluate={"holdout": "basket"})
    assert prepared.events["split"].tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 0, 0, 0]


def test_rare_users_and_items_go_until_nothing_changes(tmp_path: Path) -> None:
    block = [event(user, item) for user in "uvw" for item in "abc"]
    # x has two items, but d is rare: without d, x is rare too, and then nothing of x is left.
    prepared = run(
        tmp_path,
        [event("x", "a"), event("x", "d"), *block],
        data={"min_user_interactions": 2, "min_item_interactions": 2},
    )
    assert prepared.user_ids.tolist() == ["u", "v", "w"]
    assert prepared.item_ids.tolist() == ["a", "b", "c"]
    assert prepared.report["problems"] == {"interactions of too rare users or items": 2}


# Items and users


def test_the_items_table_is_the_catalogue(tmp_path: Path) -> None:
    items = [
        {"item_id": item, "title": f"title {item}", "price": price}
        for item, price in zip("xabc", (1, 2, 3, 4), strict=True)
    ]
    prepared = run(tmp_path, [*THREE, event("u", "lost", 9)], [*items, items[1] | {"title": "again"}])
    assert prepared.item_ids.tolist() == ["x", "a", "b", "c"]
    assert prepared.items.column_names == ["item_id", "count", "title", "price"]
    assert prepared.items["count"].to_pylist() == [0, 1, 0, 0]
    assert prepared.items["title"].to_pylist() == ["title x", "title a", "title b", "title c"]
    assert prepared.items["price"].to_pylist() == [1.0, 2.0, 3.0, 4.0]
    assert prepared.report["cold_items"] == 3
    assert prepared.report["problems"] == {
        "items whose item_id came before": 1,
        "interactions with items that the items table lacks": 1,
    }


def test_columns_become_what_the_settings_read_them_as(tmp_path: Path) -> None:
    cells = {"colour": 7, "weight": "2.5", "tags": ["a", "b"], "price": "9", "stock": "no", "other": True}
    items = [{"item_id": item} | cells for item in "abc"]
    items[1] |= {"weight": "heavy"}
    columns = [
        {"name": "colour", "side": "item", "kind": "categorical"},
        {"name": "weight", "side": "item", "kind": "numeric"},
        {"name": "tags", "side": "item", "kind": "categorical", "separator": "|", "max_values": 2},
    ]
    roles = {"price": "price", "available": "stock"}
    prepared = run(tmp_path, THREE, items, features={"columns": columns}, data={"roles": roles})
    first, second, _ = prepared.items.to_pylist()
    assert first == {
        "item_id": "a",
        "count": 1,
        "colour": "7",
        "weight": 2.5,
        "tags": "a|b",
        "price": 9.0,
        "stock": 0.0,
        "other": 1.0,
    }
    assert second["weight"] is None
    assert prepared.report["problems"] == {"items whose weight is not a number": 1}


def test_users_without_a_row_of_their_own_have_empty_columns(tmp_path: Path) -> None:
    rows = [*THREE, *(event("v", item, 5) for item in "abc")]
    users = [{"user_id": "v", "age": 30}, {"user_id": "silent", "age": 9}]
    prepared = run(tmp_path, rows, users=users)
    assert prepared.users.to_pylist() == [
        {"user_id": "u", "count": 1, "age": None},
        {"user_id": "v", "count": 1, "age": 30.0},
    ]
    assert prepared.report["problems"] == {"users of interactions that the users table lacks": 1}


# Splits


def test_a_given_split_is_taken(tmp_path: Path) -> None:
    rows = [event("u", "a", 3, split="test"), event("u", "b", 1, split="Valid "), event("v", "c", 2, split="train")]
    prepared = run(tmp_path, rows, data={"split": {"kind": "given"}})
    assert triples(prepared) == [("u", "b", 1), ("u", "a", 2), ("v", "c", 0)]


TEN = [event("u" if time < 9 else "late", f"i{time}", time) for time in range(10)]


def test_temporal_knows_only_what_was_before_the_cut(tmp_path: Path) -> None:
    items = [{"item_id": f"i{time}"} for time in range(10)]
    prepared = run(tmp_path, TEN, items, data={"split": {"kind": "temporal"}})
    assert prepared.user_ids.tolist() == ["u"]
    assert triples(prepared)[0] == (None, "i9", 2)  # user index 0 comes first
    assert [split for _, _, split in triples(prepared)[1:]] == [0] * 8 + [1]
    assert prepared.items["count"].to_pylist() == [1] * 8 + [0, 0]
    values, offsets = prepared.ragged((2,))
    assert values.tolist() == []
    assert offsets.tolist() == [0, 0, 0]


def test_temporal_without_items_drops_items_after_the_cut(tmp_path: Path) -> None:
    rows = [*TEN, event("u", "i0", 8), event("u", "i1", 8), event("u", "i0", 9), *(event("u", "i1", 10) for _ in "ab")]
    prepared = run(tmp_path, rows, data={"split": {"kind": "temporal"}}, evaluate={"repeats": "keep"})
    assert prepared.item_ids.tolist() == [f"i{time}" for time in range(9)]
    assert prepared.report["splits"] == {"train": 11, "valid": 1, "test": 2}
    assert prepared.report["problems"] == {
        "valid and test interactions with items that are not in train or an items table": 1
    }


def test_events_of_one_time_stay_on_one_side_of_a_cut(tmp_path: Path) -> None:
    rows = [event(f"u{row}", "a", row // 4) for row in range(40)]
    prepared = run(tmp_path, rows, data={"split": {"kind": "temporal"}})
    sides = {
        (time, split)
        for time, split in zip(*(prepared.events[n].tolist() for n in ("timestamp", "split")), strict=True)
    }
    assert sides == {*((time, 0) for time in range(8)), (8, 1), (9, 2)}


def test_random_follows_the_seed_and_the_shares(tmp_path: Path) -> None:
    rows = [event(f"u{row % 50}", f"i{row}", row) for row in range(5000)]
    split = {"kind": "random", "valid": 0.2, "test": 0.1}
    parts = [
        run(tmp_path, rows, data={"split": split}, run={"name": "x", "seed": seed}).events["split"]
        for seed in (1, 1, 2)
    ]
    assert np.array_equal(parts[0], parts[1])
    assert not np.array_equal(parts[0], parts[2])
    assert np.bincount(parts[0]) / 5000 == pytest.approx([0.7, 0.2, 0.1], abs=0.02)


# The folder


def test_ragged_lists_are_oldest_first_and_list_zero_is_empty(tmp_path: Path) -> None:
    rows = [event("v", "c", 1), event("u", "b", 2), event("u", "a", 1), event("u", "d", 4), event("u", "c", 3)]
    prepared = run(tmp_path, rows)  # items: c=1 b=2 a=3 d=4
    values, offsets = prepared.ragged((0, 1))
    assert values.tolist() == [1, 3, 2, 1]
    assert offsets.tolist() == [0, 0, 1, 4]
    assert (values.dtype, offsets.dtype) == (np.int32, np.int64)


def test_what_is_loaded_is_what_was_prepared(tmp_path: Path) -> None:
    prepared = run(tmp_path, [event("ü", item, value=1.5) for item in "abc"])
    loaded = load(tmp_path / "prepared")
    assert loaded.report == prepared.report == json.loads((tmp_path / "prepared" / "report.json").read_text("utf-8"))
    assert triples(loaded) == triples(prepared)
    assert loaded.items.equals(prepared.items)
    report = prepared.report
    assert (report["interactions"], report["events"], report["users"], report["items"]) == (3, 3, 1, 3)
    assert report["splits"] == {"train": 1, "valid": 1, "test": 1}


def test_hashes_tell_contents_apart(tmp_path: Path) -> None:
    first, again = (run(tmp_path, THREE).report["hashes"] for _ in range(2))
    other = run(tmp_path, [*THREE[:2], event("u", "d", 2)]).report["hashes"]
    assert first == again
    assert (other["users"], other["events"]) == (first["users"], first["events"])
    assert other["items"] != first["items"]


def test_preparing_again_replaces_the_tables_and_leaves_nothing_beside(tmp_path: Path) -> None:
    run(tmp_path, THREE)
    assert run(tmp_path, [event("w", item) for item in "abcd"]).user_ids.tolist() == ["w"]
    assert sorted(os.listdir(tmp_path)) == ["interactions.parquet", "prepared"]
    assert sorted(os.listdir(tmp_path / "prepared")) == [
        "events.parquet",
        "items.parquet",
        "report.json",
        "users.parquet",
    ]


def test_a_failure_leaves_the_older_tables(tmp_path: Path) -> None:
    run(tmp_path, THREE)
    with pytest.raises(DataError):
        run(tmp_path, [event("u", "a", "never")])
    assert load(tmp_path / "prepared").item_ids.tolist() == ["a", "b", "c"]
    assert sorted(os.listdir(tmp_path)) == ["interactions.parquet", "prepared"]


# Errors


def test_unusable_interactions_are_dropped_and_named(tmp_path: Path) -> None:
    bad = [event("", "a", 1), event("u", "", 1), event("u", "a", None), event("u", "a", 5e12)]
    rows = [row | {"timestamp": row.get("timestamp")} for row in [*THREE, *bad]]
    prepared = run(tmp_path, rows)
    assert prepared.report["problems"] == {
        "interactions without user_id": 1,
        "interactions without item_id": 1,
        "interactions whose timestamp is neither epoch seconds nor a date": 2,
    }
    assert (prepared.report["interactions"], prepared.report["events"]) == (7, 3)


FEATURE = {"name": "colour", "side": "item", "kind": "categorical"}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"rows": [event("u", "a", "soon")]}, DataError, "some interactions must be left.*neither epoch seconds"),
        ({"rows": THREE[:2]}, DataError, "train, valid and test must each have events.*'valid': 0"),
        ({"rows": [{"user_id": "u", "item": "a"}]}, DataError, r"a column 'item_id'; got \['user_id', 'item'\]"),
        ({"items": [{"sku": "a"}]}, DataError, r"the items must have a column 'item_id'; got \['sku'\]"),
        ({"features": {"columns": [FEATURE]}}, DataError, r"columns of items need a table of items; got \['colour'\]"),
        (
            {"items": [{"item_id": "a", "title": "x"}], "features": {"columns": [FEATURE]}},
            DataError,
            r"the items must have a column 'colour'; got \['item_id', 'title'\]",
        ),
        (
            {"items": [{"item_id": "a"}], "data": {"roles": {"price": "cost"}}},
            DataError,
            "the items must have a column 'cost'",
        ),
        ({"items": [{"item_id": "a", "count": 3}]}, DataError, "must not have a column 'count'"),
        ({"features": {"columns": [FEATURE | {"side": "context"}]}}, DataError, "interactions must have a column 'col"),
        ({"features": {"columns": [FEATURE | {"side": "context", "name": "value"}]}}, ConfigError, "reserved name"),
        ({"data": {"split": {"kind": "given"}}}, DataError, 'split "given" needs a column split'),
        (
            {"rows": [row | {"split": "dev"} for row in THREE], "data": {"split": {"kind": "given"}}},
            DataError,
            r"must hold train, valid, test; got \['dev'\]",
        ),
        (
            {"rows": [event("u", "a")], "data": {"split": {"kind": "temporal"}}},
            DataError,
            'split "temporal" needs a column timestamp',
        ),
        (
            {"rows": [event("u", "a")], "evaluate": {"holdout": "basket"}},
            DataError,
            'holdout "basket" needs a column timestamp',
        ),
    ],
)
def test_what_cannot_be_prepared_says_why(
    tmp_path: Path, change: dict[str, Any], error: type[TfrecError], message: str
) -> None:
    with pytest.raises(error, match=message):
        run(tmp_path, **({"rows": THREE} | change))
    assert not (tmp_path / "prepared").exists()


def test_a_folder_with_other_things_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "prepared").mkdir()
    (tmp_path / "prepared" / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match="a new folder"):
        run(tmp_path, THREE)
    assert (tmp_path / "prepared" / "thesis.txt").read_text() == "mine"


def test_loading_what_is_not_prepared_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"must hold prepared tables.*tfrec prepare"):
        load(tmp_path)
