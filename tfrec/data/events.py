"""Sorted events to their file: what depends on one user's events alone, and every count, is found on the way."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ibis.expr.types as ir
import numpy as np
import pyarrow as pa

from tfrec.config import Config
from tfrec.data import groups, splits
from tfrec.data.checks import Store
from tfrec.data.content import content
from tfrec.data.encode import EVENT_COLUMNS, Encoded
from tfrec.data.files import ORDER, TIME


@dataclass
class Tally:
    """What was written.

    Args:
        users, items: int64 [U], [I]: train events by index - 1.
        columns: of the file.
        splits: int64 [3]: events by split.
        digests: of what each column holds.
    """

    users: np.ndarray
    items: np.ndarray
    columns: list[str]
    splits: np.ndarray = field(default_factory=lambda: np.zeros(len(splits.NAMES), np.int64))
    digests: dict[str, Any] = field(default_factory=lambda: defaultdict(hashlib.sha256))

    def add(self, part: pa.Table) -> None:
        user, item, split = (part[name].to_numpy() for name in ("user", "item", "split"))
        train = split == splits.TRAIN
        np.add.at(self.users, user[train & (user > 0)] - 1, 1)
        np.add.at(self.items, item[train] - 1, 1)
        self.splits += np.bincount(split, minlength=len(self.splits))
        for name in self.columns:
            self.digests[name].update(content(part[name]))

    def hash(self) -> str:
        """sha256 over those of the columns, which do not depend on how events are cut into parts."""
        return hashlib.sha256(b"".join(self.digests[name].digest() for name in self.columns)).hexdigest()


def write(encoded: Encoded, config: Config, store: Store, path: Path) -> Tally:
    """Sorts events by user, time and file order, splits them where :func:`tfrec.data.encode.encode` could not, and
    writes them as row groups of whole users.

    Args:
        encoded: the events and their vocabularies.
        config: the settings.
        store: evaluates the events.
        path: of the Parquet file.
    """
    events = encoded.events
    first = [name for name in ("user", "item", "split", TIME, "value") if name in events.columns]
    rest = [name for name in events.columns if name not in (*first, ORDER)]
    # Codes grow with indices: sorting needs no join, which would hold its tables beside the sort's.
    rows = events.order_by("user", *splits.ordering(events)).select(*first, *rest)
    received = rows.schema().to_pyarrow()
    schema = _schema(received)
    indices = {key: _indices(table, key, store) for key, table in (("user", encoded.users), ("item", encoded.items))}
    users, items = (np.zeros(index.max(initial=0), np.int64) for index in indices.values())
    tally = Tally(users, items, schema.names)

    def finished() -> Iterator[pa.Table]:
        for part in groups.whole_users(received, store.batches(rows)):
            columns = {name: part[name] for name in part.column_names}
            columns |= {key: index[part[key].to_numpy()] for key, index in indices.items()}
            done = pa.table(_divided(columns, config), schema=schema)
            tally.add(done)
            yield done

    groups.write_parts(path, schema, finished())
    return tally


def _indices(vocabulary: ir.Table, key: str, store: Store) -> np.ndarray:
    """Int32 [codes + 1]: the index of each code; 0 of those out of the vocabulary."""
    rows = vocabulary.select(key, "index")
    table = pa.Table.from_batches(store.batches(rows), rows.schema().to_pyarrow())
    code, index = table[key].to_numpy(), table["index"].to_numpy()
    indices = np.zeros(code.max(initial=0) + 1, np.int32)
    indices[code] = index
    return indices


def _schema(received: pa.Schema) -> pa.Schema:
    """Of the file: user, item, split, timestamp and value come first."""
    fields = {field.name: field for field in received}
    fields["split"] = pa.field("split", pa.int8())
    if TIME in fields:
        fields["timestamp"] = fields.pop(TIME).with_name("timestamp")
    names = [name for name in EVENT_COLUMNS if name in fields]
    return pa.schema([fields[name] for name in (*names, *(name for name in fields if name not in names))])


def _divided(columns: dict[str, Any], config: Config) -> dict[str, Any]:
    """Columns of whole users with their split and whole seconds."""
    time = columns.pop(TIME).to_numpy() if TIME in columns else None
    if "split" not in columns:
        columns["split"] = splits.by_user(columns["user"], time, config.data.split, config.evaluate.holdout)
    return columns if time is None else columns | {"timestamp": time // 1_000_000}
