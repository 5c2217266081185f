"""Spark as the backend of preparation: the same Ibis expressions, on as many machines as Spark has."""

from __future__ import annotations

from typing import Any

import ibis
import ibis.expr.types as ir

from tfrec.errors import ConfigError, TfrecError


def connect() -> Any:
    """An Ibis connection to the active Spark session, or to one that Spark's own settings describe.

    Raises:
        ConfigError: pyspark is not installed.
        TfrecError: Spark does not start.
    """
    try:
        from pyspark.errors import PySparkException
        from pyspark.sql import SparkSession
    except ImportError as error:
        raise ConfigError('data.backend = "spark" needs pyspark', advice="pip install tfrec[spark]") from error
    try:
        session = SparkSession.builder.appName("tfrec").getOrCreate()
    except PySparkException as error:
        raise TfrecError("Spark must start", str(error).splitlines()[0], "Install Java 17 or later") from error
    session.conf.set("spark.sql.session.timeZone", "UTC")
    return ibis.pyspark.connect(session)


def read(connection: Any, paths: list[str], order: str) -> ir.Table:
    """Parquet files with the place of each row, files in the order of their names.

    Args:
        connection: of :func:`connect`.
        paths: that every worker of Spark can read.
        order: name of the column of places.
    """
    session = connection._session
    rows = session.read.option("mergeSchema", True).parquet(*paths)
    rows = rows.selectExpr("*", "_metadata.file_path AS _file", "_metadata.row_index AS _row")
    counts = {row["_file"]: row["count"] for row in rows.groupBy("_file").count().collect()}
    first, starts = 0, []
    for file in sorted(counts):
        starts.append((file, first))
        first += counts[file]
    table = session.createDataFrame(starts, "_file STRING, _first LONG")
    placed = rows.join(table.hint("broadcast"), "_file").selectExpr("*", f"_first + _row AS {order}")
    name = f"_read_{abs(hash(tuple(paths))):x}"
    placed.drop("_file", "_first", "_row").createOrReplaceTempView(name)
    return connection.table(name)
