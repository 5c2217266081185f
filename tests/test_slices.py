from __future__ import annotations

import numpy as np
import pytest
from ragged_lists import holdout

from tfrec.evaluation.ranks import Holdout, Ranks, rank
from tfrec.evaluation.slices import select, slices, tail_items

# Items 1..5: item 5 is cold, items 3 and 4 hold 2 of 10 events, items 1 and 2 the rest.
COUNTS = np.array([0, 5, 3, 1, 1, 0])
SCORES = np.array([0, 5, 4, 3, 2, 1], np.float32)  # so that item i has rank i - 1


def measured(targets, history=None):
    asked = holdout(targets, history=history)
    return slices(ranked(asked), asked, COUNTS, [3])


def ranked(asked: Holdout) -> Ranks:
    return rank(lambda rows: np.tile(SCORES, (len(rows), 1)), asked, 5, top=1)


def test_items_split_into_cold_tail_and_head():
    found = measured([[1], [2], [3], [5]])
    assert {name: part["queries"] for name, part in found.items()} == {
        "cold_items": 1,
        "tail_items": 1,
        "head_items": 2,
        "short_history": 4,
        "long_history": 0,
    }
    assert found["head_items"]["mrr@3"] == pytest.approx((1 + 1 / 2) / 2)
    assert found["tail_items"]["mrr@3"] == pytest.approx(1 / 3)
    assert found["cold_items"]["hr@3"] == 0


def test_a_basket_is_in_each_slice_with_its_items_there():
    found = measured([[1, 3, 5]])
    assert found["head_items"]["recall@3"] == 1
    assert found["tail_items"]["recall@3"] == 1
    assert found["cold_items"]["recall@3"] == 0
    assert found["short_history"]["recall@3"] == pytest.approx(2 / 3)


def test_short_histories_end_at_four_events():
    found = measured([[1], [2], [3]], history=[[], [1, 2, 3, 4], [1, 2, 3, 4, 1]])
    assert found["short_history"]["queries"] == 2
    assert found["long_history"]["mrr@3"] == pytest.approx(1 / 3)


def test_a_slice_without_queries_has_its_count_alone():
    assert measured([[1]])["cold_items"] == {"queries": 0}


def test_slices_of_items_add_up_to_the_whole():
    rng = np.random.default_rng(0)
    targets = [[int(i)] for i in rng.integers(1, 6, 40)]
    found = measured(targets)
    hits = [part["hr@3"] * part["queries"] for name, part in found.items() if name.endswith("items")]
    assert sum(hits) == pytest.approx(sum(target <= 3 for (target,) in targets))


@pytest.mark.parametrize(
    ("counts", "tail"),
    [
        ([0, 5, 3, 1, 1, 0], [3, 4]),
        ([0, 8, 2], [2]),
        ([0, 2, 2, 2], []),  # equal items are all in or all out
        ([0, 100, 10, 10, 1, 0, 0], [2, 3, 4]),
        ([0, 0, 0], []),
    ],
)
def test_tail_items_hold_a_fifth_of_the_events(counts, tail):
    assert np.flatnonzero(tail_items(np.array(counts))).tolist() == tail


def test_select_keeps_ranks_and_drops_queries_without_targets():
    part = select(ranked(holdout([[1, 2], [3], [4, 5]])), np.array([False, True, False, True, True]))
    assert part.values.tolist() == [1, 3, 4]
    assert part.offsets.tolist() == [0, 1, 3]
    assert part.top.shape == (2, 1)
