"""Parquet, CSV and JSONL files as Ibis tables whose ids are strings and whose rows remember their order."""

from __future__ import annotations

import glob
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import ibis
import ibis.expr.datatypes as dt
import ibis.expr.types as ir
import pyarrow as pa
import pyarrow.parquet as pq
from ibis.backends.duckdb import Backend

from tfrec.data import spark
from tfrec.errors import DataError, TfrecError

ORDER = "_order"  # int64: place of a row in its files, files in name order
TIME = "_time"  # int64: microseconds since 1970 in UTC, null when it cannot be read
MEMORY = "400MB"  # of DuckDB's buffers; what does not fit goes to disk

_FORMATS = {"parquet": "parquet", "pq": "parquet", "csv": "csv", "tsv": "csv", "jsonl": "jsonl", "ndjson": "jsonl"}
_LATEST = 1e11  # epoch seconds beyond the year 5000 are milliseconds by mistake
_TEXT_COLUMNS = ("user_id", "item_id", "event", "split")


@ibis.udf.scalar.builtin
def epoch_us(moment) -> int:  # type: ignore[no-untyped-def, empty-body]
    """DuckDB's microseconds since 1970: Ibis itself has whole seconds only."""


@ibis.udf.scalar.builtin
def unix_micros(moment) -> int:  # type: ignore[no-untyped-def, empty-body]
    """Spark's."""


def connect(backend: str = "duckdb") -> Any:
    """An in-process DuckDB with bounded memory, or Spark; dates without a zone are UTC."""
    if backend == "spark":
        return spark.connect()
    connection = ibis.duckdb.connect(memory_limit=MEMORY)
    connection.raw_sql("SET TimeZone = 'UTC'")
    return connection


def read(connection: Any, pattern: str) -> ir.Table:
    """The rows of the files that a path or glob names, with their order in the column ``_order``.

    Args:
        connection: the DuckDB to read with.
        pattern: path or glob of Parquet, CSV/TSV or JSONL files; CSV and JSONL may be compressed (.gz, .zst).

    Raises:
        DataError: no file, an unknown or mixed format, or a file that cannot be read.
    """
    paths, kind = _paths(pattern), format_of(pattern)
    if connection.name == "pyspark":
        if kind != "parquet":
            raise DataError('data.backend = "spark" reads Parquet files, whose rows have places', pattern)
        with reading(pattern):
            return spark.read(connection, [str(Path(path).absolute()) for path in paths], ORDER)
    with reading(pattern):
        match kind:
            case "parquet":
                table = connection.read_parquet(paths, union_by_name=True)
            case "csv":
                table = connection.read_csv(paths, all_varchar=True, header=True, union_by_name=True)
            case _:
                table = _read_jsonl(connection, paths)
    # DuckDB promises that a window without PARTITION and ORDER numbers rows in file order.
    return table.mutate(**{ORDER: ibis.row_number()})


@contextmanager
def reading(*patterns: str) -> Iterator[None]:
    """Turns the backend's complaint about a file into a DataError that names it.

    Args:
        patterns: of the files that are read; a damaged Parquet file among them is looked for.

    Raises:
        DataError: a file cannot be read.
        TfrecError: memory or disk is too small for the work.
    """
    try:
        yield
    except _engine_errors() as error:
        lines = str(error).strip().splitlines()
        if _is_out_of_space(error):
            advice = f"DuckDB may use {MEMORY} of memory and puts the rest beside the results: make room there"
            raise TfrecError("preparing tables must have enough memory and disk", lines[0], advice) from error
        what = next((path for pattern in patterns for path in matched(pattern) if _is_damaged(path)), patterns[0])
        raise DataError(f"{what} must be readable", lines[0], " ".join(lines[1:4]).strip()) from error


def _is_damaged(path: str) -> bool:
    """Whether a Parquet file cannot be read to its end; backends name the glob, or nothing."""
    if _format(path) != "parquet":
        return False
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            for _ in file.iter_batches():
                pass
    except (OSError, pa.ArrowException):
        return True
    return False


def _engine_errors() -> tuple[type[Exception], ...]:
    loaded = sys.modules.get("pyspark.errors")  # importing it would be a cost to those who do not use it
    if loaded is None:
        return (duckdb.Error,)
    return duckdb.Error, loaded.PySparkException, sys.modules["py4j.protocol"].Py4JError


def require(table: ir.Table, columns: Iterable[str], what: str) -> None:
    """Raises a DataError that names the first missing column and those that are there."""
    for column in columns:
        if column not in table.columns:
            found = [name for name in table.columns if not name.startswith("_")]
            raise DataError(f"{what} must have a column {column!r}", found)


def as_interactions(table: ir.Table) -> ir.Table:
    """Interactions in the common form: string ids, ``_order``, optional ``_time`` and float ``value``.

    Args:
        table: what ``read`` gave, with user_id, item_id and optionally timestamp, event, value and split.

    Raises:
        DataError: user_id or item_id is missing.
    """
    require(table, ("user_id", "item_id"), "the interactions")
    table = table.mutate(user_id=as_id(table.user_id), item_id=as_id(table.item_id))
    if "timestamp" in table.columns:
        table = table.mutate(**{TIME: as_microseconds(table.timestamp)}).drop("timestamp")
    if "value" in table.columns:
        table = table.mutate(value=as_float(table.value))
    return table


def as_id(column: ir.Column) -> ir.StringValue:
    """An id as a string; empty is null, and 7.0 is "7" (a nullable integer that passed through floats)."""
    return as_text(column).nullif("")


def as_text(column: ir.Column, separator: str = " ") -> ir.StringValue:
    """Any column as strings; lists are joined, whole floats lose their ``.0``."""
    kind = column.type()
    if kind.is_string():
        return column
    if kind.is_array():
        joined = column.cast("array<string>").join(separator)
        return ibis.ifelse(column.length() == 0, "", joined)  # which Spark takes for null
    if kind.is_floating():
        integer = column.try_cast("int64")  # null of what is not finite, where floor() fails
        whole = (column == integer.cast("float64")) & (column.abs() < 2**53)
        # DuckDB 2.0 takes isnan() for false where Parquet's statistics, which leave NaN out, are finite.
        number = column.cast("string").nullif("nan").nullif("NaN")
        return ibis.ifelse(whole, integer.cast("string"), number)
    return column.cast("string")


def as_float(column: ir.Column) -> ir.FloatingValue:
    """Any column as float64: null where it cannot be read, seconds since 1970 for dates."""
    kind = column.type()
    if kind.is_temporal() and not kind.is_time():
        return as_microseconds(column) / 1e6
    return column.try_cast("float64")


def as_flag(column: ir.Column) -> ir.FloatingValue:
    """A yes/no column as 1.0/0.0: booleans, numbers (not zero = yes), or words such as true, no, t, 0."""
    if column.type().is_numeric():
        return (column != 0).cast("float64")
    return column.try_cast("boolean").cast("float64")


def as_microseconds(column: ir.Column) -> ir.IntegerValue:
    """Epoch seconds, dates or timestamps as int64 microseconds since 1970 in UTC; null where unreadable."""
    kind = column.type()
    if kind.is_string():
        moment = _microseconds(column.try_cast("timestamp('UTC')"))
        return ibis.coalesce(_from_epoch(column.try_cast("float64")), moment)
    if kind.is_timestamp():
        return _microseconds(column)
    if kind.is_date():
        return _microseconds(column.cast("timestamp"))
    return _from_epoch(column.try_cast("float64"))


def _microseconds(moment: ir.TimestampValue) -> ir.IntegerValue:
    return (unix_micros if moment.get_backend().name == "pyspark" else epoch_us)(moment)


def _from_epoch(seconds: ir.FloatingValue) -> ir.IntegerValue:
    return ibis.ifelse(seconds.abs() <= _LATEST, (seconds * 1e6).round(), ibis.null("float64")).cast("int64")


def _is_out_of_space(error: Exception) -> bool:
    # DuckDB has one class for all trouble with files; only its words tell writing from reading.
    writing = any(words in str(error) for words in ("Could not write", "No space left"))
    return isinstance(error, duckdb.OutOfMemoryException) or (isinstance(error, duckdb.IOException) and writing)


def matched(pattern: str) -> list[str]:
    """The files that a path or glob names, in name order."""
    path = Path(pattern).expanduser()
    return [str(path)] if path.is_file() else sorted(glob.glob(str(path), recursive=True))


def format_of(pattern: str) -> str:
    """The one format of the files that a path or glob names: parquet, csv or jsonl.

    Raises:
        DataError: no file, or an unknown or mixed format.
    """
    formats = {_format(path) for path in _paths(pattern)}
    if len(formats) > 1:
        raise DataError(f"the files of {pattern} must have one format", sorted(formats))
    return formats.pop()


def _paths(pattern: str) -> list[str]:
    paths = matched(pattern)
    if not paths:
        raise DataError("a table must be a file, or a glob that matches files", pattern, "Check the path")
    return paths


def _format(path: str) -> str:
    suffixes = [suffix.lstrip(".").lower() for suffix in Path(path).suffixes]
    for suffix in reversed(suffixes):
        if suffix in _FORMATS:
            return _FORMATS[suffix]
    raise DataError(f"a table must end in one of {', '.join('.' + name for name in _FORMATS)}", path)


def _read_jsonl(connection: Backend, paths: list[str]) -> ir.Table:
    options = {"format": "newline_delimited", "union_by_name": True}
    # Detection turns ids that look like dates into dates, and mixed ids into JSON: name the types that we want.
    schema = connection.read_json(paths, sample_size=-1, **options).schema()
    types = {name: _json_type(connection, name, kind) for name, kind in schema.items()}
    return connection.read_json(paths, columns=types, **options)


def _json_type(connection: Backend, name: str, kind: dt.DataType) -> str:
    plain = (kind.is_numeric() or kind.is_boolean() or kind.is_array()) and name not in _TEXT_COLUMNS
    return connection.compiler.type_mapper.to_string(kind) if plain else "VARCHAR"
