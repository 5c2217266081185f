"""The client against a server in this process, over both transports."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from tests.half_plus_two import running
from tests.saved_models import ITEMS, LOWEST, save_shop
from tests.shop_server import serving_shop
from tfrec.client import AsyncClient, BatchedForm, CallError, Client, Result, Retry, Tls, query
from tfrec.errors import ConfigError, ServerError

QUICK = Retry(first_pause=0.01)


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return save_shop(tmp_path_factory.mktemp("shop") / "1")


@pytest.fixture(scope="module")
def targets(shop):
    with serving_shop(shop) as targets:
        yield targets


@pytest.fixture(scope="module", params=["grpc", "rest"])
def target(targets, request):
    return targets[request.param]


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
    for target in ("127.0.0.1:1", "http://127.0.0.1:1"):
        with (
            Client(target, "shop", timeout=5) as client,
            pytest.raises(ServerError, match="Start the server") as caught,
        ):
            client.recommend()
        assert caught.value.code == "UNAVAILABLE"


def test_info(client):
    info = client.info()
    assert (info.name, info.available) == ("shop", (1,))
    assert [(status.version, status.state, status.error) for status in info.versions] == [(1, "AVAILABLE", "")]
    rank = info.signatures["rank"]
    assert {name: (tensor.dtype, tensor.shape) for name, tensor in rank.inputs.items()} == {
        "user_id": ("DT_STRING", (-1,)),
        "history": ("DT_STRING", (-1, -1)),
        "item_ids": ("DT_STRING", (-1, -1)),
    }
    assert rank.outputs["scores"].dtype == "DT_FLOAT"
    assert info.signatures["search"].inputs["k"].shape is None


def test_info_of_an_unknown_model(target):
    with Client(target, "other") as client, pytest.raises(CallError, match=r"info of model other at .*NOT_FOUND"):
        client.info()


def test_asyncio_answers_the_same(target, client):
    async def ask():
        async with AsyncClient(target, "shop") as twin:
            return await asyncio.gather(
                twin.recommend("u", ["pear"], ["hammer"], 2),
                twin.search("tool", k=2),
                twin.similar("apple", k=1),
                twin.rank("u", ["saw"], ["?", "nail"]),
                twin.info(),
            )

    assert asyncio.run(ask()) == [
        client.recommend("u", ["pear"], ["hammer"], 2),
        client.search("tool", k=2),
        client.similar("apple", k=1),
        client.rank("u", ["saw"], ["?", "nail"]),
        client.info(),
    ]


def test_asyncio_fails_the_same(target):
    async def ask(target, **arguments):
        async with AsyncClient(target, "shop", retry=QUICK) as twin:
            await twin.recommend(**arguments)

    with pytest.raises(CallError, match=r"INVALID_ARGUMENT: .*k must be at least 1"):
        asyncio.run(ask(target, k=0))
    nowhere = target.rpartition(":")[0] + ":1"
    with pytest.raises(CallError, match="UNAVAILABLE"):
        asyncio.run(ask(nowhere))


def test_both_transports_give_the_same_floats(targets):
    found = []
    for target in targets.values():
        with Client(target, "shop") as client:
            found.append([client.recommend(k=5), client.rank("", ["apple"], ITEMS)])
    assert found[0] == found[1]


def test_lists_may_be_empty(client):
    assert client.rank("u", [], []) == []
    assert client.recommend("", [], [], 1) == [Result("apple", pytest.approx(0.05))]


@pytest.mark.parametrize("ids", ["apple", [1, 2], [b"apple"]])
def test_ids_are_a_list_of_strings(client, ids):
    with pytest.raises(ConfigError, match="history must be a list of ids, each a string"):
        client.recommend(history=ids)


def test_k_is_an_int32(client):
    with pytest.raises(ConfigError, match="k must be below 2147483648"):
        client.search("a", k=2**31)


# What is imported, and what is sent


def python(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


def test_importing_the_client_imports_no_tensorflow():
    python("import sys, tfrec.client; assert not {'tensorflow', 'grpc', 'numpy', 'google'} & set(sys.modules)")


@pytest.mark.parametrize(
    ("transport", "absent"), [("grpc", {"tensorflow", "numpy"}), ("rest", {"tensorflow", "numpy", "grpc", "google"})]
)
def test_asking_imports_no_tensorflow(targets, transport, absent):
    python(
        f"import sys, tfrec; found = tfrec.Client({targets[transport]!r}, 'shop').search('tool', k=1)\n"
        f"assert found[0].item_id == 'hammer', found; assert not {absent} & set(sys.modules)"
    )


# Encryption


@pytest.mark.parametrize("transport", ["grpc", "rest"])
@pytest.mark.parametrize("mutual", [False, True])
def test_tls(shop, certificates, transport, mutual):
    known = Tls(*(certificates / name for name in ("ca.pem", "client.pem", "client.key")))
    with serving_shop(shop, tls=certificates, mutual=mutual) as targets:
        target = targets[transport]
        with Client(target, "shop", tls=known) as client:
            assert names(client.search("tool", k=1)) == ["hammer"]
        strangers = [Tls()] + ([Tls(certificates / "ca.pem")] if mutual else [])
        for tls in strangers:
            stranger = Client(target, "shop", tls=tls, retry=Retry(attempts=1))
            with stranger, pytest.raises(CallError, match="UNAVAILABLE"):
                stranger.search("tool", k=1)


def test_certificates_that_cannot_be_used(certificates, tmp_path):
    with pytest.raises(ConfigError, match="needs its key"):
        Tls(certificate=certificates / "client.pem")
    with pytest.raises(ConfigError, match=r"must be a readable file; got .*absent.pem: No such file"):
        Tls(tmp_path / "absent.pem")
    (tmp_path / "no.pem").write_text("no certificate")
    with pytest.raises(ConfigError, match="must be PEM files"):
        Client("https://a:1", "shop", tls=Tls(tmp_path / "no.pem"))
    with pytest.raises(ConfigError, match="certificates need an https:// target"):
        Client("http://a:1", "shop", tls=Tls())


# A server that batches, in a second process


def test_the_batched_form_works_where_the_plain_one_cannot(shop, targets):
    form = BatchedForm(history=3, exclude=2)
    flags = ["--model_name", "shop", "--model_base_path", str(shop.parent), "--enable_batching"]
    with running(*flags) as server, Client(targets["grpc"], "shop") as client:
        for target in (server.target, server.rest):
            with Client(target, "shop", batched=form) as batched:
                assert batched.recommend("u", ["pear"], ["hammer"], 2) == client.recommend("u", ["pear"], ["hammer"], 2)
                assert batched.recommend(k=2) == client.recommend(k=2)
                assert batched.search("tool", k=2) == client.search("tool", k=2)
                assert batched.similar("apple", k=1) == client.similar("apple", k=1)
                assert batched.rank("u", ["saw"], ["?", "nail"]) == client.rank("u", ["saw"], ["?", "nail"])
                long = ["nail", "hammer", "pear", "apple", "saw"]
                assert batched.rank("u", long, ITEMS) == client.rank("u", long[-3:], ITEMS)
            with Client(target, "shop") as plain, pytest.raises(CallError, match="INVALID_ARGUMENT"):
                plain.recommend(k=2)
        with Client(server.target, "shop", retry=QUICK) as plain:
            server.process.kill()
            server.process.wait()
            with pytest.raises(CallError, match="UNAVAILABLE"):
                plain.search("tool")


def test_the_widths_of_a_batched_form(targets):
    with pytest.raises(ConfigError, match="must be at least 1"):
        BatchedForm(history=0, exclude=1)
    form = BatchedForm(**{"history": 50, "exclude": 2, "filler": ""})
    client = Client(targets["rest"], "shop", batched=form)
    with client, pytest.raises(ConfigError, match="must exclude at most 2 items; got 3"):
        client.search("tool", exclude=ITEMS[:3])
