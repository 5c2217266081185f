"""Events in row groups: whole users, whole files, and a sample that is one of users."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfrec.data import groups
from tfrec.data.groups import EventGroups
from tfrec.errors import DataError


def table(sizes: list[int], strangers: int = 0) -> pa.Table:
    """So many events of each user from 1 on, after those of user 0; items count up."""
    user = np.repeat(np.arange(len(sizes) + 1), [strangers, *sizes]).astype(np.int32)
    return pa.table({"user": user, "item": np.arange(len(user), dtype=np.int32), "split": np.zeros(len(user), np.int8)})


def write(path: Path, events: pa.Table, size: int, batch: int = 3) -> EventGroups:
    groups.write(path, events.schema, events.to_batches(max_chunksize=batch), size)
    return EventGroups((path,))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 9), max_size=12),
    st.integers(0, 9),
    st.integers(1, 6),
    st.integers(1, 7),
)
def test_row_groups_hold_whole_users(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], strangers: int, size: int, batch: int
) -> None:
    events = table(sizes, strangers)
    found = write(tmp_path_factory.mktemp("groups") / "events.parquet", events, size, batch)
    users = [set(found.read(group, ["user"])["user"].tolist()) - {0} for group in range(len(found))]
    assert sum(len(part) for part in users) == len(sizes)
    assert set().union(*users) == set(range(1, len(sizes) + 1))
    assert all(group.events <= max(size, *sizes, 0) if sizes else group.events <= size for group in found.groups)
    assert {name: column.tolist() for name, column in found.whole().items()} == events.to_pydict()


def test_a_group_has_at_most_so_many_events_unless_one_user_has_more(tmp_path: Path) -> None:
    found = write(tmp_path / "events.parquet", table([2, 2, 7, 1], strangers=5), size=4)
    assert [group.events for group in found.groups] == [4, 3, 2, 7, 1]


def test_bytes_are_those_of_the_arrays(tmp_path: Path) -> None:
    found = write(tmp_path / "events.parquet", table([3, 4]), size=4)
    assert found.bytes() == sum(column.nbytes for column in found.whole().values()) == 7 * 9


def test_a_sample_holds_all_events_of_some_users(tmp_path: Path) -> None:
    events = table([1 + user % 5 for user in range(2_000)], strangers=20)
    found = write(tmp_path / "events.parquet", events, size=100, batch=500)
    whole, part = found.whole(), found.sample(0.3, seed=1)
    drawn = np.unique(part["user"])
    assert 500 < len(drawn) < 700
    assert 0 not in drawn
    kept = np.isin(whole["user"], drawn)
    assert all(np.array_equal(part[name], whole[name][kept]) for name in whole)
    assert not np.array_equal(drawn, np.unique(found.sample(0.3, seed=2)["user"]))
    assert len(found.sample(1.0, seed=1)["user"]) == np.count_nonzero(whole["user"])
    assert len(found.sample(0.0, seed=1)["user"]) == 0


def test_strings_and_nulls_of_a_context_column_come_back(tmp_path: Path) -> None:
    events = table([2, 2]).append_column("device", pa.array(["päd", None, "päd", "phone"]))
    found = write(tmp_path / "events.parquet", events, size=2)
    assert found.whole()["device"].tolist() == ["päd", None, "päd", "phone"]
    assert found.read(1, ["device"])["device"].tolist() == ["päd", "phone"]


def test_user_aligned_groups_are_needed(tmp_path: Path) -> None:
    pq.write_table(table([3, 3]), tmp_path / "events.parquet", row_group_size=2)
    with pytest.raises(DataError, match=r"row group must hold whole users.*events\.parquet.*tfrec prepare"):
        EventGroups((tmp_path / "events.parquet",)).require_whole_users()
    write(tmp_path / "good.parquet", table([3, 3], strangers=5), size=3).require_whole_users()


@pytest.mark.parametrize("damage", ["absent", "empty", "cut", "flipped"])
def test_a_damaged_file_is_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "events.parquet"
    write(path, table([50] * 40), size=1_000)
    content = bytearray(path.read_bytes())
    if damage == "absent":
        path.unlink()
    elif damage == "flipped":
        content[200] ^= 1
        path.write_bytes(content)
    else:
        path.write_bytes(content[: 0 if damage == "empty" else len(content) // 2])
    with pytest.raises(DataError, match=r"must be whole.*events\.parquet"):
        found = EventGroups((path,))
        for group in range(len(found)):
            found.read(group, found.columns)
