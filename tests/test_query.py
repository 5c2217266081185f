"""tfrec query: a table with titles, JSON, over both transports."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.saved_models import save_shop
from tests.shop_server import serving_shop
from tfrec import cli


@pytest.fixture(scope="module", params=["grpc", "rest"])
def target(request, tmp_path_factory):
    with serving_shop(save_shop(tmp_path_factory.mktemp("shop") / "1")) as targets:
        yield f"{targets[request.param]}/shop"


@pytest.fixture
def items(tmp_path):
    rows = {
        "item_id": ["apple", "nail", "saw"],
        "title": ["Red apple", "Nail\n\x1b[31m 4 cm", None],
        "price": [1, 2, 3],
    }
    pq.write_table(pa.table(rows), tmp_path / "items.parquet")
    return str(tmp_path / "items.parquet")


def printed(capsys, *argv) -> str:
    assert cli.main(["query", *argv]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def fails(capsys, code, *argv) -> str:
    assert cli.main(["query", *argv]) == code
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1, err
    return err


def test_a_table(capsys, target):
    assert printed(capsys, target, "--search", "tool", "-k", "2") == "   1.2500  hammer\n   1.1250  nail\n"


def test_titles_are_beside_the_ids_and_of_one_line(capsys, target, items):
    assert printed(capsys, target, "--rank", "nail,apple,hammer,saw", "--history", "saw", "--items", items) == (
        "   1.0625  hammer\n   1.0312  nail    Nail [31m 4 cm\n   1.0156  saw\n   0.0625  apple   Red apple\n"
    )


def test_titles_of_another_column_and_format(capsys, target, tmp_path):
    (tmp_path / "items.csv").write_text("item_id,name\napple,Äpfel\n", encoding="utf-8")
    line = printed(capsys, target, "-k", "1", "--items", str(tmp_path / "*.csv"), "--title", "name")
    assert line == "   0.0500  apple  Äpfel\n"


def test_json(capsys, target, items):
    found = json.loads(printed(capsys, target, "-k", "2", "--json", "--items", items))
    assert found == [
        {"item_id": "apple", "score": pytest.approx(0.05), "title": "Red apple"},
        {"item_id": "pear", "score": pytest.approx(0.04)},
    ]


def test_nothing_found_is_an_empty_table(capsys, target):
    everything = "apple,pear,hammer,nail,saw"
    assert printed(capsys, target, "--exclude", everything) == ""
    assert json.loads(printed(capsys, target, "--exclude", everything, "--json")) == []


def test_a_table_that_has_no_titles(capsys, target, items, tmp_path):
    assert "the items must have a column 'name'" in fails(capsys, 1, target, "--items", items, "--title", "name")
    assert "absent.csv" in fails(capsys, 1, target, "--items", str(tmp_path / "absent.csv"))


@pytest.mark.parametrize("target", ["h:1", "http://h:1", "http:///m", "/m", "h:1/"])
def test_a_target_has_an_address_and_a_model(capsys, target):
    assert "a target must be host:port/model or http://host:port/model" in fails(capsys, 2, target)


@pytest.mark.parametrize("seconds", ["0", "-1", "soon", "nan"])
def test_a_timeout_is_above_0(capsys, seconds):
    with pytest.raises(SystemExit) as caught:
        cli.main(["query", "h:1/m", "--timeout", seconds])
    assert caught.value.code == 2
    assert "a timeout must be seconds above 0" in capsys.readouterr().err or seconds == "-1"
