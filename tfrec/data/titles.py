"""Titles of a few items, to print beside their ids."""

from __future__ import annotations

from collections.abc import Sequence

from tfrec.data import files


def read_titles(pattern: str, item_ids: Sequence[str], column: str) -> dict[str, str]:
    """Item id → title, on one line and without control characters; items that the table lacks are left out.

    Args:
        pattern: path or glob of an items table with the column item_id.
        column: of the title.

    Raises:
        DataError: the files cannot be read, or lack a column.
    """
    connection = files.connect()
    try:
        table = files.read(connection, pattern)
        files.require(table, ["item_id", column], "the items")
        table = table.select(item_id=files.as_id(table["item_id"]), title=files.as_text(table[column]))
        with files.reading(pattern):
            found = table.filter(table["item_id"].isin(list(item_ids))).to_pyarrow().to_pylist()
    finally:
        connection.disconnect()
    return {row["item_id"]: _printable(row["title"] or "") for row in found}


def _printable(text: str) -> str:
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
