from __future__ import annotations

import numpy as np

from tfrec.evaluation import ragged as ragged_lists
from tfrec.evaluation.holdouts import baskets, last_items, make_holdout

ROWS = [  # user, item, split
    (0, 9, 0), (0, 8, 1),
    (1, 1, 0), (1, 2, 0), (1, 3, 1), (1, 4, 2),
    (2, 5, 0), (2, 6, 2), (2, 5, 2), (2, 6, 2),
    (3, 7, 1),
]  # fmt: skip
EVENTS = {
    name: np.array(column, np.int32)
    for name, column in zip(("user", "item", "split"), zip(*ROWS, strict=True), strict=True)
}


def lists(ragged: tuple[np.ndarray, np.ndarray]) -> list[list[int]]:
    return [part.tolist() for part in np.split(ragged[0], ragged[1][1:-1])]


def test_valid_queries_by_hand() -> None:
    holdout = make_holdout(EVENTS, users=4, split=1, repeats="mask")
    assert holdout.users.tolist() == [1, 3]  # user 0 is unknown: no query
    assert lists(holdout.history) == [[1, 2], []]
    assert lists(holdout.targets) == [[3], [7]]
    assert lists(holdout.mask) == [[1, 2], []]


def test_test_queries_read_valid_and_count_a_repeated_target_once() -> None:
    holdout = make_holdout(EVENTS, users=4, split=2, repeats="keep")
    assert holdout.users.tolist() == [1, 2]
    assert lists(holdout.history) == [[1, 2, 3], [5]]
    assert [sorted(targets) for targets in lists(holdout.targets)] == [[4], [5, 6]]
    assert lists(holdout.mask) == [[], []]


def test_nobody_is_asked_when_a_split_is_empty() -> None:
    train = {name: column[EVENTS["split"] == 0] for name, column in EVENTS.items()}
    assert len(make_holdout(train, 4, 1, "mask")) == 0


def test_last_items_by_hand() -> None:
    ragged = np.array([1, 2, 3, 4, 5], np.int32), np.array([0, 0, 1, 5])
    assert last_items(ragged, 3).tolist() == [[0, 0, 0], [0, 0, 1], [3, 4, 5]]
    nothing = np.zeros(0, np.int32), np.zeros(3, np.int64)
    assert last_items(nothing, 2).tolist() == [[0, 0], [0, 0]]


def test_baskets_are_runs_of_one_user_and_time() -> None:
    columns = {"user": [0, 1, 1, 1, 1, 2, 2], "timestamp": [5, 5, 5, 7, 7, 7, 9], "split": [0, 0, 0, 0, 1, 0, 0]}
    events = {name: np.array(column) for name, column in columns.items()}
    assert baskets(events, (0, 1), "basket").tolist() == [0, 0, 1, 1, 2, 3]
    assert baskets(events, (0,), "basket").tolist() == [0, 0, 1, 2, 3]
    assert baskets(events, (0,), "item").tolist() == [0, 1, 2, 3, 4]


def test_the_last_values_of_each_list() -> None:
    ragged = np.array([1, 2, 3, 4, 5], np.int32), np.array([0, 0, 1, 5])
    assert lists(ragged_lists.last(ragged, 2)) == [[], [1], [4, 5]]
    assert lists(ragged_lists.last(ragged, 0)) == [[], [], []]
