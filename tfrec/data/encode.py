"""Strings to integers: clean, split and index the events, with one DuckDB table per step."""

from __future__ import annotations

from dataclasses import dataclass

import ibis
import ibis.expr.types as ir

from tfrec.config import Config
from tfrec.data import checks, files, splits
from tfrec.data.checks import Problems, Store
from tfrec.data.files import ORDER, TIME
from tfrec.errors import ConfigError, DataError
from tfrec.schema import Feature

EVENT_COLUMNS = ("user", "item", "split", "timestamp", "value")


@dataclass(frozen=True)
class Encoded:
    """Events as integers, and the vocabularies that say what they mean.

    Args:
        events: user and item (int32), split (int8), _order, optionally _time and value, context columns.
        users: user_id, index (int32, from 1) and count (int64, train events).
        items: item_id, index and count.
        rows: interactions received.
    """

    events: ir.Table
    users: ir.Table
    items: ir.Table
    rows: int


def encode(
    config: Config,
    interactions: ir.Table,
    catalogue: ir.Table | None,
    store: Store,
    problems: Problems,
    columnar: bool = False,
) -> Encoded:
    """Cleans, filters, splits and indexes interactions.

    Args:
        config: the settings.
        interactions: as a source gives them.
        catalogue: the items table without duplicates, which is then the items' vocabulary; None without one.
        store: evaluates a step.
        problems: what is found is added here.
        columnar: whether reading some columns of the interactions costs less than keeping all.

    Raises:
        ConfigError: a context feature has a reserved name.
        DataError: a column is missing, nothing is left, or a split is empty.
    """
    needed = _needed(config, interactions)
    received = needed if columnar else store("received", needed)
    rows, size = checks.drop_unusable(received, problems)
    user_codes = store("user_codes", _codes(rows, "user"))
    item_codes = store("item_codes", _codes(rows if catalogue is None else catalogue, "item"))
    events = store("coded", _coded(rows, user_codes, item_codes))
    if catalogue is not None:
        unknown = checks.rows_in(rows) - checks.rows_in(events)
        checks.count(problems, "interactions with items that the items table lacks", unknown)
    if not columnar:
        store.drop(received)
    _need_some(events, problems)
    events = _divided(config, events, store, problems)
    _need_some(events, problems)
    least = 1 if config.data.split.kind == "temporal" else 0
    users = store("users", _vocabulary(events, user_codes, "user", least))
    known = _catalogue(events, item_codes) if catalogue is not None else _vocabulary(events, item_codes, "item", least)
    items = store("items", known)
    indexed = store("indexed", _indexed(events, users, items))
    late = checks.rows_in(events) - checks.rows_in(indexed)
    store.drop(events)
    checks.count(problems, "valid and test interactions with items that are not in train or an items table", late)
    strangers = checks.rows_in(indexed.filter((indexed.user == 0) & (indexed.split != splits.TRAIN)))
    checks.count(problems, "valid and test interactions of users that train lacks", strangers)
    return Encoded(indexed, users, items, size)


def context_columns(table: ir.Table, features: tuple[Feature, ...]) -> dict[str, ir.Column]:
    """The interactions' columns that context features read, as float64 or strings."""
    for feature in features:
        if feature.name in (*EVENT_COLUMNS, "user_id", "item_id"):
            raise ConfigError("a context feature must not have a reserved name", feature.name, "Rename the column")
    files.require(table, [feature.name for feature in features], "the interactions")
    return {feature.name: shaped(table[feature.name], feature) for feature in features}


def shaped(column: ir.Column, feature: Feature) -> ir.Column:
    """A feature's column as the models read it: float64 when numeric, else strings."""
    return files.as_float(column) if feature.kind == "numeric" else files.as_text(column, feature.separator or " ")


def _needed(config: Config, interactions: ir.Table) -> ir.Table:
    optional = [TIME, "value"] + (["split"] if config.data.split.kind == "given" else [])
    names = ["user_id", "item_id", ORDER, *(name for name in optional if name in interactions.columns)]
    context = context_columns(interactions, config.features.schema_.side("context"))
    context |= _ranker_columns(config, interactions, {*names, *context})
    return interactions.select(*names, **context)


def _ranker_columns(config: Config, interactions: ir.Table, have: set[str]) -> dict[str, ir.Column]:
    """What a ranker reads beside features: labels as float64, kinds of history events as strings."""
    labels, event = config.ranker_columns
    wanted = {name: files.as_float for name in labels} | ({event: files.as_text} if event else {})
    missing = {name: shape for name, shape in wanted.items() if name not in have}
    files.require(interactions, [*missing, *({"value"} & wanted.keys())], "the interactions")
    return {name: shape(interactions[name]) for name, shape in missing.items()}


def _codes(table: ir.Table, key: str) -> ir.Table:
    """Numbers ids from 1 in the order in which they first appear."""
    firsts = table.group_by(f"{key}_id").aggregate(_first=table[ORDER].min())
    code = ibis.row_number().over(order_by=firsts._first) + 1
    return firsts.select(f"{key}_id", **{key: code.cast("int32")})


def _coded(rows: ir.Table, users: ir.Table, items: ir.Table) -> ir.Table:
    return rows.inner_join(users, "user_id").inner_join(items, "item_id").drop("user_id", "item_id")


def _need_some(events: ir.Table, problems: Problems) -> None:
    if not checks.rows_in(events):
        raise DataError("some interactions must be left after cleaning", problems)


def _divided(config: Config, events: ir.Table, store: Store, problems: Problems) -> ir.Table:
    """Events without repeats and rare ones, with their split; its kind says what comes first."""
    data, evaluate = config.data, config.evaluate
    kind, least = data.split.kind, {"user": data.min_user_interactions, "item": data.min_item_interactions}

    def kept(name: str, before: ir.Table, after: ir.Table) -> ir.Table:
        table = store(name, after)
        rare = checks.rows_in(before) - checks.rows_in(table)
        checks.count(problems, "interactions of too rare users or items", rare)
        store.drop(before)
        return table

    def divide(events: ir.Table) -> ir.Table:
        return splits.assign(events, data.split, evaluate.holdout, config.run.seed)

    if kind == "given":
        events = kept("given", events, divide(events))
    if evaluate.repeats == "mask":
        # A target is never masked, so a given part keeps what another part has too.
        within = ("split",) if kind == "given" else ()
        events = checks.first_of_pairs(events, store, problems, within)
    if kind == "temporal":  # a count that reads beyond the cut would know the future
        events = kept("divided", events, divide(events))
        return kept("frequent", events, checks.frequent(events, least, store, train_only=True))
    frequent = checks.frequent(events, least, store)
    return kept("divided", events, frequent if kind == "given" else divide(frequent))


def _vocabulary(events: ir.Table, codes: ir.Table, key: str, least: int) -> ir.Table:
    """Renumbers, without gaps, the ids that events have, of those with so many train events."""
    counts = _train_counts(events, key)
    kept = codes.inner_join(counts.filter(counts.count_ >= least), key)
    index = (ibis.row_number().over(order_by=kept[key]) + 1).cast("int32")
    return kept.select(f"{key}_id", key, index=index, count=kept.count_)


def _catalogue(events: ir.Table, codes: ir.Table) -> ir.Table:
    joined = codes.left_join(_train_counts(events, "item"), "item")
    return joined.select("item_id", "item", index=joined.item, count=ibis.coalesce(joined.count_, 0))


def _train_counts(events: ir.Table, key: str) -> ir.Table:
    return events.group_by(key).aggregate(count_=(events.split == splits.TRAIN).sum().cast("int64"))


def _indexed(events: ir.Table, users: ir.Table, items: ir.Table) -> ir.Table:
    """Codes to indices: users out of the vocabulary become 0, items out of it are dropped."""
    events = events.left_join(users.select("user", _user="index"), "user")
    events = events.inner_join(items.select("item", _item="index"), "item")
    indices = {"user": ibis.coalesce(events._user, 0).cast("int32"), "item": events._item}
    return events.mutate(**indices).drop("_user", "_item", *(n for n in events.columns if n.endswith("_right")))
