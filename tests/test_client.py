"""The client against a server in this process, over both transports, and against servers that misbehave."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tensorflow.core.framework import types_pb2
from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2, predict_pb2

from tests.faulty_http import FaultyHttp, answer, drip, stall
from tests.half_plus_two import running
from tests.saved_models import ITEMS, LOWEST, save_shop
from tests.shop_server import serving_shop
from tfrec.client import AsyncClient, BatchedForm, CallError, Client, Result, Retry, Tls, query, wire
from tfrec.errors import ConfigError, ServerError

FOUND = answer(200, {"outputs": {"item_ids": [["apple", ""]], "scores": [[0.05, -3.4028235e38]]}})
GONE = answer(503, {"error": "no room"})
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
    with Client(target, "other") as client, pytest.raises(CallError, match="info of model other at .*NOT_FOUND"):
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

    with pytest.raises(CallError, match="INVALID_ARGUMENT: .*k must be at least 1"):
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


REAL = {
    **{name: getattr(predict_pb2, name) for name in ("PredictRequest", "PredictResponse")},
    **{f"GetModelStatus{name}": getattr(get_model_status_pb2, f"GetModelStatus{name}") for name in ("Request", "Response")},
    **{f"GetModelMetadata{n}": getattr(get_model_metadata_pb2, f"GetModelMetadata{n}") for n in ("Request", "Response")},
    "SignatureDefMap": get_model_metadata_pb2.SignatureDefMap,
}  # fmt: skip


def same_on_the_wire(ours, real, path: str, seen: set[str]) -> None:
    for field in ours.fields:
        found = real.fields_by_number[field.number]
        assert (field.name, field.is_repeated) == (found.name, found.is_repeated), path
        enum = found.type == found.TYPE_ENUM
        assert field.type == (field.TYPE_INT32 if enum else found.type), f"{path}.{field.name}"
        if field.message_type and field.message_type.name not in seen:
            seen.add(field.message_type.name)
            same_on_the_wire(field.message_type, found.message_type, f"{path}.{field.name}", seen)


@pytest.mark.parametrize("name", sorted(REAL))
def test_the_messages_are_those_of_tensorflow_serving(name):
    same_on_the_wire(wire.MESSAGES[name].DESCRIPTOR, REAL[name].DESCRIPTOR, name, set())


def test_numbers_of_types_and_states_are_tensorflows():
    for number, name in enumerate(wire.DTYPES):
        assert types_pb2.DataType.Name(number) == f"DT_{name}"
    assert {number: name for name, number in get_model_status_pb2.ModelVersionStatus.State.items()} == wire.STATES


def test_typed_values_may_be_shortened_and_packed():
    tensor = wire.MESSAGES["TensorProto"]
    shape = wire.MESSAGES["TensorShapeProto"](dim=[{"size": 2}, {"size": 2}])
    short = tensor(dtype=1, tensor_shape=shape, float_val=[1.5, 2.0])
    packed = tensor(dtype=1, tensor_shape=shape, tensor_content=b"\0\0\xc0?\0\0\0@\0\0\0@\0\0\0@")
    assert wire._values(short) == wire._values(packed) == [[1.5, 2.0], [2.0, 2.0]]


# Retries and deadlines


@pytest.mark.parametrize("failures", [1, 2, 3])
def test_unavailable_is_tried_again(failures):
    with FaultyHttp([GONE] * failures + [FOUND]) as server, Client(server.target, "shop", retry=QUICK) as client:
        assert client.recommend() == [Result("apple", pytest.approx(0.05))]
    assert server.requests == failures + 1


def test_attempts_are_bounded():
    retry = Retry(attempts=3, first_pause=0.01)
    with (
        FaultyHttp([GONE]) as server,
        Client(server.target, "shop", retry=retry) as client,
        pytest.raises(CallError, match="UNAVAILABLE: no room"),
    ):
        client.recommend()
    assert server.requests == 3


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, "INVALID_ARGUMENT"),
        (404, "NOT_FOUND"),
        (429, "RESOURCE_EXHAUSTED"),
        (500, "INTERNAL"),
        (504, "DEADLINE_EXC"),
    ],
)
def test_nothing_else_is_tried_again(status, code):
    with (
        FaultyHttp([answer(status, {"error": "the server's words\nnode"})]) as server,
        Client(server.target, "shop", retry=QUICK) as client,
        pytest.raises(CallError, match=f"{code}.*: the server's words'"),
    ):
        client.recommend()
    assert server.requests == 1


def test_retries_end_at_the_deadline():
    started = time.monotonic()
    with (
        FaultyHttp([GONE]) as server,
        Client(server.target, "shop", 0.3, retry=Retry(attempts=1000, first_pause=0.05)) as client,
        pytest.raises(CallError, match="UNAVAILABLE"),
    ):
        client.recommend()
    assert time.monotonic() - started < 2
    assert 1 < server.requests < 1000


def test_pauses_grow_and_are_spread():
    retry = Retry(first_pause=0.1, longest_pause=0.5)
    for failures, most in ((1, 0.1), (2, 0.2), (3, 0.4), (4, 0.5), (50, 0.5)):
        pauses = [retry.pause(failures) for _ in range(200)]
        assert 0 <= min(pauses) < most / 4
        assert most * 3 / 4 < max(pauses) <= most


@pytest.mark.parametrize("behaviour", [stall, drip])
def test_a_server_that_never_ends_meets_the_deadline(behaviour):
    started = time.monotonic()
    with FaultyHttp([behaviour]) as server, Client(server.target, "shop", 0.4) as client:
        with pytest.raises(CallError, match=r"DEADLINE_EXCEEDED: .*Raise the timeout of 0.4 s"):
            client.recommend()
        assert 0.3 < time.monotonic() - started < 5
    assert server.requests == 1


@pytest.mark.parametrize("transport", ["grpc", "rest"])
def test_a_server_that_starts_late_is_found(shop, transport, tmp_path):
    with serving_shop(shop) as targets:
        target = targets[transport]
    port = int(target.rpartition(":")[2])
    with Client(target, "shop", 20, retry=Retry(attempts=30, first_pause=0.2)) as client:
        with pytest.raises(CallError, match="UNAVAILABLE"), Client(target, "shop", 0.2) as impatient:
            impatient.search("tool")
        with serving_shop(shop, **{transport: port}, after=0.5):
            assert names(client.search("tool", k=1)) == ["hammer"]


# Connections


def test_a_connection_is_kept():
    with FaultyHttp([FOUND]) as server, Client(server.target, "shop") as client:
        for _ in range(5):
            client.recommend()
    assert (server.requests, server.connections) == (5, 1)


def test_an_idle_connection_that_was_closed_is_replaced():
    once = Retry(attempts=1)
    with FaultyHttp([FOUND], hang_up=True) as server, Client(server.target, "shop", retry=once) as client:
        for _ in range(3):
            client.recommend()
            time.sleep(0.05)
    assert (server.requests, server.connections) == (3, 3)


@pytest.mark.parametrize("page", [b"<html>proxy</html>", b"[]", b"", b"{"])
def test_an_answer_that_is_no_json_is_refused(page):
    with (
        FaultyHttp([(200, page)]) as server,
        Client(server.target, "shop") as client,
        pytest.raises(CallError, match="an answer that is no JSON object"),
    ):
        client.recommend()


def test_another_kind_of_model_is_refused():
    with (
        FaultyHttp([answer(200, {"outputs": [1.0]})]) as server,
        Client(server.target, "shop") as client,
        pytest.raises(CallError, match="lacks item_ids or scores: this is no recommender"),
    ):
        client.recommend()


def test_a_path_before_v1_and_a_name_that_needs_quotes():
    with FaultyHttp([FOUND]) as server, Client(f"{server.target}/tf/", "my shop/ü") as client:
        client.recommend("u", k=1)
    assert server.paths == ["/tf/v1/models/my%20shop%2F%C3%BC:predict"]
    assert json.loads(server.bodies[0]) == {
        "signature_name": "recommend",
        "inputs": {"user_id": ["u"], "history": [[]], "exclude": [[]], "k": 1},
    }


@pytest.mark.parametrize("target", ["ftp://a:1", "http://", "http://a:99999", "http://a:1?b=c"])
def test_targets_that_make_no_sense(target):
    with pytest.raises(ConfigError):
        Client(target, "shop")


def test_a_timeout_is_above_0():
    with pytest.raises(ConfigError, match="a timeout must be above 0"):
        Client("http://a:1", "shop", 0)


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
            with Client(target, "shop", tls=tls, retry=Retry(attempts=1)) as client:
                with pytest.raises(CallError, match="UNAVAILABLE"):
                    client.search("tool", k=1)


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


def test_the_batched_form_works_where_the_plain_one_cannot(shop, client):
    form = BatchedForm(history=3, exclude=2)
    flags = ["--model_name", "shop", "--model_base_path", str(shop.parent), "--enable_batching"]
    with running(*flags) as server:
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
    with Client(targets["rest"], "shop", batched=form) as client:
        with pytest.raises(ConfigError, match="must exclude at most 2 items; got 3"):
            client.search("tool", exclude=ITEMS[:3])
