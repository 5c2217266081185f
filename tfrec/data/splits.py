"""Which event is for training, validation or test: int8 0, 1, 2.

Events are ordered by time, ties by their order in the files; never by an id, which would leak.
"""

from __future__ import annotations

import ibis
import ibis.expr.types as ir
import numpy as np

from tfrec.config import Split
from tfrec.data.files import ORDER, TIME
from tfrec.errors import DataError

NAMES = ("train", "valid", "test")
TRAIN, VALID, TEST = range(3)
BY_USER = ("leave_last_out", "per_user")


def ordering(events: ir.Table) -> list[ir.Column]:
    """The columns that order events: time if there is one, then place in the files."""
    return [events[name] for name in (TIME, ORDER) if name in events.columns]


def by_row(events: ir.Table, split: Split, seed: int) -> ir.Table:
    """Adds (or replaces) the int8 column ``split``, of a kind that needs no other events of the user.

    Args:
        events: _order, optionally _time, and for ``given`` the string column split.
        split: the kind (given, temporal or random) and the shares.
        seed: of the random split.

    Raises:
        DataError: a column that the kind needs is missing, or a given split has unknown values.
    """
    if split.kind == "given":
        return _given(events)
    return _temporal(events, split) if split.kind == "temporal" else _random(events, split, seed)


def by_user(user: np.ndarray, time: np.ndarray | None, split: Split, holdout: str) -> np.ndarray:
    """Splits whole users' events by their places among the user's own.

    Args:
        user: int [N], sorted; a user's events from old to new.
        time: int [N], for baskets.
        split: leave_last_out, or per_user and its shares.
        holdout: "item" or "basket": what leave_last_out holds out; a basket is a user's events of one time.

    Returns:
        int8 [N].
    """
    if split.kind == "per_user":
        return _by_share(*_ages(user, np.arange(len(user))), split)
    if holdout == "item":
        return _last_out(*_ages(user, np.arange(len(user))))
    if time is None:
        raise DataError('holdout "basket" needs times', time)
    new = (np.diff(user, prepend=-1) != 0) | (np.diff(time, prepend=0) != 0)
    return _last_out(*_ages(user, np.cumsum(new)))


def _given(events: ir.Table) -> ir.Table:
    if "split" not in events.columns:
        raise DataError('split "given" needs a column split in the interactions', events.columns)
    text = events.split.strip().lower()
    strange = events.filter(text.isnull() | text.notin(NAMES)).split.topk(5).to_pyarrow()["split"].to_pylist()
    if strange:
        raise DataError(f"the column split must hold {', '.join(NAMES)}", strange)
    return events.mutate(split=text.cases(*zip(NAMES, range(3), strict=True), else_=None).cast("int8"))


def _ages(user: np.ndarray, unit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each event, how many units of its user are newer, and how many there are; units count up in order."""
    first = np.flatnonzero(np.diff(user, prepend=-1))
    sizes = np.diff(first, append=len(user))
    newest, oldest = (np.repeat(unit[ends], sizes) for ends in (first + sizes - 1, first))
    return newest - unit, newest - oldest + 1


def _last_out(age: np.ndarray, own: np.ndarray) -> np.ndarray:
    """The newest (age 0) is test, the one before valid, unless the user has fewer than three."""
    return np.where((own < 3) | (age > 1), TRAIN, TEST - age).astype(np.int8)


def _by_share(age: np.ndarray, own: np.ndarray, split: Split) -> np.ndarray:
    """The newest floor(share · events) events of each user are test, those before them valid."""
    # A share such as 0.1 is a little above or below its decimal: 0.1 · 30 must give 3.
    test, valid = (np.floor(own * share + 1e-9).astype(np.int64) for share in (split.test, split.valid))
    return np.select([age < test, age < test + valid], [TEST, VALID], TRAIN).astype(np.int8)


def _temporal(events: ir.Table, split: Split) -> ir.Table:
    """Cuts at quantiles of the rows' times; rows of one time stay on one side."""
    need_time(events, 'split "temporal"')
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


def need_time(events: ir.Table, what: str) -> None:
    """Raises a DataError that says what needs the missing times."""
    if TIME not in events.columns:
        raise DataError(f"{what} needs a column timestamp in the interactions", events.columns)
