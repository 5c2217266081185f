"""Rows that break a rule are dropped, counted and named; never in silence."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable
from typing import Protocol

import ibis
import ibis.expr.types as ir
import pyarrow as pa

from tfrec.data.files import ORDER, TIME
from tfrec.data.splits import TRAIN, ordering

Problems = dict[str, int]


class Store(Protocol):
    """What evaluates tables."""

    def __call__(self, name: str, table: ir.Table) -> ir.Table:
        """A step's result, kept under a name of its own until it is dropped."""
        ...

    def drop(self, *tables: ir.Table) -> None:
        """Forgets results."""
        ...

    def batches(self, table: ir.Table) -> Iterable[pa.RecordBatch]:
        """The rows in order, never all at once."""
        ...


def count(problems: Problems, name: str, rows: int) -> None:
    """Adds a problem unless nothing has it."""
    if rows:
        problems[name] = problems.get(name, 0) + rows


def drop_unusable(interactions: ir.Table, problems: Problems) -> tuple[ir.Table, int]:
    """Interactions that have a user, an item and, where there is a timestamp column, a readable time; and how many
    there were."""
    no_user, no_item = interactions.user_id.isnull(), interactions.item_id.isnull()
    no_time = interactions[TIME].isnull() if TIME in interactions.columns else ibis.literal(False)
    rules = {
        "interactions without user_id": no_user,
        "interactions without item_id": ~no_user & no_item,
        "interactions whose timestamp is neither epoch seconds nor a date": ~no_user & ~no_item & no_time,
    }
    sums = {f"_{i}": rule.sum() for i, rule in enumerate(rules.values())}
    [found] = interactions.aggregate(**sums, _all=interactions.count()).to_pyarrow().to_pylist()
    for i, name in enumerate(rules):
        count(problems, name, found[f"_{i}"] or 0)
    # A filter makes every later step read every column that it asks.
    all_usable = not any(found[f"_{i}"] for i in range(len(rules)))
    return interactions if all_usable else interactions.filter(~(no_user | no_item | no_time)), found["_all"]


def unique_rows(table: ir.Table, key: str, what: str, problems: Problems) -> ir.Table:
    """Rows of a side table with a key, the first of each."""
    known = table.filter(table[key].notnull())
    place = ibis.row_number().over(group_by=known[key], order_by=known[ORDER])
    first = known.mutate(_place=place).filter(ibis._._place == 0).drop("_place")
    rows, with_key, kept = (rows_in(part) for part in (table, known, first))
    count(problems, f"{what} without {key}", rows - with_key)
    count(problems, f"{what} whose {key} came before", with_key - kept)
    return first


def first_of_pairs(events: ir.Table, store: Store, problems: Problems, within: tuple[str, ...] = ()) -> ir.Table:
    """One event per (user, item), the first, for repeats that are masked.

    Args:
        events: user, item and what orders them; stored, and dropped here.
        store: evaluates a step.
        problems: the events that go are counted here.
        within: more columns that tell pairs apart, such as the split.
    """
    pair = [events[name] for name in ("user", "item", *within)]
    place = ibis.row_number().over(group_by=pair, order_by=ordering(events))
    first = store("first_of_pairs", events.mutate(_place=place).filter(ibis._._place == 0).drop("_place"))
    count(problems, "repeated pairs of user and item", rows_in(events) - rows_in(first))
    store.drop(events)
    return first


def frequent(
    events: ir.Table, least: dict[str, int], store: Store, train_only: bool = False
) -> tuple[ir.Table, dict[str, ir.Table]]:
    """Events of users and items that have enough of them, repeated until nothing changes (k-core).

    Counts are corrected by what a turn removes, so that a turn costs a scan and not a new count.

    Args:
        events: user and item, and with ``train_only`` the int8 column split; stored.
        least: events that a "user" and an "item" need; one is no filter.
        store: evaluates a step.
        train_only: whether only train events count; events of all splits go.

    Returns:
        The events, an expression that is not evaluated, and by key what is left of it: user or item, and _n, the
        number of events that count.
    """
    weight = (events.split == TRAIN if train_only else ibis.literal(True)).cast("int64")
    weighted = events.select("user", "item", _n=weight)
    least, keys = {key: number for key, number in least.items() if number > 1}, tuple(least)
    left = {key: store(f"{key}_counts", _sums(weighted, key)) for key in least}
    gone: dict[str, ir.Table] = {}
    for turn in range(rows_in(events) + 1):
        rare = {key: left[key].filter(left[key]._n < number).select(key) for key, number in least.items()}
        rare = {key: store(f"rare_{key}_{turn}", table) for key, table in rare.items()}
        if not any(rows_in(table) for table in rare.values()):
            break
        going = store(f"going_{turn}", _with_any(_alive(weighted, gone), rare))
        left = {key: store(f"{key}_counts_{turn}", _less(table, going, rare[key], key)) for key, table in left.items()}
        gone = {key: table.union(gone[key]) if key in gone else table for key, table in rare.items()}
    return _alive(events, gone), {key: left.get(key, _sums(_alive(weighted, gone), key)) for key in keys}


def _sums(weighted: ir.Table, key: str) -> ir.Table:
    return weighted.group_by(key).aggregate(_n=weighted._n.sum())


def _alive(events: ir.Table, gone: dict[str, ir.Table]) -> ir.Table:
    return functools.reduce(lambda kept, key: kept.anti_join(gone[key], key), gone, events)


def _with_any(events: ir.Table, rare: dict[str, ir.Table]) -> ir.Table:
    return events.filter(functools.reduce(operator.or_, [events[key].isin(rare[key][key]) for key in rare]))


def _less(counts: ir.Table, going: ir.Table, rare: ir.Table, key: str) -> ir.Table:
    """Counts without the events that go, of those that stay."""
    lost = _sums(going, key).rename(_lost="_n")
    joined = counts.anti_join(rare, key).left_join(lost, key)
    return joined.select(key, _n=joined._n - ibis.coalesce(joined._lost, 0))


def rows_in(table: ir.Table) -> int:
    """The number of rows, evaluated."""
    return int(table.count().to_pyarrow().as_py())
