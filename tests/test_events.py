"""What is counted on the way to the file, against plain Python; a cut changes nothing."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from tfrec.data.events import Tally

USERS, ITEMS = 4, 5
ROWS = st.lists(
    st.tuples(st.integers(0, USERS), st.integers(1, ITEMS), st.integers(0, 2), st.sampled_from(["ü", "", None])),
    min_size=1,
    max_size=30,
)


def table(rows: list[tuple[int, int, int, str | None]]) -> pa.Table:
    user, item, split, device = zip(*rows, strict=True)
    numbers = {"user": pa.array(user, pa.int32()), "item": pa.array(item, pa.int32())}
    return pa.table({**numbers, "split": pa.array(split, pa.int8()), "device": pa.array(device, pa.string())})


def tally_of(*parts: pa.Table) -> Tally:
    tally = Tally(np.zeros(USERS, np.int64), np.zeros(ITEMS, np.int64), parts[0].column_names)
    for part in parts:
        tally.add(part)
    return tally


@settings(max_examples=40, deadline=None)
@given(ROWS, st.integers(0, 30))
def test_counts_are_those_of_plain_python_however_events_are_cut(
    rows: list[tuple[int, int, int, str | None]], cut: int
) -> None:
    events = table(rows)
    whole, parts = tally_of(events), tally_of(events.slice(0, cut), events.slice(cut))
    users, items = (Counter(row[place] for row in rows if row[2] == 0) for place in (0, 1))
    for tally in (whole, parts):
        assert tally.users.tolist() == [users[user] for user in range(1, USERS + 1)]
        assert tally.items.tolist() == [items[item] for item in range(1, ITEMS + 1)]
        assert tally.splits.tolist() == [Counter(row[2] for row in rows)[split] for split in range(3)]
    assert whole.hash() == parts.hash()


def test_another_column_is_another_hash() -> None:
    rows = [(1, 1, 0, "a"), (1, 2, 1, "b")]
    other = table([(1, 1, 0, "a"), (1, 2, 1, None)])
    assert tally_of(table(rows)).hash() != tally_of(other).hash()
    assert tally_of(table(rows)).hash() != tally_of(table(rows[::-1])).hash()
