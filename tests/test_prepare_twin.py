"""Preparing: random tables against a plain twin, and the public sets as they are published."""

from __future__ import annotations

import os
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_prepare import event, run, triples

from tfrec.config import validate
from tfrec.data.prepare import Prepared, prepare
from tfrec.errors import DataError

EVENTS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 6), st.integers(0, 4)), min_size=3, max_size=40)


def split_by_hand(rows: list[tuple[Any, Any, int]]) -> list[tuple[Any, Any, int, int]]:
    """(user, item, time, split) by leave-last-out over the first of each pair, in plain Python."""
    seen, histories = set(), defaultdict(list)
    for user, item, time in sorted(rows, key=lambda row: row[2]):  # stable: ties keep their order
        if (user, item) not in seen:
            seen.add((user, item))
            histories[user].append((user, item, time))
    found = []
    for history in histories.values():
        ends = [1, 2] if len(history) >= 3 else [0, 0]
        splits = [0] * (len(history) - 2) + ends
        found += [(*row, split) for row, split in zip(history, splits[-len(history) :], strict=True)]
    return found


def prepared_rows(rows: list[tuple[str, str, int]]) -> list[tuple[str | None, str, int, int]]:
    with tempfile.TemporaryDirectory() as folder:
        prepared = run(Path(folder), [event(*row) for row in rows])
        times = prepared.events["timestamp"].tolist()
        return [(user, item, time, split) for (user, item, split), time in zip(triples(prepared), times, strict=True)]


@settings(max_examples=15, deadline=None)
@given(rows=EVENTS, names=st.permutations("gfedcba"))
def test_leave_last_out_equals_its_plain_twin_whatever_the_items_are_called(
    rows: list[tuple[int, int, int]], names: list[str]
) -> None:
    named = [*((f"u{user}", names[item], time) for user, item, time in rows)]
    named += [("anchor", item, time) for time, item in enumerate("abc")]  # so that no split is empty
    assert sorted(prepared_rows(named)) == sorted(split_by_hand(named))


def reference(folder: Path, source: str, **sections: Any) -> Prepared:
    if not os.environ.get("TFREC_DATA"):
        pytest.skip("TFREC_DATA names no folder of public data sets")
    config = {"run": {"name": "x"}, "model": {"text": "none"}, "data": {"source": source}, **sections}
    return prepare(validate(config), folder / "prepared")


def test_amazon_industrial_is_the_published_split(tmp_path: Path) -> None:
    data = {"source": "amazon-industrial", "split": {"kind": "given"}}
    given_split = reference(tmp_path, "amazon-industrial", data=data)
    assert (given_split.report["users"], given_split.report["items"]) == (3270, 3686)
    assert given_split.report["splits"] == {"train": 15096, "valid": 3270, "test": 3270}
    ours = reference(tmp_path, "amazon-industrial")
    assert np.array_equal(ours.events["split"], given_split.events["split"])


def test_online_retail_holds_out_last_baskets(tmp_path: Path) -> None:
    prepared = reference(tmp_path, "online-retail", evaluate={"repeats": "keep", "holdout": "basket"})
    assert (prepared.report["users"], prepared.report["items"], prepared.report["events"]) == (4941, 4256, 544619)
    test = prepared.events["split"] == 2
    baskets = set(zip(prepared.events["user"][test].tolist(), prepared.events["timestamp"][test].tolist(), strict=True))
    assert len(baskets) == len({user for user, _ in baskets})


def test_ml_100k_has_943_users_and_1682_films(tmp_path: Path) -> None:
    try:
        prepared = reference(tmp_path, "ml-100k")
    except DataError as error:
        pytest.skip(f"ml-100k cannot be fetched here: {error}")
    assert (prepared.report["users"], prepared.report["items"], prepared.report["events"]) == (943, 1682, 100_000)
    assert prepared.report["splits"] == {"train": 98_114, "valid": 943, "test": 943}
    assert prepared.report["notes"]
