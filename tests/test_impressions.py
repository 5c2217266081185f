"""Rows, labels, weights, batches and negatives of a ranker."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfrec.data.impression_batches import ImpressionBatches
from tfrec.data.impressions import (
    EventLog,
    Impressions,
    check_classes,
    event_names,
    make_labels,
    row_weights,
)
from tfrec.data.sampling import Sampler, pairs, popularity_weights
from tfrec.errors import DataError, TrainingError
from tfrec.ranker_config import Task

# User 1 has items 1 to 5, user 2 has 6 to 8, a stranger (0) has 9; sorted by user.
EVENTS = {
    "user": np.array([0, 1, 1, 1, 1, 1, 2, 2, 2], np.int32),
    "item": np.array([9, 1, 2, 3, 4, 5, 6, 7, 8], np.int32),
    "split": np.array([2, 0, 0, 0, 1, 2, 0, 1, 2], np.int8),
    "value": np.array([5.0, 1, 2, 3, 4, 5, 1, 5, 2]),
}
KINDS = np.array([5, 1, 2, 3, 4, 5, 1, 5, 2])
LABELS = make_labels(EVENTS, [Task(positive=3.0)])
ONES = np.ones(9, np.float32)


def look(rows: Impressions) -> list[list[int]]:
    return [rows.history.items[a:b].tolist() for a, b in zip(rows.start, rows.end, strict=True)]


def train(splits: tuple[int, ...] = (0,), weights: np.ndarray = ONES) -> Impressions:
    return EventLog(EVENTS, {}, LABELS, weights, KINDS).training_rows(splits)


def held_out(split: int) -> Impressions:
    return EventLog(EVENTS, {}, LABELS, ONES, KINDS).held_out_rows(split)


def test_a_training_row_sees_its_users_rows_before_it() -> None:
    rows = train()
    assert rows.columns["item"].tolist() == [1, 2, 3, 6]
    assert look(rows) == [[], [1], [1, 2], []]
    assert look(train((0, 1))) == [[], [1], [1, 2], [1, 2, 3], [], [6]]


def test_a_held_out_row_sees_no_held_out_row() -> None:
    assert look(held_out(1)) == [[1, 2, 3], [6]]
    assert held_out(2).columns["item"].tolist() == [9, 5, 8]
    assert look(held_out(2)) == [[], [1, 2, 3, 4], [6, 7]]  # a stranger has no history


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=20))
def test_look_backs_equal_a_walk_over_the_events(rows: list[tuple[int, int]]) -> None:
    users, splits = (np.array(column) for column in zip(*sorted(rows, key=lambda row: row[0]), strict=True))
    events = {"user": users, "item": np.arange(1, len(users) + 1), "split": splits}
    log = EventLog(events, {}, np.zeros((len(users), 1)), *[np.zeros(len(users))] * 2)
    place = range(len(users))
    expected = [
        [j + 1 for j in place[:i] if users[j] == users[i] > 0 and splits[j] < 2] for i in place if splits[i] < 2
    ]
    assert look(log.training_rows((0, 1))) == expected
    known = [[j + 1 for j in place if users[j] == users[i] > 0 and splits[j] < 2] for i in place if splits[i] == 2]
    assert look(log.held_out_rows(2)) == known


def test_labels_by_hand() -> None:
    events = {"value": np.array([1, 4, np.nan, 5.0]), "click": np.array([0, 1, 1, np.nan])}
    tasks = [Task(positive=4.0), Task(name="click", column="click"), Task(name="stars", kind="number")]
    got = make_labels(events, tasks)
    expected = [[0, 0, 1], [1, 1, 4], [np.nan, 1, np.nan], [1, np.nan, 5]]
    np.testing.assert_array_equal(got, expected)


STAY = Task(name="stay", column="days", kind="survival", observed="left", period=7.0, periods=3, horizon=2)


def test_labels_of_survival_by_hand() -> None:
    days = np.array([0, 6.9, 7, 13, 14, 20.9, 21, 99, np.nan, 3])
    left = np.array([1, 0, 1, 0, 0, 1, 1, 0, 1, np.nan])
    got = make_labels({"days": days, "left": left}, [STAY])[:, 0]
    # Seen to leave in week 0, 1 and 2; lost from sight after 0, 1 and 2 whole weeks; stayed all three.
    np.testing.assert_array_equal(got, [0, 0.5, 1, 1.5, 2.5, 2, 3.5, 3.5, np.nan, np.nan])


@pytest.mark.parametrize(
    ("days", "left", "message"),
    [
        ([-1.0], [1.0], "times of task stay must not be negative; got -1.0"),
        ([np.inf], [1.0], "labels of task stay must be finite"),
        ([1.0], [2.0], "left of task stay must be 0 or 1; got 2.0"),
    ],
)
def test_spells_that_break_a_rule_are_refused(days: list[float], left: list[float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        make_labels({"days": np.array(days), "left": np.array(left)}, [STAY])


def test_survival_in_which_nobody_is_seen_to_leave_is_refused() -> None:
    check_classes(np.array([[0.0], [1.5]]), [STAY], "train")
    with pytest.raises(
        DataError, match=r"task stay needs leavings and stays in train; got \{'leavings': 0, 'stays': 2"
    ):
        check_classes(np.array([[1.5], [2.5], [0.5]]), [STAY], "train")


@pytest.mark.parametrize(
    ("column", "task", "message"),
    [
        ([0.0, 2.0], Task(), "labels of task like must be 0 or 1; got 2.0. Set positive"),
        ([0.0, np.inf], Task(positive=1.0), "must be finite; got inf"),
        ([1.0, -2.0], Task(kind="value"), "must not be negative; got -2.0"),
        (["a", "b"], Task(), "task like reads numbers; value does not hold any"),
    ],
)
def test_labels_that_break_a_rule_are_refused(column: list[Any], task: Task, message: str) -> None:
    with pytest.raises(DataError, match=message):
        make_labels({"value": np.array(column)}, [task])


def test_a_task_of_one_class_is_refused() -> None:
    labels = np.array([[1, 0], [1, 1], [np.nan, 0]], np.float32)
    tasks = [Task(), Task(name="buy")]
    check_classes(labels[:, 1:], tasks[1:], "train")
    with pytest.raises(
        DataError, match=r"task like needs positives and negatives in train; got \{'positives': 2, 'neg"
    ):
        check_classes(labels, tasks, "train")


def test_kinds_of_events_are_named_as_people_write_them() -> None:
    assert event_names(np.array([4.0, 2.5, np.nan])).tolist() == ["4", "2.5", ""]
    assert event_names(np.array([" view", None, "buy"], object)).tolist() == ["view", "", "buy"]


def test_weights_follow_kind_and_age() -> None:
    day = 86_400
    events = {"split": np.array([0, 0, 2]), "timestamp": np.array([0, 2 * day, 9 * day])}
    names = np.array(["buy", "view", "buy"], object)
    np.testing.assert_allclose(row_weights(events, names, {"buy": 3.0}, 2.0), [1.5, 1, 3])
    np.testing.assert_allclose(row_weights(events, None, {}, None), [1, 1, 1])
    with pytest.raises(DataError, match="half_life_days needs a column timestamp"):
        row_weights({"split": np.array([0])}, None, {}, 1.0)


# Batches


def batches(rows: Impressions, **more: Any) -> ImpressionBatches:
    return ImpressionBatches(rows, **{"batch": 3, "seed": 1, "length": 2, **more})


def read(data: ImpressionBatches, epoch: int = 0, first: int = 0) -> list[dict[str, np.ndarray]]:
    return [{name: value.numpy() for name, value in batch.items()} for batch in data.dataset(epoch, first)]


def test_every_row_comes_once_with_its_history_and_label() -> None:
    rows = train((0, 1), weights=np.arange(9, dtype=np.float32))
    found = read(batches(rows))
    assert [b["history"].shape for b in found] == [(3, 2)] * 2
    seen = {
        int(item): (h.tolist(), k.tolist(), float(y[0]), float(w))
        for b in found
        for item, h, k, y, w in zip(b["item"], b["history"], b["history_event"], b["label"], b["weight"], strict=True)
    }
    assert seen[4] == ([2, 3], [2, 3], 1.0, 4.0)
    assert seen[2] == ([0, 1], [0, 1], 0.0, 2.0)
    assert seen[6] == ([0, 0], [0, 0], 0.0, 6.0)
    assert seen.keys() == {1, 2, 3, 4, 6, 7}


def test_history_comes_with_its_age_at_the_time_of_the_row() -> None:
    times = np.array([50, 600, 660, 840, 0, 1260, 1, 2, 3]) * 60
    log = EventLog(EVENTS | {"timestamp": times}, {}, LABELS, ONES, KINDS)
    ages = {
        int(b["item"][i]): b["history_age"][i].tolist()
        for b in read(batches(log.training_rows((0, 1))))
        for i in (0, 1, 2)
    }
    assert ages[3] == [1 + 7, 1 + 7]  # items 1 and 2 are 240 and 180 minutes old
    assert ages[2] == [0, 1 + 5] and ages[1] == [0, 0]
    assert read(batches(log.held_out_rows(2), batch=1, shuffle=False))[1]["history_age"].tolist() == [[1 + 8, 0]]
    assert not read(batches(train()))[0]["history_age"].any()  # nothing is known without times


def test_an_epoch_is_a_function_of_seed_epoch_and_step() -> None:
    data = batches(train((0, 1)), gap=2)
    again, later = read(data), read(data, first=1)
    for a, b in zip(read(data), again, strict=True):
        assert all(np.array_equal(a[name], b[name]) for name in a)
    assert all(np.array_equal(again[1][name], later[0][name]) for name in later[0])
    orders = {tuple(np.concatenate([b["item"] for b in read(data, epoch)])) for epoch in range(5)}
    assert len(orders) > 1


def test_without_shuffling_rows_keep_their_order_and_the_last_batch_is_filled_from_the_first() -> None:
    found = read(batches(held_out(2), batch=2, shuffle=False))
    assert np.concatenate([b["item"] for b in found]).tolist() == [9, 5, 8, 9]


def test_a_gap_hides_last_items_and_never_anothers() -> None:
    data = batches(train((0, 1)), gap=3, length=4)
    longest = {3: [0, 0, 1, 2], 4: [0, 1, 2, 3], 7: [0, 0, 0, 6]}
    ends: set[tuple[int, ...]] = set()
    for epoch in range(30):
        for batch in read(data, epoch):
            for item, history in zip(batch["item"], batch["history"], strict=True):
                if int(item) in longest:
                    whole = [x for x in longest[int(item)] if x]
                    kept = [x for x in history.tolist() if x]
                    assert kept == whole[: len(kept)]
                if item == 4:
                    ends.add(tuple(kept))
    assert ends == {(), (1,), (1, 2), (1, 2, 3)}


def test_no_rows_are_refused() -> None:
    with pytest.raises(TrainingError, match="a ranker needs rows to learn from"):
        batches(train((0,)).take(np.arange(0)))


# Negatives


def test_negatives_are_items_that_the_user_has_not_had() -> None:
    had = pairs(EVENTS["user"], EVENTS["item"], 40)
    sampler = Sampler(2, popularity_weights(EVENTS["item"], 40, 0.0), had, 40)
    data = batches(train(), sampler=sampler)
    for epoch in range(10):
        for batch in read(data, epoch):
            assert batch["item"].shape == (3, 3)
            assert batch["label"][..., 0].tolist() == [[1, 0, 0]] * 3
            for user, items in zip(batch["user"], batch["item"], strict=True):
                own = set(EVENTS["item"][EVENTS["user"] == user])
                assert items[0] in own and not own & set(items[1:].tolist())


def test_negatives_follow_popularity() -> None:
    counts = np.repeat([1, 2, 3], [1, 16, 81])
    weights = popularity_weights(counts, 3)
    np.testing.assert_allclose(weights, [0, 1, 8, 27])
    sampler = Sampler(1, weights, np.zeros(0, np.int64), 4)
    users = tf.ones([20_000], tf.int32)
    drawn = sampler(users, tf.fill([20_000], 4), tf.constant([1, 2])).numpy()
    np.testing.assert_allclose(np.bincount(drawn[:, 0])[1:] / 20_000, np.array([1, 8, 27]) / 36, atol=0.02)


def test_retrieved_candidates_are_the_negatives() -> None:
    candidates = np.array([[0, 0], [5, 7], [2, 0]], np.int32)
    only_9 = np.eye(10)[9]
    sampler = Sampler(3, only_9, pairs(np.array([1]), np.array([5]), 9), 9, candidates)
    drawn = sampler(tf.constant([1, 2, 0]), tf.constant([1, 1, 1]), tf.constant([3, 4])).numpy()
    assert set(drawn[0]) <= {5, 7} and 7 in drawn[0]
    assert set(drawn[1]) == {2, 9}
    assert set(drawn[2]) == {9}  # retrieval knows nothing of a stranger


def test_negatives_of_nothing_are_refused() -> None:
    with pytest.raises(DataError, match="negatives need items that training has seen"):
        popularity_weights(np.zeros(0, np.int64), 3)
