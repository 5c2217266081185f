"""Rows that break a rule are dropped, counted and named; never in silence."""

from __future__ import annotations

from collections.abc import Callable

import ibis
import ibis.expr.types as ir

from tfrec.data.files import ORDER, TIME
from tfrec.data.splits import TRAIN, ordering

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


def first_of_pairs(events: ir.Table, problems: Problems, within: tuple[str, ...] = ()) -> ir.Table:
    """One event per (user, item), the first, for repeats that are masked.

    Args:
        events: user, item and what orders them.
        problems: the events that go are counted here.
        within: more columns that tell pairs apart, such as the split.
    """
    pair = [events[name] for name in ("user", "item", *within)]
    place = ibis.row_number().over(group_by=pair, order_by=ordering(events))
    first = events.mutate(_place=place).filter(ibis._._place == 0).drop("_place")
    count(problems, "repeated pairs of user and item", rows_in(events) - rows_in(first))
    return first


def frequent(
    events: ir.Table, least: dict[str, int], store: Store, problems: Problems, train_only: bool = False
) -> ir.Table:
    """Events of users and items that have enough of them, repeated until nothing changes (k-core).

    Args:
        events: user and item, and with ``train_only`` the int8 column split.
        least: events that a "user" and an "item" need; one is no filter.
        store: evaluates a step.
        problems: the events that go are counted here.
        train_only: whether only train events count; events of all splits go.
    """
    least = {key: number for key, number in least.items() if number > 1}
    if not least:
        return events
    before = start = rows_in(events)
    for turn in range(before + 1):
        for key, number in least.items():
            counted = events.filter(events.split == TRAIN) if train_only else events
            counts = counted.group_by(key).aggregate(_n=counted.count())
            events = events.semi_join(counts.filter(counts._n >= number), key)
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
