"""Metrics of staying against numbers made by hand and against pairs in a loop."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfrec.errors import DataError
from tfrec.evaluation import survival_metrics as m


def array(*values: float) -> np.ndarray:
    return np.array(values, np.float64)


def test_concordance_by_hand() -> None:
    stayed, seen = array(0, 1, 1, 3), np.array([True, True, False, False])
    # Pairs: the first left before the three others, the second before the last; the third may have left at any time.
    assert m.concordance(stayed, seen, array(0.2, 0.5, 0.1, 0.5)) == pytest.approx((1 + 0 + 1 + 0.5) / 4)
    assert m.concordance(stayed, seen, stayed) == 1


def test_retention_is_measured_over_rows_whose_fate_is_known() -> None:
    stayed, seen = array(0, 1, 1, 2, 5), np.array([True, True, False, False, True])
    retention, users = array(0.5, 0.25, 0.0, 0.75, 1.0), np.arange(5)
    found = m.summarize_survival(stayed, seen, retention, users, 2)  # the third row is lost from sight before
    expected = (math.log(2) + 2 * math.log(4 / 3)) / 4
    assert found["logloss"] == pytest.approx(expected, abs=1e-6) and found["positives"] == 0.5 and found["auc"] == 1
    lost = m.summarize_survival(array(0, 1), np.array([False, False]), array(0.1, 0.2), np.arange(2), 2)
    assert lost == {}


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.integers(0, 3)), min_size=1, max_size=12))
def test_concordance_counts_pairs(rows: list[tuple[int, bool, int]]) -> None:
    pairs = [(a[2], b[2]) for a in rows for b in rows if a[1] and a[0] < b[0]]
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    if pairs:
        won = [1.0 if a < b else 0.5 if a == b else 0.0 for a, b in pairs]
        assert m.concordance(*columns) == pytest.approx(np.mean(won))
    else:
        with pytest.raises(DataError, match="concordance needs a row that was seen to leave"):
            m.concordance(*columns)
