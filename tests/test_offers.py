"""Prices and categories, as the columns of a shop's roles hold them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from tfrec.data import offers


def test_a_price_that_is_absent_or_negative_is_unknown() -> None:
    column = pa.chunked_array([[1.5, None, -1.0], [0.0, float("nan")]])
    found = offers.prices(column)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.array([1.5, np.nan, np.nan, 0, np.nan], np.float32))


@pytest.mark.parametrize(("separator", "expected"), [("|", [["a", "b c"], [], []]), (None, [["a| b c|a|"], ["|"], []])])
def test_categories_of_a_text(separator: str | None, expected: list[list[str]]) -> None:
    column = pa.chunked_array([["a| b c|a|", "|", None]])
    assert offers.categories(column, separator) == expected


def test_categories_are_numbered_by_the_names_that_are_known() -> None:
    table = offers.category_table([["b", "new", "a"], [], ["a", "b", "c"]], ["a", "b", "c"], 2)
    assert table.dtype == np.int32
    assert table.tolist() == [[2, 1], [0, 0], [1, 2]]
