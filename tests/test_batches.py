from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfrec.data.batches import HistoryBatches
from tfrec.errors import TrainingError

HISTORIES = [[], [11, 12, 13], [21], [31, 32, 33, 34, 35, 36, 37], [41, 42]]  # list 0 is the unknown user's


def make(histories: list[list[int]] = HISTORIES, **settings: object) -> HistoryBatches:
    values = np.array([item for items in histories for item in items], np.int32)
    offsets = np.concatenate([[0], np.cumsum([len(items) for items in histories])]).astype(np.int64)
    return HistoryBatches(values, offsets, **{"length": 3, "batch": 2, "seed": 7, **settings})


def read(batches: HistoryBatches, epoch: int = 0, first_step: int = 0) -> list[dict[str, np.ndarray]]:
    return [{k: v.numpy() for k, v in batch.items()} for batch in batches.dataset(epoch, first_step)]


def rows(batches: HistoryBatches, epoch: int = 0) -> list[tuple[int, list[int], list[int]]]:
    """(user, history, target) of every row of an epoch, the filling of the last batch left out."""
    whole = {k: np.concatenate([batch[k] for batch in read(batches, epoch)]) for k in ("user", "history", "target")}
    found = zip(whole["user"].tolist(), whole["history"].tolist(), whole["target"].tolist(), strict=True)
    return list(found)[: len(batches._rows(epoch))]


def last_twin(histories: list[list[int]], length: int, first_event: bool) -> list[tuple[int, list[int], list[int]]]:
    """What targets = "last" must give, user by user, by slices of Python lists."""
    return [
        (user, ([0] * length + items[:end])[-length:], [items[end]])
        for user, items in enumerate(histories)
        for end in range(0 if first_event else 1, len(items))
    ]


def all_twin(user: int, items: list[int], end: int, length: int) -> tuple[int, list[int], list[int]]:
    """The row of targets = "all" that ends before ``end``."""
    window = ([0] * (length + 1) + items[:end])[-length - 1 :]
    return user, window[:-1], [after if before else 0 for before, after in itertools.pairwise(window)]


def test_a_row_by_hand() -> None:
    assert rows(make([[], [5, 6, 7]], batch=1)) == [(1, [0, 5, 6], [0, 6, 7])]
    assert rows(make([[], [5, 6, 7]], batch=1, first_event=True)) == [(1, [0, 5, 6], [5, 6, 7])]
    assert sorted(rows(make([[], [5, 6, 7]], batch=1, targets="last"))) == [(1, [0, 0, 5], [6]), (1, [0, 5, 6], [7])]


@pytest.mark.parametrize("first_event", [False, True])
def test_last_equals_brute_force(first_event: bool) -> None:
    batches = make(targets="last", first_event=first_event)
    assert sorted(rows(batches)) == sorted(last_twin(HISTORIES, 3, first_event))


def test_every_event_is_a_target_once_an_epoch_when_windows_cover() -> None:
    batches = make(length=6)
    for epoch in range(3):
        targets = Counter(t for _, _, target in rows(batches, epoch) for t in target if t)
        assert targets == Counter([12, 13, 32, 33, 34, 35, 36, 37, 42])


def test_windows_of_a_long_history_reach_its_first_and_last_event() -> None:
    batches = make(windows=5)
    seen = [row for epoch in range(20) for row in rows(batches, epoch)]
    possible = [all_twin(3, HISTORIES[3], end, 3) for end in range(4, 8)]
    ours = [row for row in seen if row[0] == 3]
    assert len(ours) == 20 * 5
    assert all(row in ours for row in possible)
    assert all(row in possible for row in ours)


def test_order_is_a_function_of_seed_epoch_and_step() -> None:
    def order(seed: int, epoch: int) -> str:
        return str(read(make(seed=seed, windows=3, batch=3), epoch))

    assert order(1, 4) == order(1, 4)
    assert len({order(seed, epoch) for seed in range(3) for epoch in range(3)}) == 9


@pytest.mark.parametrize("targets", ["all", "last"])
def test_from_a_later_step_come_the_same_batches(targets: str) -> None:
    batches = make(targets=targets)
    whole = read(batches, epoch=2)
    assert len(whole) == batches.steps
    for step in range(batches.steps):
        np.testing.assert_equal(read(batches, 2, step), whole[step:])


def test_a_batch_larger_than_the_data_repeats_rows() -> None:
    batches = make([[], [1, 2], [3, 4]], batch=5)
    (batch,) = read(batches)
    assert batch["history"].shape == (5, 3)
    assert sorted(Counter(batch["user"].tolist()).values()) == [2, 3]


def test_shapes_are_static_for_strategies_and_compilers() -> None:
    shapes = {k: (v.shape.as_list(), v.dtype.name) for k, v in make(batch=4).dataset(0).element_spec.items()}
    assert shapes == {"user": ([4], "int32"), "history": ([4, 3], "int32"), "target": ([4, 3], "int32")}
    assert make(batch=4, targets="last").dataset(0).element_spec["target"].shape == [4, 1]


@pytest.mark.parametrize("histories", [[[]], [[], [], []], [[], [1], [2]]])
def test_a_user_with_two_events_is_needed(histories: list[list[int]]) -> None:
    with pytest.raises(TrainingError, match=r"two events.*got '\d events'"):
        make(histories)


def test_one_event_is_enough_with_first_event() -> None:
    assert rows(make([[], [9]], batch=1, first_event=True)) == [(1, [0, 0, 0], [0, 0, 9])]
    with pytest.raises(TrainingError, match="at least one event"):
        make([[], []], first_event=True)


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 99), max_size=7), min_size=1, max_size=5),
    st.integers(1, 5),
    st.integers(1, 7),
    st.integers(1, 3),
    st.booleans(),
    st.integers(0, 3),
)
def test_every_row_is_a_window_of_its_user(
    lists: list[list[int]], length: int, batch: int, windows: int, first_event: bool, epoch: int
) -> None:
    histories = [[], *lists, [1, 2]]
    batches = make(histories, length=length, batch=batch, windows=windows, first_event=first_event)
    counts: Counter[int] = Counter()
    for user, history, target in rows(batches, epoch):
        counts[user] += 1
        items = histories[user]
        ends = [len(items)] if len(items) <= length + 1 else range(length + 1, len(items) + 1)
        twins = [all_twin(user, items, end, length) for end in ends]
        if first_event:
            assert (history, [t for t, h in zip(target, history, strict=True) if h]) in [
                (h, [x for x, y in zip(t, h, strict=True) if y]) for _, h, t in twins
            ]
        else:
            assert (user, history, target) in twins
    shortest = 1 if first_event else 2
    assert counts == {
        user: windows if len(items) > length + 1 else 1
        for user, items in enumerate(histories)
        if len(items) >= shortest
    }
