"""What peers are trained on and how they are measured; the peers themselves are other packages."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tables
from hypothesis import given, settings
from hypothesis import strategies as st
from ragged_lists import lists

from tfrec import config
from tfrec.data import prepare
from tfrec.errors import DataError

PEERS = Path(__file__).parents[1] / "benchmarks" / "peers"
ROWS = [  # user, item, split
    (1, 1, 0), (1, 2, 0), (1, 3, 1), (1, 4, 2),
    (2, 2, 0), (2, 4, 1), (2, 1, 2),
]  # fmt: skip
SCORES = np.array([[0, 0, 0, 0, 0, 0], [0, 9, 9, 9, 9, 9], [0, 7, 9, 7, 9, 8]], np.float32)  # by user


@pytest.fixture
def protocol(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return module("protocol", monkeypatch)


def module(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(PEERS))
    return __import__(name)


def folder(path: Path, repeats: str = "mask") -> Path:
    user, item, split = (pa.array(column, pa.int32()) for column in zip(*ROWS, strict=True))
    pq.write_table(pa.table({"user": user, "item": item, "split": split}), path / "events.parquet")
    pq.write_table(pa.table({"count": [1, 2, 0, 0, 0]}), path / "items.parquet")
    pq.write_table(pa.table({"count": [2, 1]}), path / "users.parquet")
    (path / "report.json").write_text(json.dumps({"settings": {"repeats": repeats}}), encoding="utf-8")
    return path


def recommender(queries):
    return lambda rows: SCORES[queries.users[rows]]


def test_measured_by_hand(protocol: ModuleType, tmp_path: Path) -> None:
    means, ndcg = protocol.Prepared.read(folder(tmp_path)).test(recommender, (1, 10))
    # user 1: 1, 2 and 3 are masked, 5 ties with target 4; user 2: 2 and 4 are masked, 5 is above target 1, 3 ties
    assert ndcg.tolist() == pytest.approx([1 / np.log2(2.5), 1 / np.log2(3.5)])
    assert means["ndcg@10"] == pytest.approx(ndcg.mean())
    assert (means["hr@1"], means["hr@10"], means["coverage@10"]) == (0.5, 1.0, 0.8)  # nobody may see item 2


def test_repeats_that_are_kept_compete(protocol: ModuleType, tmp_path: Path) -> None:
    means, ndcg = protocol.Prepared.read(folder(tmp_path, "keep")).test(recommender, (10,))
    assert ndcg.tolist() == pytest.approx([1 / np.log2(4), 1 / np.log2(5.5)])
    assert means["hr@10"] == 1


def test_chosen_on_valid(protocol: ModuleType, tmp_path: Path) -> None:
    # user 1: target 3 ties with 4 and 5; user 2: target 4 stands alone above 5, 1 and 3
    assert protocol.Prepared.read(folder(tmp_path)).choose(recommender) == pytest.approx((1 / np.log2(3) + 1) / 2)


def test_reads_what_prepare_wrote(protocol: ModuleType, tmp_path: Path) -> None:
    prepared = prepare.prepare(config.load(tables.shop(tmp_path)), tmp_path / "prepared")
    read = protocol.Prepared.read(tmp_path / "prepared")
    assert (read.users, read.items, read.repeats) == (len(prepared.user_ids), len(prepared.item_ids), "mask")
    assert read.counts.tolist() == [0, *prepared.items["count"].to_pylist()]
    for mine, theirs in zip(read.lists(0, 1), prepared.ragged((0, 1)), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_a_folder_without_tables_is_refused(protocol: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"prepared tables; got .*Run tfrec prepare"):
        protocol.Prepared.read(tmp_path)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 13), max_size=5), st.integers(2, 6), st.integers(0, 1), st.integers(0, 99))
def test_windows_hold_every_item_or_succession_once(sizes: list[int], length: int, shared: int, seed: int) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        windows = module("windows", monkeypatch).windows
    ends = np.cumsum([0, *sizes])
    rows = [list(range(low + 1, high + 1)) for low, high in itertools.pairwise(ends)]
    found = windows(lists(*rows), length, shared, np.random.default_rng(seed))
    assert found.shape[1] == length and (found > 0).sum(1).min(initial=9) > shared
    kept = [row[row > 0].tolist() for row in found]
    assert [[*items, *[0] * (length - len(items))] for items in kept] == found.tolist()
    runs = [tuple(items[i : i + shared + 1]) for items in kept for i in range(len(items) - shared)]
    assert runs == [tuple(row[i : i + shared + 1]) for row in rows for i in range(len(row) - shared)]
    whole = [row for row in rows if shared < len(row) <= length]
    assert [row for row in kept if row in whole] == whole
