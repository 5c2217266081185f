"""Which event is for training, validation or test: int8 0, 1, 2.

Events are ordered by time, ties by their order in the files; never by an id, which would leak.
"""

from __future__ import annotations

import ibis
import ibis.expr.types as ir

from tfrec.config import Split
from tfrec.data.files import ORDER, TIME
from tfrec.errors import DataError

NAMES = ("train", "valid", "test")
TRAIN, VALID, TEST = range(3)


def ordering(events: ir.Table) -> list[ir.Column]:
    """The columns that order events: time if there is one, then place in the files."""
    return [events[name] for name in (TIME, ORDER) if name in events.columns]


def assign(events: ir.Table, split: Split, holdout: str, seed: int) -> ir.Table:
    """Adds (or replaces) the int8 column ``split``.

    Args:
        events: user (int32), _order, optionally _time, and for ``given`` the string column split.
        split: the kind and the shares.
        holdout: "item" or "basket": what leave_last_out holds out; a basket is a user's events of one time.
        seed: of the random split.

    Raises:
        DataError: a column that the kind needs is missing, or a given split has unknown values.
    """
    if split.kind == "given":
        return _given(events)
    events = events.drop("split") if "split" in events.columns else events
    if split.kind == "temporal":
        return _temporal(events, split)
    if split.kind == "random":
        return _random(events, split, seed)
    if split.kind == "per_user":
        return _per_user(events, split)
    return _last_basket_out(events) if holdout == "basket" else _last_item_out(events)


def _given(events: ir.Table) -> ir.Table:
    if "split" not in events.columns:
        raise DataError('split "given" needs a column split in the interactions', events.columns)
    text = events.split.strip().lower()
    strange = events.filter(text.isnull() | text.notin(NAMES)).split.topk(5).to_pyarrow()["split"].to_pylist()
    if strange:
        raise DataError(f"the column split must hold {', '.join(NAMES)}", strange)
    return events.mutate(split=text.cases(*zip(NAMES, range(3), strict=True), else_=None).cast("int8"))


def _last_item_out(events: ir.Table) -> ir.Table:
    newest_first = [column.desc() for column in ordering(events)]
    age = ibis.row_number().over(group_by=events.user, order_by=newest_first)
    # In the same order, though a count needs none: a second order is a second sort.
    ages = events.count().over(group_by=events.user, order_by=newest_first, rows=(None, None))
    return _from_age(events.mutate(_age=age, _ages=ages))


def _last_basket_out(events: ir.Table) -> ir.Table:
    _need_time(events, 'holdout "basket"')
    age = ibis.dense_rank().over(group_by=events.user, order_by=events[TIME].desc())
    events = events.mutate(_age=age)
    return _from_age(events.mutate(_ages=events._age.max().over(group_by=events.user) + 1))


def _from_age(events: ir.Table) -> ir.Table:
    """The newest (age 0) is test, the one before valid, unless the user has fewer than three."""
    held_out = ibis.cases((events._age == 0, TEST), (events._age == 1, VALID), else_=TRAIN)
    split = ibis.ifelse(events._ages < 3, TRAIN, held_out)
    return events.mutate(split=split.cast("int8")).drop("_age", "_ages")


def _per_user(events: ir.Table, split: Split) -> ir.Table:
    """The newest floor(share · events) events of each user are test, those before them valid."""
    newest_first = [column.desc() for column in ordering(events)]
    own = events.count().over(group_by=events.user)
    age = ibis.row_number().over(group_by=events.user, order_by=newest_first)
    # A share such as 0.1 is a little above or below its decimal: 0.1 · 30 must give 3.
    test, valid = ((own * share + 1e-9).floor().cast("int64") for share in (split.test, split.valid))
    events = events.mutate(_age=age, _test=test, _held=test + valid)
    part = ibis.cases((events._age < events._test, TEST), (events._age < events._held, VALID), else_=TRAIN)
    return events.mutate(split=part.cast("int8")).drop("_age", "_test", "_held")


def _temporal(events: ir.Table, split: Split) -> ir.Table:
    """Cuts at quantiles of the rows' times; rows of one time stay on one side."""
    _need_time(events, 'split "temporal"')
    shares = {"valid": 1 - split.valid - split.test, "test": 1 - split.test}
    cuts = events.aggregate(**{name: events[TIME].quantile(share) for name, share in shares.items()})
    cut = cuts.to_pyarrow().to_pylist()[0]
    part = ibis.cases((events[TIME] >= cut["test"], TEST), (events[TIME] >= cut["valid"], VALID), else_=TRAIN)
    return events.mutate(split=part.cast("int8"))


def _random(events: ir.Table, split: Split, seed: int) -> ir.Table:
    """A seeded hash per row: the same row falls on the same side in every run and on every machine."""
    # MD5, for an even spread; DuckDB's own hash may change with its version.
    digest = ibis.literal(f"{seed}:").concat(events[ORDER].cast("string")).hexdigest("md5")
    part = ibis.cases((digest < _hex(split.test), TEST), (digest < _hex(split.test + split.valid), VALID), else_=TRAIN)
    return events.mutate(split=part.cast("int8"))


def _hex(share: float) -> str:
    return f"{int(share * 16**8):08x}"


def _need_time(events: ir.Table, what: str) -> None:
    if TIME not in events.columns:
        raise DataError(f"{what} needs a column timestamp in the interactions", events.columns)
