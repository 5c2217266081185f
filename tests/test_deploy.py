"""What deploy/ asks of TensorFlow Serving is what our server takes and answers, and its files fit together."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import yaml
from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

from tfrec.server.api import Api
from tfrec.server.config import check_transition, read_config
from tfrec.server.flags import parser
from tfrec.server.manager import FixedModel
from tfrec.server.protos import MonitoringConfig, read_text
from tfrec.server.rest import Rest
from tfrec.server.servable import Servable

DEPLOY = Path(__file__).parents[1] / "deploy"


def document(name: str) -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / name).read_text(encoding="utf-8"))


COMPOSE = document("compose.yaml")["services"]
DEPLOYMENT = document("kubernetes/deployment.yaml")
POD = DEPLOYMENT["spec"]["template"]
(CONTAINER,) = POD["spec"]["containers"]
KUSTOMIZATION = document("kustomization.yaml")
COMMANDS = {
    "compose": [*COMPOSE["serving"]["entrypoint"], *COMPOSE["serving"]["command"]],
    "kubernetes": [*CONTAINER["command"], *CONTAINER["args"]],
}
MOUNTS = {
    "compose": {m.split(":")[1]: m.split(":")[0] for m in COMPOSE["serving"]["volumes"]},
    "kubernetes": {m["mountPath"]: m["name"] for m in CONTAINER["volumeMounts"]},
}
PROBES = [CONTAINER[name]["httpGet"]["path"] for name in ("startupProbe", "readinessProbe")]


def flags(place: str) -> Namespace:
    return parser("").parse_args(COMMANDS[place][1:])


@pytest.fixture(scope="module")
def rest(half: Path) -> Iterator[Rest]:
    """A server of the configured model, with the configured page of metrics."""
    monitoring = read_text(DEPLOY / "config/monitoring.config", MonitoringConfig()).prometheus_config
    assert monitoring.enable
    (model,) = read_config(DEPLOY / "config/models.config").model_config_list.config
    manager = FixedModel(model.name, 1, Servable(half))
    yield Rest(Api(manager), monitoring.path)
    manager.close()


@pytest.mark.parametrize("place", COMMANDS)
def test_every_flag_is_one_of_ours_in_tensorflow_servings_form(place: str) -> None:
    program, *given = COMMANDS[place]
    assert program == "tensorflow_model_server"
    assert all(flag.startswith("--") and "=" in flag for flag in given)
    known = vars(parser("").parse_args([]))
    assert {flag[2:].partition("=")[0] for flag in given} <= known.keys()
    assert (flags(place).port, flags(place).rest_api_port) == (8500, 8501)


def test_an_unknown_flag_would_be_found() -> None:
    with pytest.raises(SystemExit):
        parser("").parse_args([*COMMANDS["compose"][1:], "--rest_port=1"])


def test_both_places_run_the_same() -> None:
    assert COMMANDS["compose"] == COMMANDS["kubernetes"]
    assert COMPOSE["serving"]["image"] == CONTAINER["image"]


@pytest.mark.parametrize("place", COMMANDS)
def test_files_and_models_lie_where_they_are_mounted(place: str) -> None:
    given, mounts = flags(place), MOUNTS[place]
    for file in (given.model_config_file, given.monitoring_config_file):
        assert str(PurePosixPath(file).parent) in mounts
        assert (DEPLOY / "config" / PurePosixPath(file).name).is_file()
    config = read_config(DEPLOY / "config" / PurePosixPath(given.model_config_file).name)
    check_transition(ModelServerConfig(), config)
    for model in config.model_config_list.config:
        assert model.base_path == f"/models/{model.name}"
        assert "/models" in mounts


def test_mounts_lead_to_what_exists() -> None:
    sources = MOUNTS["compose"].values()
    assert all((DEPLOY / source).resolve().is_dir() for source in sources)
    volumes = {volume["name"]: volume for volume in POD["spec"]["volumes"]}
    assert set(MOUNTS["kubernetes"].values()) == volumes.keys()
    claim = document("kubernetes/volume.yaml")["metadata"]["name"]
    assert volumes["models"]["persistentVolumeClaim"]["claimName"] == claim
    (generated,) = KUSTOMIZATION["configMapGenerator"]
    assert volumes["config"]["configMap"]["name"] == generated["name"]
    mounted = {PurePosixPath(f).name for f in (flags("kubernetes").model_config_file,)}
    mounted |= {PurePosixPath(flags("kubernetes").monitoring_config_file).name}
    assert {Path(file).name for file in generated["files"]} == mounted


@pytest.mark.parametrize("path", sorted(set(PROBES)))
def test_probes_ask_for_the_status_of_the_served_model(rest: Rest, path: str) -> None:
    answer = rest.answer("GET", path, b"")
    assert answer.status == 200 and b'"AVAILABLE"' in answer.body
    assert rest.answer("GET", f"{path}x", b"").status == 404
    assert f"GET {path} HTTP" in COMPOSE["serving"]["healthcheck"]["test"][-1]


def test_prometheus_asks_where_the_metrics_are(rest: Rest) -> None:
    (job,) = document("config/prometheus.yaml")["scrape_configs"]
    annotations = POD["metadata"]["annotations"]
    for path in (job["metrics_path"], annotations["prometheus.io/path"]):
        assert rest.answer("GET", path, b"").status == 200
    port = str(flags("compose").rest_api_port)
    assert job["static_configs"] == [{"targets": [f"serving:{port}"]}] and "serving" in COMPOSE
    assert annotations["prometheus.io/port"] == port


def test_ports_are_those_of_the_flags() -> None:
    given = flags("kubernetes")
    ports = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}
    assert ports == {"grpc": given.port, "rest": given.rest_api_port}
    for port in document("kubernetes/service.yaml")["spec"]["ports"]:
        assert port["port"] == ports[port["targetPort"]]
    probes = [CONTAINER[name] for name in ("startupProbe", "readinessProbe", "livenessProbe")]
    assert all(next(p[kind] for kind in ("httpGet", "tcpSocket") if kind in p)["port"] in ports for p in probes)
    published = [port.split(":") for port in COMPOSE["serving"]["ports"]]
    assert [(address, int(inside)) for address, _, inside in published] == [
        ("127.0.0.1", given.port),
        ("127.0.0.1", given.rest_api_port),
    ]


def test_the_manifests_name_one_another() -> None:
    labels = POD["metadata"]["labels"]
    assert DEPLOYMENT["spec"]["selector"]["matchLabels"] == labels
    assert document("kubernetes/service.yaml")["spec"]["selector"] == labels
    target = document("kubernetes/autoscaler.yaml")["spec"]["scaleTargetRef"]
    assert target == {**target, "kind": DEPLOYMENT["kind"], "name": DEPLOYMENT["metadata"]["name"]}
    listed = {DEPLOY / name for name in KUSTOMIZATION["resources"]}
    assert listed == set((DEPLOY / "kubernetes").glob("*.yaml"))
