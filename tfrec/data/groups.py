"""Events in Parquet whose row groups hold whole users: what can be read in any order, a bounded part at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tfrec.errors import DataError

GROUP = 131_072  # events of a row group, unless one user has more

Events = Mapping[str, np.ndarray]


def write(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch], size: int = GROUP) -> None:
    """Writes events that are sorted by user; no row group ends within the events of a user.

    Args:
        path: of the Parquet file.
        schema: of the events, "user" among them; user 0, who stands for strangers, may be divided.
        batches: of that schema.
        size: most events of a row group, unless one user has more.
    """
    write_parts(path, schema, whole_users(schema, batches, size))


def whole_users(schema: pa.Schema, batches: Iterable[pa.RecordBatch], size: int = GROUP) -> Iterator[pa.Table]:
    """Cuts a stream of events into tables that do not divide a user; arguments are those of :func:`write`."""
    waiting = schema.empty_table()
    for batch in batches:
        waiting = pa.concat_tables([waiting, pa.Table.from_batches([batch]).cast(schema)])
        while len(waiting) > size and (end := _last_whole_user(waiting["user"].to_numpy(), size)):
            yield waiting.slice(0, end)
            waiting = waiting.slice(end)
    if len(waiting):
        yield waiting


def write_parts(path: Path, schema: pa.Schema, parts: Iterable[pa.Table]) -> None:
    """Writes each table, of that schema, as one row group."""
    dictionaries = [field.name for field in schema if field.name in ("user", "split") or pa.types.is_string(field.type)]
    with pq.ParquetWriter(
        path, schema, compression="zstd", use_dictionary=dictionaries, write_page_checksum=True
    ) as writer:
        for part in parts:
            writer.write_table(part, row_group_size=len(part))


def _last_whole_user(user: np.ndarray, size: int) -> int:
    """Where to cut: at most ``size`` events, or all of the first user; 0 where that user may have more to come."""
    last = user[size]
    if last == 0:
        return size
    start = int(np.searchsorted(user, last))
    if start:
        return start
    end = int(np.searchsorted(user, last, side="right"))
    return end if end < len(user) else 0


class Group(NamedTuple):
    """A row group: its file, its place in it and its events."""

    path: str
    place: int
    events: int


@dataclass(frozen=True)
class EventGroups:
    """The row groups of files that :func:`write` wrote, together sorted by user.

    Args:
        paths: of the files, in order; at least one.
    """

    paths: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.groups)

    @cached_property
    def groups(self) -> list[Group]:
        """Every row group, in order.

        Raises:
            DataError: a file is absent or damaged.
        """
        places = ((path, footer, i) for path, footer in self._footers.items() for i in range(footer.num_row_groups))
        return [Group(path, i, footer.row_group(i).num_rows) for path, footer, i in places]

    @property
    def events(self) -> int:
        return sum(group.events for group in self.groups)

    @property
    def columns(self) -> list[str]:
        return self._schema.names

    def bytes(self) -> int:
        """What all columns take in memory as arrays; a string counts as its pointer."""
        widths = [8 if pa.types.is_string(field.type) else field.type.bit_width // 8 for field in self._schema]
        return self.events * sum(widths)

    def read(self, group: int, columns: Sequence[str]) -> Events:
        """Columns of one row group.

        Raises:
            DataError: the file is damaged.
        """
        path, place, _ = self.groups[group]
        with reading(path):
            file = pq.ParquetFile(path, metadata=self._footers[path], page_checksum_verification=True)
            with file:
                table = file.read_row_group(place, columns=list(columns), use_threads=False)
        return {name: array(table[name]) for name in columns}

    def require_whole_users(self) -> None:
        """Raises a DataError when the events of a user go on in another row group, as in older prepared tables."""
        before = 0
        for path, place, _ in self.groups:
            footer = self._footers[path].row_group(place)
            user = footer.column(self.columns.index("user")).statistics
            if user.min <= before and user.max:
                advice = "Run tfrec prepare again, under another run.name if this one is trained"
                raise DataError("a row group must hold whole users", path, advice)
            before = user.max

    def whole(self) -> dict[str, np.ndarray]:
        """All columns of all events."""
        parts = []
        for path in self._footers:
            with reading(path):
                parts.append(pq.read_table(path, page_checksum_verification=True))
        table = pa.concat_tables(parts)
        return {name: array(table[name]) for name in table.column_names}

    def sample(self, share: float, seed: int) -> dict[str, np.ndarray]:
        """All columns of all events of about this share of the known users, drawn by their indices."""
        parts = []
        for group in range(len(self)):
            taken = _drawn(self.read(group, ["user"])["user"], share, seed)
            if taken.any():
                parts.append({name: column[taken] for name, column in self.read(group, self.columns).items()})
        parts = parts or [{name: array(self._schema.empty_table()[name]) for name in self.columns}]
        return {name: np.concatenate([part[name] for part in parts]) for name in self.columns}

    @cached_property
    def _footers(self) -> dict[str, pq.FileMetaData]:
        footers = {}
        for path in map(str, self.paths):
            with reading(path):
                footers[path] = pq.read_metadata(path)
        return footers

    @cached_property
    def _schema(self) -> pa.Schema:
        return next(iter(self._footers.values())).schema.to_arrow_schema()


def _drawn(user: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Which events are of drawn users; the same users for every table of this seed."""
    mixed = (user.astype(np.uint64) + np.uint64(seed + 1)) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(31))) * np.uint64(0xBF58476D1CE4E5B9)
    return ((mixed >> np.uint64(40)) < np.uint64(int(share * 2**24))) & (user > 0)


def array(column: pa.ChunkedArray) -> np.ndarray:
    """A column as NumPy has it; equal strings share one Python object, and null is None."""
    if not pa.types.is_string(column.type):
        return column.to_numpy()
    codes = column.dictionary_encode().unify_dictionaries().combine_chunks()
    words = np.array([*codes.dictionary.to_pylist(), None], object)
    return words[codes.indices.fill_null(len(words) - 1).to_numpy(zero_copy_only=False)]


@contextmanager
def reading(path: str) -> Iterator[None]:
    """Names a Parquet file that is absent or damaged.

    Raises:
        DataError: instead of what Arrow raises.
    """
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        advice = "Run tfrec prepare again, under another run.name if this one is trained"
        raise DataError("prepared tables must be whole", f"{path}: {str(error).splitlines()[0]}", advice) from error
