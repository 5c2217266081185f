"""Tables in, integer events, vocabularies and a report out: one folder that training reads."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import ibis.expr.types as ir
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tfrec.config import Config
from tfrec.data import events, files, groups, side, splits, stores
from tfrec.data.checks import Problems, Store
from tfrec.data.content import content
from tfrec.data.encode import Encoded, encode
from tfrec.data.sources import Tables, open_source
from tfrec.errors import DataError


@dataclass(frozen=True)
class Prepared:
    """What ``prepare`` wrote; each part is read when it is first asked for.

    Args:
        folder: where it is.
        report: counts, problems, notes, settings, hashes and seconds.
        memory: bytes that ``events`` may take; None = any.
        seed: of the sample, when they take more.
    """

    folder: Path
    report: dict[str, Any]
    memory: int | None = None
    seed: int = 0

    @cached_property
    def items(self) -> pa.Table:
        """item_id, count (train events) and the raw columns, as strings or float64."""
        return self._table("items")

    @cached_property
    def users(self) -> pa.Table:
        """user_id, count and the raw columns."""
        return self._table("users")

    @cached_property
    def item_ids(self) -> np.ndarray:
        """Str objects [N]; item index i is row i - 1."""
        return groups.array(self.items["item_id"])

    @cached_property
    def user_ids(self) -> np.ndarray:
        """Str objects [U]; user index u is row u - 1."""
        return groups.array(self.users["user_id"])

    @cached_property
    def groups(self) -> groups.EventGroups:
        """The events as row groups that hold whole users."""
        return groups.EventGroups((self.folder / "events.parquet",))

    @property
    def fits(self) -> bool:
        """Whether all events may be in memory."""
        return self.memory is None or self.groups.bytes() <= self.memory

    @cached_property
    def events(self) -> dict[str, np.ndarray]:
        """Arrays by column, sorted by user, time and file order: user and item int32, split int8 (0 train, 1 valid,
        2 test), timestamp int64 seconds and value float64 if there are any, context columns. Where not all fit, those
        of a sample of the users."""
        if self.fits:
            return self.groups.whole()
        assert self.memory is not None
        return self.groups.sample(self.memory / self.groups.bytes(), self.seed)

    def _table(self, name: str) -> pa.Table:
        path = str(self.folder / f"{name}.parquet")
        with groups.reading(path):
            return pq.read_table(path)

    def ragged(self, parts: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Items per user, oldest first: list u holds those of user index u; list 0, unknown users, is empty.

        Args:
            parts: the splits to take, such as ``(0, 1)`` for train and valid.

        Returns:
            values int32 [total] and offsets int64 [U + 2].
        """
        users = self.events["user"]
        kept = np.isin(self.events["split"], parts) & (users > 0)
        counts = np.bincount(users[kept], minlength=len(self.user_ids) + 1)
        return self.events["item"][kept], np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def prepare(config: Config, folder: Path) -> Prepared:
    """Cleans, splits and encodes the tables of the settings.

    Items keep the order of the items table (all of them, also those without an event); users, and items without such
    a table, the order of their first event in the files. With the temporal split only events before the first cut
    give users (others have index 0) and, without an items table, items (events with others are dropped).

    Args:
        config: the settings.
        folder: what to write; replaced when it holds prepared tables.

    Raises:
        ConfigError: the source is unknown, or a context feature has a reserved name.
        DataError: a table, column or split breaks a rule.
        TfrecError: memory or disk is too small.
    """
    started = time.perf_counter()
    if folder.exists() and any(folder.iterdir()) and not (folder / "report.json").is_file():
        raise DataError("prepared tables must go to a new folder or replace prepared tables", str(folder))
    now = settings(config)  # before reading: what changes meanwhile must differ from it
    tables = open_source(config.data)
    named = [pattern for pattern in _patterns(config) if pattern] or [config.data.source]
    with _beside(folder) as temporary, stores.workspace(tables.connection, temporary) as store, files.reading(*named):
        new = temporary / "new"
        report = _write(config, tables, store, new)
        report["settings"] = now
        report["seconds"] = round(time.perf_counter() - started, 3)
        text = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
        (new / "report.json").write_text(text, encoding="utf-8")
        if folder.exists():
            os.rename(folder, temporary / "old")
        os.rename(new, folder)
    return load(folder)


def load(folder: Path, memory: int | None = None, seed: int = 0) -> Prepared:
    """Opens what ``prepare`` wrote.

    Args:
        folder, memory, seed: of :class:`Prepared`.

    Raises:
        DataError: the folder holds no prepared tables.
    """
    try:
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError("a folder must hold prepared tables", str(folder), "Run tfrec prepare") from error
    prepared = Prepared(folder, report, memory, seed)
    for path in (*prepared.groups.paths, folder / "items.parquet", folder / "users.parquet"):
        with groups.reading(str(path)):
            pq.read_metadata(path)
    return prepared


def _write(config: Config, tables: Tables, store: Store, folder: Path) -> dict[str, Any]:
    problems: Problems = {}
    folder.mkdir()
    item_side, user_side = side.sides(config)
    catalogue = side.open_side(tables.items, item_side, problems)
    people = side.open_side(tables.users, user_side, problems)
    catalogue = None if catalogue is None else store("catalogue", catalogue)
    encoded = encode(config, tables.interactions, catalogue, store, problems, tables.columnar)
    tally = events.write(encoded, config, store, folder / "events.parquet")
    counts = _counts(encoded, tally)
    sides = ((encoded.items, tally.items, catalogue, item_side), (encoded.users, tally.users, people, user_side))
    for vocabulary, numbers, table, one in sides:
        rows = side.indexed(vocabulary, table, one, problems)
        _write_rows(rows, numbers, store, folder / f"{one.what}.parquet")
    return {
        **counts,
        **_sizes(folder),
        "columns": tally.columns,
        "problems": problems,
        "notes": list(tables.notes),
        "hashes": _hashes(folder, tally),
    }


def _counts(encoded: Encoded, tally: events.Tally) -> dict[str, Any]:
    """Interactions received and events kept by split, none of which may be empty."""
    total = int(tally.splits.sum())
    counts = dict(zip(splits.NAMES, tally.splits.tolist(), strict=True))
    if not all(counts.values()):
        advice = "Choose another data.split, or bring more interactions per user"
        raise DataError("train, valid and test must each have events", counts, advice)
    return {"interactions": encoded.received, "events": total, "splits": counts}


def _write_rows(rows: ir.Table, counts: np.ndarray, store: Store, path: Path) -> None:
    """Writes a vocabulary's rows, ids first, then the train events of each."""
    fields = list(rows.schema().to_pyarrow())
    schema = pa.schema([fields[0], pa.field("count", pa.int64()), *fields[1:]])
    start = 0
    with pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True) as writer:
        for batch in store.batches(rows):
            key, *columns = batch.columns
            count = pa.array(counts[start : start + len(batch)])
            writer.write_batch(pa.record_batch([key, count, *columns], schema=schema))
            start += len(batch)


def _sizes(folder: Path) -> dict[str, int]:
    items = pq.read_table(folder / "items.parquet", columns=["count"])["count"].to_numpy()
    users = pq.read_metadata(folder / "users.parquet").num_rows
    return {"users": users, "items": len(items), "cold_items": int((items == 0).sum())}


def settings(config: Config) -> dict[str, Any]:
    """What the prepared tables depend on, so that a later stage can tell whether they are still right."""
    tree = config.model_dump(mode="json", include={"data", "features"})
    evaluate = config.evaluate.model_dump(include={"repeats", "holdout"})
    return tree | {"seed": config.run.seed, "ranker": list(config.ranker_columns), **evaluate, "files": _files(config)}


def _patterns(config: Config) -> tuple[str | None, ...]:
    return config.data.interactions, config.data.items, config.data.users


def _files(config: Config) -> list[list[Any]]:
    """[path, size in bytes, mtime in nanoseconds] of each file that the settings match; none for a public set."""
    paths = [path for pattern in _patterns(config) if pattern for path in files.matched(pattern)]
    return [[path, status.st_size, status.st_mtime_ns] for path in paths for status in [os.stat(path)]]


def _hashes(folder: Path, tally: events.Tally) -> dict[str, str]:
    """sha256 of the contents, which unlike the files do not depend on the writer's version."""
    hashes = {"events": tally.hash()}
    for name, key in (("users", "user_id"), ("items", "item_id")):
        hashes[name] = hashlib.sha256(
            content(pq.read_table(folder / f"{name}.parquet", columns=[key])[key])
        ).hexdigest()
    return hashes


@contextmanager
def _beside(folder: Path) -> Iterator[Path]:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        yield Path(temporary)
