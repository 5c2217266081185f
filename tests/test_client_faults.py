"""The client against servers that refuse, stall, drip, hang up, start late or answer nonsense."""

from __future__ import annotations

import json
import time

import pytest

from tests.faulty_http import FaultyHttp, answer, drip, stall
from tests.saved_models import save_shop
from tests.shop_server import serving_shop
from tfrec.client import CallError, Client, Result, Retry
from tfrec.errors import ConfigError

FOUND = answer(200, {"outputs": {"item_ids": [["apple", ""]], "scores": [[0.05, -3.4028235e38]]}})
GONE = answer(503, {"error": "no room"})
QUICK = Retry(first_pause=0.01)


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return save_shop(tmp_path_factory.mktemp("shop") / "1")


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
        pytest.raises(CallError, match=f'{code}.*: the server.s words"'),
    ):
        client.recommend()
    assert server.requests == 1


def test_retries_end_at_the_deadline():
    started = time.monotonic()
    with (
        FaultyHttp([GONE]) as server,
        Client(server.target, "shop", 0.3, retry=Retry(attempts=1000, first_pause=0.05)) as client,
        pytest.raises(CallError, match="UNAVAILABLE: no room"),
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
def test_a_server_that_starts_late_is_found(shop, transport):
    with serving_shop(shop) as targets:
        target = targets[transport]
    port = int(target.rpartition(":")[2])
    with Client(target, "shop", 20, retry=Retry(attempts=30, first_pause=0.2)) as client:
        with pytest.raises(CallError, match="UNAVAILABLE"), Client(target, "shop", 0.2) as impatient:
            impatient.search("tool")
        with serving_shop(shop, **{transport: port}, after=0.5):
            assert client.search("tool", k=1)[0].item_id == "hammer"


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


@pytest.mark.parametrize(
    "outputs",
    [
        {"item_ids": [], "scores": []},
        {"item_ids": [["a"]], "scores": [[1, 2]]},
        {"item_ids": [["a"]], "scores": [["high"]]},
        {"item_ids": [1], "scores": [2]},
    ],
)
def test_rows_that_do_not_fit_are_refused(outputs):
    with (
        FaultyHttp([answer(200, {"outputs": outputs})]) as server,
        Client(server.target, "shop") as client,
        pytest.raises(CallError, match=r"must answer one row of .*Is this a recommender\?") as caught,
    ):
        client.recommend()
    assert caught.value.code == "UNIMPLEMENTED"


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
