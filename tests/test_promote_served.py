"""promote and rollback while a server of its own process serves: the config is polled, or reloaded by RPC."""

from __future__ import annotations

import time
from pathlib import Path

import grpc
import pytest
from tensorflow_serving.apis.get_model_status_pb2 import GetModelStatusRequest
from tensorflow_serving.apis.model_service_pb2_grpc import ModelServiceStub
from tensorflow_serving.apis.prediction_service_pb2_grpc import PredictionServiceStub

from tests.half_plus_two import add_version, predict_request, running
from tfrec import cli
from tfrec.server.promote import promote, rollback
from tfrec.server.version import AVAILABLE

FLAGS = ["--max_num_load_retries=0", "--allow_version_labels_for_unavailable_models=true"]


@pytest.fixture
def exports(half, tmp_path) -> Path:
    for number in (1, 2):
        add_version(tmp_path / "half", number, half)
    return tmp_path / "half"


def served(channel, label=""):
    request = predict_request("half", x=[2.0])
    if label:
        request.model_spec.version_label = label
    return PredictionServiceStub(channel).Predict(request, timeout=20).model_spec.version.value


def loaded(channel):
    request = GetModelStatusRequest()
    request.model_spec.name = "half"
    states = ModelServiceStub(channel).GetModelStatus(request, timeout=20).model_version_status
    return {version.version for version in states if version.state == AVAILABLE}


def settle(channel, expected, look=loaded):
    """Waits until the server is as expected; every request on the way must be answered."""
    end = time.monotonic() + 60
    while (found := look(channel)) != expected:
        assert time.monotonic() < end, found
        assert served(channel) in (1, 2)
        time.sleep(0.02)


def test_a_polled_config_moves_what_is_served_and_back(exports, tmp_path):
    file = tmp_path / "models.config"
    promote(file, exports, 1)
    flags = [*FLAGS, "--model_config_file", str(file), "--model_config_file_poll_wait_seconds=1"]
    with running(*flags) as server, grpc.insecure_channel(server.target) as channel:
        assert served(channel) == 1
        promote(file, exports, 2)
        settle(channel, {2})
        assert served(channel) == 2
        assert rollback(file, exports) == (1, True)
        settle(channel, {1})
        assert served(channel) == 1


def test_a_label_moves_by_rpc_and_what_it_meant_stays_loaded(exports, tmp_path, capsys):
    file = tmp_path / "models.config"
    words = ["--config", str(file), "--label", "stable"]
    assert cli.main(["promote", str(exports), "1", *words]) == 0
    with running(*FLAGS, "--model_config_file", str(file)) as server, grpc.insecure_channel(server.target) as channel:
        assert (served(channel, "stable"), loaded(channel)) == (1, {1})
        words += ["--server", server.target]
        assert cli.main(["promote", str(exports), "2", *words]) == 0
        assert (served(channel, "stable"), loaded(channel)) == (2, {1, 2})
        assert cli.main(["rollback", str(exports), *words]) == 0
        assert (served(channel, "stable"), loaded(channel)) == (1, {1, 2})
        (exports / "3").mkdir()
        assert cli.main(["promote", str(exports), "3", *words]) == 1
        assert "version 3 of half must load" in capsys.readouterr().err
        assert served(channel, "stable") == 1
