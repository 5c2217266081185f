"""The items and users tables in the order of their vocabularies, with what their columns mean."""

from __future__ import annotations

from dataclasses import dataclass, field

import ibis.expr.types as ir

from tfrec.config import Config, Roles
from tfrec.data import checks, files
from tfrec.data.checks import Problems
from tfrec.data.encode import shaped
from tfrec.errors import DataError
from tfrec.schema import Feature


@dataclass(frozen=True)
class Side:
    """What the settings say of one side table.

    Args:
        key: "item" or "user".
        features: features that read its columns.
        text: columns that are read as text.
        roles: columns that mean something to a shop.
    """

    key: str
    features: tuple[Feature, ...]
    text: tuple[str, ...] = ()
    roles: Roles = field(default_factory=Roles)

    @property
    def id(self) -> str:
        return f"{self.key}_id"

    @property
    def what(self) -> str:
        return f"{self.key}s"

    def columns(self) -> tuple[str, ...]:
        """Every column that the settings name."""
        named = [feature.name for feature in self.features] + [*self.text]
        return tuple(dict.fromkeys([*named, *(name for name in self.roles.model_dump().values() if name)]))


def sides(config: Config) -> tuple[Side, Side]:
    """The items' and the users' side."""
    schema = config.features.schema_
    return Side("item", schema.side("item"), schema.text, config.data.roles), Side("user", schema.side("user"))


def open_side(table: ir.Table | None, side: Side, problems: Problems) -> ir.Table | None:
    """The usable rows of a side table, its columns as float64 or strings.

    Raises:
        DataError: there is no such table and a setting needs it, or it lacks a column.
    """
    if table is None:
        if side.columns():
            advice = f"Set data.{side.what}, or remove what reads them"
            raise DataError(f"columns of {side.what} need a table of {side.what}", list(side.columns()), advice)
        return None
    files.require(table, side.columns(), f"the {side.what}")
    if "count" in table.columns:
        raise DataError(f"the {side.what} must not have a column 'count', which prepare adds", table.columns)
    return every_row(checks.unique_rows(table, side.id, side.what, problems), side, problems)


def every_row(rows: ir.Table, side: Side, problems: Problems) -> ir.Table:
    """A side table with its columns as float64 or strings.

    Raises:
        DataError: it lacks a column.
    """
    files.require(rows, side.columns(), f"the {side.what}")
    names = [name for name in rows.columns if name not in (side.id, files.ORDER)]
    columns = {name: _shaped(rows[name], side) for name in names}
    _count_unreadable(rows, columns, side, problems)
    return rows.select(side.id, files.ORDER, **columns)


def indexed(vocabulary: ir.Table, table: ir.Table | None, side: Side, problems: Problems) -> ir.Table:
    """One row per index, from 1: id and the side table's columns.

    Args:
        vocabulary: id and index.
        table: what ``open_side`` gave.
        side: which one.
        problems: ids that the table lacks are counted here.
    """
    rows = vocabulary.select(side.id, "index")
    if table is None:
        return rows.order_by("index").drop("index")
    missing = checks.rows_in(rows.anti_join(table, side.id))
    checks.count(problems, f"{side.what} of interactions that the {side.what} table lacks", missing)
    columns = table.drop(files.ORDER).rename(_key=side.id)
    return rows.left_join(columns, rows[side.id] == columns._key).order_by("index").drop("index", "_key")


def _shaped(column: ir.Column, side: Side) -> ir.Column:
    name = column.get_name()
    feature = next((feature for feature in side.features if feature.name == name), None)
    if feature:
        return shaped(column, feature)
    if name == side.roles.price:
        return files.as_float(column)
    if name == side.roles.available:
        return files.as_flag(column)
    kind = column.type()
    numeric = (kind.is_numeric() or kind.is_boolean()) and name not in side.columns()
    return files.as_float(column) if numeric else files.as_text(column)


def _count_unreadable(rows: ir.Table, columns: dict[str, ir.Column], side: Side, problems: Problems) -> None:
    texts = [name for name in columns if rows[name].type().is_string() and not columns[name].type().is_string()]
    for name in texts:
        bad = rows.filter(rows[name].strip().nullif("").notnull() & columns[name].isnull())
        checks.count(problems, f"{side.what} whose {name} is not a number", checks.rows_in(bad))
