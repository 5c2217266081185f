"""A client that asks for a version or a label, over both transports."""

from __future__ import annotations

import asyncio
import shutil
import time
from pathlib import Path

import pytest
from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

from tests.half_plus_two import edit
from tests.saved_models import save_shop
from tfrec.client import AsyncClient, CallError, Client
from tfrec.errors import ConfigError
from tfrec.server.api import Api
from tfrec.server.grpc_server import start
from tfrec.server.http_server import HttpServer
from tfrec.server.manager import Loading, Manager
from tfrec.server.rest import Rest


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Version 1 can search, version 2 cannot."""
    base = tmp_path_factory.mktemp("versions") / "shop"
    shutil.copytree(save_shop(base / "1"), base / "2")
    edit(base / "2", lambda graph: graph.signature_def.pop("search"))
    return base


@pytest.fixture(scope="module", params=["grpc", "rest"])
def target(base, request):
    config = ModelServerConfig()
    model = config.model_config_list.config.add(name="shop", base_path=str(base), model_platform="tensorflow")
    model.model_version_policy.all.SetInParent()
    model.version_labels["stable"] = 1
    manager = Manager(Loading(threads=2, retries=0, early_labels=True))
    manager.reload(config)
    end = time.monotonic() + 60
    while any(state.servable is None for state in manager.states("shop")):
        assert time.monotonic() < end
        time.sleep(0.02)
    api = Api(manager)
    server, port = start(manager, "127.0.0.1", 0, 2, api=api)
    http = HttpServer(Rest(api), "127.0.0.1", 0, 2)
    yield f"127.0.0.1:{port}" if request.param == "grpc" else f"http://127.0.0.1:{http.port}"
    http.close(5.0)
    server.stop(None).wait()
    manager.close()


def refusal(target, **which):
    with Client(target, "shop", **which) as client, pytest.raises(CallError) as caught:
        client.search("fruit")
    return caught.value.code, str(caught.value)


def test_the_newest_answers_when_none_is_named(target):
    code, text = refusal(target)
    assert code in ("FAILED_PRECONDITION", "INVALID_ARGUMENT") and "search" in text
    assert refusal(target, version=2)[0] == code


@pytest.mark.parametrize("which", [{"version": 1}, {"label": "stable"}])
def test_a_version_or_label_chooses(target, which):
    async def ask():
        async with AsyncClient(target, "shop", **which) as client:
            return await client.search("fruit")

    with Client(target, "shop", **which) as client:
        found = client.search("fruit")
        assert found and "search" in client.info().signatures
    assert asyncio.run(ask()) == found


def test_info_is_about_the_version_that_is_named(target):
    with Client(target, "shop", version=2) as client:
        info = client.info()
    assert [status.version for status in info.versions] == [2]
    assert "search" not in info.signatures


def test_the_server_refuses_what_it_does_not_have(target):
    code, text = refusal(target, version=7)
    assert code == "NOT_FOUND" and "Specific(shop, 7)" in text and "model shop version 7 at" in text
    code, text = refusal(target, label="beta/β")
    assert code == "INVALID_ARGUMENT" and "Unrecognized servable version label: beta/β" in text


@pytest.mark.parametrize("which", [{"version": 1, "label": "stable"}, {"version": -1}, {"version": 2**63}])
def test_one_of_both_and_an_int64(which):
    with pytest.raises(ConfigError, match="a version"):
        Client("127.0.0.1:1", "shop", **which)
