"""Prices and categories of items, from the columns that a shop's roles name."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa


def prices(column: pa.ChunkedArray) -> np.ndarray:
    """float32 [rows], NaN where there is none or it is negative."""
    values = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
    return np.where(values >= 0, values, np.nan).astype(np.float32)


def categories(column: pa.ChunkedArray, separator: str | None) -> list[list[str]]:
    """The categories of each row, each once.

    Args:
        column: of texts.
        separator: between categories; None = a text is one.
    """
    return [_split(text, separator) for text in column.to_pylist()]


def category_table(lists: Sequence[Sequence[str]], names: Sequence[str], width: int) -> np.ndarray:
    """Categories as numbers, int32 [rows, width]: place + 1 in ``names``; unknown ones are left out, 0 = none."""
    place = {name: number for number, name in enumerate(names, start=1)}
    table = np.zeros((len(lists), width), np.int32)
    for row, own in enumerate(lists):
        known = [place[name] for name in own if name in place][:width]
        table[row, : len(known)] = known
    return table


def _split(text: str | None, separator: str | None) -> list[str]:
    parts = (text or "").split(separator) if separator else [text or ""]
    return list(dict.fromkeys(name for part in parts if (name := part.strip())))
