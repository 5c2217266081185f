"""An artefact's life after export, without training code: reindex, promote, rollback."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ibis
import numpy as np
import pyarrow as pa

from tfrec.artifact import export as artifacts
from tfrec.artifact import reindex as artefact
from tfrec.artifact.variables import read_variables
from tfrec.config import Features, Roles
from tfrec.data import checks, files, offers
from tfrec.data.checks import Problems
from tfrec.data.preprocess import raw_columns
from tfrec.data.side import Side, every_row
from tfrec.errors import ArtifactError, DataError

_LISTED = "_listed"
_PRICES, _CATEGORIES = "cascade/prices", "cascade/categories"  # variables of an artefact with a ranker


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
    card = artifacts.read_card(newest)
    settings = card.get("settings")
    if settings is None:
        raise ArtifactError("reindex needs a card with the settings of the model", str(newest), "Export it again")
    rows, listed, columns = _items(items, card, newest, say)
    removed = _removed(remove)
    say(f"embedding {len(rows['item_id']):,} items with {newest}, verifying in a clean process")
    published = artefact.reindex(export, rows, removed, settings["export"], force, listed, columns)
    card = artifacts.read_card(published)
    counts = card["reindexed"]
    say(", ".join(f"{counts[name]:,} {name}" for name in ("added", "changed", "unchanged", "delisted")))
    if counts["added"] + counts["changed"] and card.get("blend_keeps_texts"):
        say("the blend compares texts as the export had them: it knows none of new and changed items before the next")
    say(card["gate"]["reason"])
    return published


def _items(
    pattern: str | None, card: Mapping[str, Any], newest: Path, say: Callable[[str], None]
) -> tuple[dict[str, np.ndarray], np.ndarray, dict[str, np.ndarray]]:
    """Item ids and the raw columns that embed an item, as preparation gives them; which items are listed; and what the
    filters of a cascade read, by the variables that hold it."""
    settings = card["settings"]
    schema = Features.model_validate_json(json.dumps(settings["features"])).schema_
    numeric = {feature.name for feature in schema.side("item") if feature.kind == "numeric"}
    if pattern is None:
        none = {name: np.empty(0, np.float32 if name in numeric else object) for name in schema.item_columns()}
        return {"item_id": np.empty(0, object), **none}, np.empty(0, bool), {}
    roles = Roles(**settings["data"]["roles"])
    table = _read_items(pattern, Side("item", schema.side("item"), schema.text, roles), say)
    offered = _offered(table, roles, card, read_variables(newest, (_PRICES, _CATEGORIES)), say)
    filtered = {roles.price: _PRICES, roles.category: _CATEGORIES}
    also = {column for column, variable in filtered.items() if variable in offered}
    _say_ignored(pattern, table, {*schema.item_columns(), roles.available, *also}, say)
    columns = {"item_id": _ids(table), **raw_columns(table, schema.item_columns(), numeric)}
    return columns, table.column(_LISTED).to_numpy() != 0, offered


def _offered(
    table: pa.Table,
    roles: Roles,
    card: Mapping[str, Any],
    held: Mapping[str, np.ndarray],
    say: Callable[[str], None],
) -> dict[str, np.ndarray]:
    """Prices and categories of the items, where the artefact holds them and the table has their columns."""
    found = {}
    if _PRICES in held and roles.price in table.column_names:
        found[_PRICES] = offers.prices(table.column(roles.price))
    if _CATEGORIES in held and roles.category in table.column_names and "categories" in card:
        separators = {feature["name"]: feature["separator"] for feature in card["settings"]["features"]["columns"]}
        lists = offers.categories(table.column(roles.category), separators.get(roles.category))
        found[_CATEGORIES] = offers.category_table(lists, card["categories"], held[_CATEGORIES].shape[1])
    for name in sorted(held.keys() - found.keys()):
        say(f"the items have no {name.removeprefix('cascade/')} that filters could read: new ones have none for now")
    return found


def _read_items(pattern: str, side: Side, say: Callable[[str], None]) -> pa.Table:
    """The items in the order of their file, with 1.0 in the column _LISTED unless they are not available."""
    problems: Problems = {}
    available = side.roles.available
    with files.reading(pattern):
        rows = _with_ids(pattern)
        side = _of_file(side, rows.columns)
        rows = rows.mutate(**{_LISTED: _listed(rows, available, problems)})
        table = every_row(rows, side, problems).order_by(files.ORDER).to_pyarrow()
    for problem, count in problems.items():
        say(f"{problem}: {count:,}")
    if not table.num_rows:
        raise DataError("the items must have rows", pattern)
    return table


def _of_file(side: Side, columns: Sequence[str]) -> Side:
    """A role decides how a column is read; one that no feature reads need not be there, and whether an item is
    available is asked apart."""
    read = {feature.name for feature in side.features} | {*side.text}
    named = side.roles.model_dump().items()
    roles = {role: name for role, name in named if name in read or (role in ("price", "category") and name in columns)}
    return replace(side, roles=Roles(**roles))


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
