"""Where the steps of preparation are kept: DuckDB's tables, or Parquet folders between Spark's jobs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import ibis.expr.types as ir
import pyarrow as pa
import pyarrow.parquet as pq
from ibis.backends.duckdb import Backend

from tfrec.data.checks import Store
from tfrec.data.groups import GROUP


def workspace(connection: Any, folder: Path) -> AbstractContextManager[Store]:
    """The store of a connection, which is closed with it.

    Args:
        connection: to DuckDB or Spark.
        folder: for what does not fit in memory.
    """
    return _spark(connection, folder) if connection.name == "pyspark" else _duckdb(connection, folder)


@contextmanager
def _duckdb(connection: Backend, folder: Path) -> Iterator[Store]:
    quoted = str(folder).replace("'", "''")
    connection.raw_sql(f"SET temp_directory = '{quoted}'")
    try:
        yield DuckStore(connection)
    finally:
        connection.disconnect()


@contextmanager
def _spark(connection: Any, folder: Path) -> Iterator[Store]:
    yield SparkStore(connection, folder / "spark")


class DuckStore:
    """Steps are tables of an in-process DuckDB, which spills."""

    def __init__(self, connection: Backend):
        self._connection = connection

    def __call__(self, name: str, table: ir.Table) -> ir.Table:
        return self._connection.create_table(name, table)

    def drop(self, *tables: ir.Table) -> None:
        for table in tables:
            self._connection.raw_sql(f'DROP TABLE "{_name(table)}"')  # Ibis' drop_table is no SQL to DuckDB 2

    def batches(self, table: ir.Table) -> Iterator[pa.RecordBatch]:
        # Ibis calls this by its former name.
        yield from self._connection.con.sql(self._connection.compile(table)).to_arrow_reader(GROUP)


class SparkStore:
    """Steps are Parquet folders that Spark's workers write and read: a path that all of them share."""

    def __init__(self, connection: Any, folder: Path):
        self._connection, self._folder = connection, folder

    def __call__(self, name: str, table: ir.Table) -> ir.Table:
        return self._connection.read_parquet(str(self._written(name, table)), table_name=name)

    def drop(self, *tables: ir.Table) -> None:
        for table in tables:
            self._connection._session.catalog.dropTempView(_name(table))
            shutil.rmtree(self._folder / _name(table))

    def batches(self, table: ir.Table) -> Iterator[pa.RecordBatch]:
        folder, schema = self._written("batches", table), table.schema().to_pyarrow()
        # Spark sorts by ranges: its parts follow one another.
        for part in sorted(folder.glob("part-*.parquet")):
            with pq.ParquetFile(part) as file:
                for batch in file.iter_batches(GROUP):
                    yield batch.cast(schema)
        shutil.rmtree(folder)

    def _written(self, name: str, table: ir.Table) -> Path:
        path = self._folder / name
        self._connection._session.sql(self._connection.compile(table)).write.parquet(str(path))
        return path


def _name(table: ir.Table) -> str:
    return table.op().name
