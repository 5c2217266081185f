"""An artefact's life after export, without training code: reindex, promote, rollback."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ibis
import numpy as np
import pyarrow as pa

from tfrec.artifact import export as artifacts
from tfrec.artifact import reindex as artefact
from tfrec.config import Features, Roles
from tfrec.data import checks, files
from tfrec.data.checks import Problems
from tfrec.data.preprocess import raw_columns
from tfrec.data.side import Side, every_row
from tfrec.errors import ArtifactError, DataError

_LISTED = "_listed"


def reindex(export: Path, items: str | None, remove: str, force: bool, say: Callable[[str], None]) -> Path:
    """Publishes the next version of exports/NAME with new and changed items and without removed ones.

    Args:
        export: exports/NAME.
        items: path or glob of the new and changed items, with the columns that the model was trained with. One whose
            column of the role "available" says no is delisted.
        remove: a file with a column item_id, or ids separated by commas; "" = none.
        force: publish although golden answers differ by more than the bounds allow.
        say: gets lines of progress.

    Raises:
        DataError: a table lacks a column or rows.
        ArtifactError: there is no version, it cannot take these items, or the new one is not to be trusted.
    """
    newest = artifacts.newest(export)
    if newest is None:
        raise ArtifactError("reindex needs an exported version", str(export), "Run tfrec export first")
    settings = artifacts.read_card(newest).get("settings")
    if settings is None:
        raise ArtifactError("reindex needs a card with the settings of the model", str(newest), "Export it again")
    rows, listed = _items(items, settings, say)
    removed = _removed(remove)
    say(f"embedding {len(rows['item_id']):,} items with {newest}, verifying in a clean process")
    published = artefact.reindex(export, rows, removed, settings["export"], force, listed)
    card = artifacts.read_card(published)
    counts = card["reindexed"]
    say(", ".join(f"{counts[name]:,} {name}" for name in ("added", "changed", "unchanged", "delisted")))
    if counts["added"] + counts["changed"] and card.get("blend_keeps_texts"):
        say("the blend compares texts as the export had them: it knows none of new and changed items before the next")
    say(card["gate"]["reason"])
    return published


def _items(
    pattern: str | None, settings: dict[str, Any], say: Callable[[str], None]
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Item ids and the raw columns that embed an item, as preparation gives them; and which items are listed."""
    schema = Features.model_validate_json(json.dumps(settings["features"])).schema_
    named = settings["data"]["roles"].items()
    # A role decides how a column is read; one that the model does not read need not be there.
    roles = Roles(**{role: column for role, column in named if column in schema.item_columns()})
    numeric = {feature.name for feature in schema.side("item") if feature.kind == "numeric"}
    if pattern is None:
        return {
            name: np.empty(0, np.float32 if name in numeric else object) for name in ("item_id", *schema.item_columns())
        }, np.empty(0, bool)
    available = settings["data"]["roles"].get("available")
    table = _read_items(pattern, Side("item", schema.side("item"), schema.text, roles), available, say)
    _say_ignored(pattern, table, {*schema.item_columns(), available}, say)
    columns = {"item_id": _ids(table), **raw_columns(table, schema.item_columns(), numeric)}
    return columns, table.column(_LISTED).to_numpy() != 0


def _read_items(pattern: str, side: Side, available: str | None, say: Callable[[str], None]) -> pa.Table:
    """The items in the order of their file, with 1.0 in the column _LISTED unless they are not available."""
    problems: Problems = {}
    with files.reading(pattern):
        rows = _with_ids(pattern)
        rows = rows.mutate(**{_LISTED: _listed(rows, available, problems)})
        table = every_row(rows, side, problems).order_by(files.ORDER).to_pyarrow()
    for problem, count in problems.items():
        say(f"{problem}: {count:,}")
    if not table.num_rows:
        raise DataError("the items must have rows", pattern)
    return table


def _listed(rows: ibis.Table, available: str | None, problems: Problems) -> Any:
    if available not in rows.columns:
        return ibis.literal(1.0)
    flag = files.as_flag(rows[available])
    unread = rows.filter(rows[available].cast("string").strip().nullif("").notnull() & flag.isnull())
    checks.count(problems, f"items whose {available} is neither yes nor no, taken as yes", checks.rows_in(unread))
    return ibis.coalesce(flag, 1.0)


def _say_ignored(pattern: str, table: pa.Table, read: set[str | None], say: Callable[[str], None]) -> None:
    ignored = sorted({*table.column_names} - {"item_id", files.ORDER, _LISTED} - read)
    if ignored:
        say(f"columns of {pattern} that the model does not read: {', '.join(ignored)}")


def _removed(text: str) -> list[str]:
    if not Path(text).expanduser().is_file():
        return [id_ for id_ in text.split(",") if id_]
    with files.reading(text):
        return [id_.decode() for id_ in _ids(_with_ids(text).select("item_id").to_pyarrow())]


def _with_ids(pattern: str) -> ibis.Table:
    table = files.read(files.connect(), pattern)
    files.require(table, ("item_id",), f"the items of {pattern}")
    return table.mutate(item_id=files.as_id(table.item_id))


def _ids(table: pa.Table) -> np.ndarray:
    return np.array([(id_ or "").encode() for id_ in table.column("item_id").to_pylist()], dtype=object)
