"""The client against a server in this process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.saved_models import LOWEST, save_shop
from tfrec.client import Client, Result, query
from tfrec.errors import ConfigError, ServerError
from tfrec.server.grpc_server import Model, start
from tfrec.server.servable import Servable


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    servable = Servable(save_shop(tmp_path_factory.mktemp("shop") / "1"))
    server, port = start(Model("shop", 1, servable), "127.0.0.1", 0, 2)
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()
    servable.close()


@pytest.fixture(scope="module")
def client(target):
    with Client(target, "shop") as client:
        yield client


def names(results: list[Result]) -> list[str]:
    return [result.item_id for result in results]


def test_recommend(client):
    results = client.recommend("u", history=["pear"], exclude=["hammer"], k=2)
    assert names(results) == ["apple", "nail"]
    assert results[0].score == pytest.approx(1.175)


def test_recommend_without_anything_is_popularity(client):
    assert names(client.recommend(k=3)) == ["apple", "pear", "hammer"]


def test_a_short_answer_drops_the_filling(client):
    assert names(client.search("tool", exclude=["saw", "nail"], k=10)) == ["hammer", "apple", "pear"]


def test_similar(client):
    assert client.similar("apple", k=1) == [Result("pear", 1.125)]


def test_rank_puts_the_best_first_and_the_unknown_last(client):
    results = client.rank("u", ["saw"], ["?", "apple", "nail"])
    assert names(results) == ["nail", "apple", "?"]
    assert results[-1].score == LOWEST


def test_query_chooses_the_signature(target, client):
    assert query(target, "shop", text="tool", k=2) == client.search("tool", k=2)
    assert query(target, "shop", item_id="apple", k=2) == client.similar("apple", k=2)
    assert query(target, "shop", history=["saw"], item_ids=["nail"]) == client.rank("", ["saw"], ["nail"])
    assert query(target, "shop", user_id="u", k=2) == client.recommend("u", k=2)


def test_query_takes_one_kind(target):
    with pytest.raises(ConfigError, match="one of text, item_id and item_ids; got 'text and item_id'"):
        query(target, "shop", text="a", item_id="b")


def test_the_servers_words_reach_the_caller(client):
    with pytest.raises(ServerError, match=r"recommend of model shop at .*INVALID_ARGUMENT: .*k must be at least 1"):
        client.recommend(k=0)


def test_an_unknown_model(target):
    with Client(target, "other") as client, pytest.raises(ServerError, match=r"NOT_FOUND: .*Latest\(other\)"):
        client.recommend()


def test_no_server_says_what_to_do():
    with Client("127.0.0.1:1", "shop", timeout=5) as client, pytest.raises(ServerError, match="Start the server"):
        client.recommend()


def test_importing_the_client_imports_no_tensorflow():
    code = "import sys, tfrec.client; assert not {'tensorflow', 'grpc', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
