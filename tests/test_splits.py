"""Splits against plain Python."""

from __future__ import annotations

import ibis
import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from tfrec.config import Split
from tfrec.data import splits


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 25), min_size=1, max_size=4), st.sampled_from([0.1, 0.2, 0.3]))
def test_per_user_cuts_each_users_events_in_time(sizes: list[int], share: float) -> None:
    users = [f"u{i}" for i, size in enumerate(sizes) for _ in range(size)]
    order = np.random.default_rng(len(users)).permutation(len(users))
    frame = {"user": users, "_order": order.tolist(), "item": order.tolist()}
    events = splits.assign(ibis.memtable(pa.table(frame)), Split(kind="per_user", valid=share, test=share), "item", 0)
    found = events.to_pyarrow().to_pylist()
    for i, size in enumerate(sizes):
        own = [row["split"] for row in sorted(found, key=lambda row: row["_order"]) if row["user"] == f"u{i}"]
        held = round(share * 10) * size // 10
        assert own == [0] * (size - 2 * held) + [1] * held + [2] * held
