"""Rows that break a rule are dropped, counted and named; never in silence."""

from __future__ import annotations

from collections.abc import Callable

import ibis
import ibis.expr.types as ir

from tfrec.data.files import ORDER, TIME
from tfrec.data.splits import ordering

Problems = dict[str, int]
Store = Callable[[str, ir.Table], ir.Table]  # (name, expression) -> the evaluated table


def count(problems: Problems, name: str, rows: int) -> None:
    """Adds a problem unless nothing has it."""
    if rows:
        problems[name] = problems.get(name, 0) + rows


def drop_unusable(interactions: ir.Table, problems: Problems) -> ir.Table:
    """Interactions that have a user, an item and, where there is a timestamp column, a readable time."""
    no_user, no_item = interactions.user_id.isnull(), interactions.item_id.isnull()
    no_time = interactions[TIME].isnull() if TIME in interactions.columns else ibis.literal(False)
    rules = {
        "interactions without user_id": no_user,
        "interactions without item_id": ~no_user & no_item,
        "interactions whose timestamp is neither epoch seconds nor a date": ~no_user & ~no_item & no_time,
    }
    found = interactions.aggregate(**{f"_{i}": rule.sum() for i, rule in enumerate(rules.values())})
    for name, rows in zip(rules, found.to_pyarrow().to_pylist()[0].values(), strict=True):
        count(problems, name, rows or 0)
    return interactions.filter(~(no_user | no_item | no_time))


def unique_rows(table: ir.Table, key: str, what: str, problems: Problems) -> ir.Table:
    """Rows of a side table with a key, the first of each."""
    known = table.filter(table[key].notnull())
    place = ibis.row_number().over(group_by=known[key], order_by=known[ORDER])
    first = known.mutate(_place=place).filter(ibis._._place == 0).drop("_place")
    rows, with_key, kept = (rows_in(part) for part in (table, known, first))
    count(problems, f"{what} without {key}", rows - with_key)
    count(problems, f"{what} whose {key} came before", with_key - kept)
    return first


def first_of_pairs(events: ir.Table, problems: Problems) -> ir.Table:
    """One event per (user, item), the first: where repeats are masked, a later one could never be ranked."""
    place = ibis.row_number().over(group_by=[events.user, events.item], order_by=ordering(events))
    first = events.mutate(_place=place).filter(ibis._._place == 0).drop("_place")
    count(problems, "repeated pairs of user and item", rows_in(events) - rows_in(first))
    return first


def frequent(events: ir.Table, per_user: int, per_item: int, store: Store, problems: Problems) -> ir.Table:
    """Events of users and items that have enough of them, repeated until nothing changes (k-core)."""
    if per_user == 1 and per_item == 1:
        return events
    before = start = rows_in(events)
    for turn in range(before + 1):
        for key, least in (("user", per_user), ("item", per_item)):
            counts = events.group_by(key).aggregate(_n=events.count())
            events = events.semi_join(counts.filter(counts._n >= least), key)
        events = store(f"frequent_{turn}", events)
        after = rows_in(events)
        if after == before:
            break
        before = after
    count(problems, "interactions of too rare users or items", start - before)
    return events


def rows_in(table: ir.Table) -> int:
    """The number of rows, evaluated."""
    return int(table.count().to_pyarrow().as_py())
