"""Folds in time against a walk over each user's events."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tfrec.data.folds import rolling


def test_folds_by_hand() -> None:
    events = {"user": np.array([1] * 6 + [2] * 2), "split": np.array([0, 0, 0, 0, 1, 1, 0, 2])}
    first, second = rolling(events, 2)
    assert first.tolist() == [0, 0, 1, 1, 3, 3, 0, 3]
    assert second.tolist() == [0, 0, 0, 0, 1, 1, 0, 3]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=25), st.integers(1, 5))
def test_a_fold_trains_on_the_past_and_never_on_test(rows: list[tuple[int, int]], folds: int) -> None:
    ordered = sorted(rows)
    users, splits = (np.array(column) for column in zip(*ordered, strict=True))
    measured = np.zeros(len(users), int)
    for split in rolling({"user": users, "split": splits}, folds):
        assert not np.isin(split[splits == 2], (0, 1)).any()
        measured += split == 1
        for user in set(users):
            own = split[(users == user) & (splits < 2)]
            assert own.tolist() == sorted(own)  # train, then valid, then what is unused
    assert measured.max(initial=0) <= 1
