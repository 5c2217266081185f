"""Splits against plain Python."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfrec.config import Split
from tfrec.data import splits
from tfrec.errors import DataError


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 25), min_size=1, max_size=4), st.sampled_from([0.1, 0.2, 0.3]))
def test_per_user_cuts_each_users_events_in_time(sizes: list[int], share: float) -> None:
    users = np.repeat(np.arange(1, len(sizes) + 1, dtype=np.int32), sizes)
    found = splits.by_user(users, None, Split(kind="per_user", valid=share, test=share), "item")
    assert found.dtype == np.int8
    for i, size in enumerate(sizes, 1):
        held = round(share * 10) * size // 10
        assert found[users == i].tolist() == [0] * (size - 2 * held) + [1] * held + [2] * held


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=5), min_size=1, max_size=4))
def test_the_last_baskets_and_the_last_items_are_held_out(baskets: list[list[int]]) -> None:
    rows = [(user, time) for user, sizes in enumerate(baskets, 1) for time, n in enumerate(sizes) for _ in range(n)]
    users, times = (np.array([row[i] for row in rows]) for i in (0, 1))
    last_out = Split(kind="leave_last_out")
    for holdout, units in (("basket", [len(sizes) for sizes in baskets]), ("item", [sum(sizes) for sizes in baskets])):
        found = splits.by_user(users, times, last_out, holdout)
        for user, count in enumerate(units, 1):
            own = times[users == user] if holdout == "basket" else np.arange(count)
            expected = [0 if count < 3 or unit < count - 2 else unit - count + 3 for unit in own]
            assert found[users == user].tolist() == expected


def test_baskets_need_times() -> None:
    with pytest.raises(DataError, match="basket"):
        splits.by_user(np.array([1, 1]), None, Split(kind="leave_last_out"), "basket")


def test_nothing_is_split_into_nothing() -> None:
    assert splits.by_user(np.zeros(0, np.int32), None, Split(), "item").tolist() == []
