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
        events: user and item (int32 codes), _order, optionally _time and value, context columns; split (int8) unless
            it is one of ``splits.BY_USER``. User 0 is not in the vocabulary. Perhaps not evaluated.
        users: user_id, user (the code) and index (int32, from 1), which grow together.
        items: item_id, item (the code) and index.
        received: number of interactions.
    """

    events: ir.Table
    users: ir.Table
    items: ir.Table
    received: int


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
    _need_some(checks.rows_in(events), problems)
    events, counts = _divided(config, events, store, problems)
    users = store("users", _vocabulary(counts["user"], user_codes, "user"))
    items = item_codes.mutate(index=item_codes.item)
    if catalogue is None:
        items = store("items", _vocabulary(counts["item"], item_codes, "item"))
    if config.data.split.kind == "temporal":
        events = _known(events, users, items, store, problems)
    return Encoded(events, users, items, size)


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


def _need_some(rows: int, problems: Problems) -> None:
    if not rows:
        raise DataError("some interactions must be left after cleaning", problems)


def _divided(
    config: Config, events: ir.Table, store: Store, problems: Problems
) -> tuple[ir.Table, dict[str, ir.Table]]:
    """Events without repeats and rare ones, with their split unless it is by user; and what ``frequent`` counts."""
    data, kind = config.data, config.data.split.kind

    def divided(events: ir.Table) -> ir.Table:
        table = store("divided", splits.by_row(events, data.split, config.run.seed))
        store.drop(events)
        return table

    if kind == "leave_last_out" and config.evaluate.holdout == "basket":
        splits.need_time(events, 'holdout "basket"')
    if kind == "given":
        events = divided(events)
    if config.evaluate.repeats == "mask":
        # A target is never masked, so a given part keeps what another part has too.
        within = ("split",) if kind == "given" else ()
        events = checks.first_of_pairs(events, store, problems, within)
    if kind == "temporal":  # a count that reads beyond the cut would know the future
        events = divided(events)
    least = {"user": data.min_user_interactions, "item": data.min_item_interactions}
    frequent, counts = checks.frequent(events, least, store, train_only=kind == "temporal")
    left = checks.rows_in(frequent)
    checks.count(problems, "interactions of too rare users or items", checks.rows_in(events) - left)
    _need_some(left, problems)
    if kind == "random":
        frequent = splits.by_row(frequent, data.split, config.run.seed)
    return frequent, counts


def _vocabulary(counts: ir.Table, codes: ir.Table, key: str) -> ir.Table:
    """Renumbers, without gaps, the ids that have events that count."""
    kept = codes.semi_join(counts.filter(counts._n > 0), key)
    return kept.mutate(index=(ibis.row_number().over(order_by=kept[key]) + 1).cast("int32"))


def _known(events: ir.Table, users: ir.Table, items: ir.Table, store: Store, problems: Problems) -> ir.Table:
    """Events after the cut: users out of the vocabulary become 0, items out of it are dropped."""
    joined = events.semi_join(items, "item").left_join(users.select("user", "index"), "user")
    user = ibis.ifelse(joined.index.isnull(), 0, joined.user).cast("int32")
    known = store("known", joined.mutate(user=user).select(events.columns))
    late = checks.rows_in(events) - checks.rows_in(known)
    checks.count(problems, "valid and test interactions with items that are not in train or an items table", late)
    strangers = checks.rows_in(known.filter(known.user == 0))
    checks.count(problems, "valid and test interactions of users that train lacks", strangers)
    return known
