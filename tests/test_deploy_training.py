"""The manifest of a training by several workers asks for what the command line takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tables
import yaml

from tfrec import config as settings
from tfrec.cli import _parse
from tfrec.errors import ConfigError, RestartError
from tfrec.training.cluster import read_task

FILE = Path(__file__).parents[1] / "deploy" / "training" / "workers.yaml"
DOCUMENTS = {one["kind"]: one for one in yaml.safe_load_all(FILE.read_text(encoding="utf-8"))}
JOB = DOCUMENTS["Job"]["spec"]
POD = JOB["template"]["spec"]
(CONTAINER,) = POD["containers"]
ENVIRONMENT = {entry["name"]: entry for entry in CONTAINER["env"]}


def test_the_command_is_one_that_tfrec_takes(tmp_path: Path) -> None:
    program, *words = [*CONTAINER["command"], *CONTAINER["args"]]
    assert program == "tfrec"
    arguments = _parse(words)
    assert arguments.stage == "train"
    config = settings.load(tables.shop(tmp_path), arguments.overrides)
    assert config.train.strategy == "multi_worker" and config.train.checkpoint_steps
    mounts = {mount["mountPath"] for mount in CONTAINER["volumeMounts"]}
    assert {str(Path(place).parent) for place in (config.run.folder, config.export.folder, arguments.config)} == mounts


@pytest.mark.parametrize("index", [0, 3])
def test_every_pod_finds_its_place(index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    path = ENVIRONMENT["POD_INDEX"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert path == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    monkeypatch.setenv("TF_CONFIG", ENVIRONMENT["TF_CONFIG"]["value"].replace("$(POD_INDEX)", str(index)))
    task = read_task("multi_worker")
    assert task.place == index and len(task.names) == JOB["completions"] == JOB["parallelism"]


def test_names_and_ports_are_those_of_the_service() -> None:
    service, job = DOCUMENTS["Service"], DOCUMENTS["Job"]["metadata"]["name"]
    name, (port,) = service["metadata"]["name"], service["spec"]["ports"]
    assert POD["subdomain"] == name and service["spec"]["selector"] == {"job-name": job}
    addresses = json.loads(ENVIRONMENT["TF_CONFIG"]["value"].replace("$(POD_INDEX)", "0"))["cluster"]["worker"]
    assert addresses == [f"{job}-{i}.{name}:{port['port']}" for i in range(JOB["completions"])]
    assert CONTAINER["ports"] == [{"name": port["name"], "containerPort": port["port"]}]


def test_what_is_shared_may_be_written_by_all() -> None:
    claim = DOCUMENTS["PersistentVolumeClaim"]
    volumes: dict[str, Any] = {volume["name"]: volume for volume in POD["volumes"]}
    assert volumes["shared"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]


def test_what_a_restart_mends_is_restarted_and_nothing_else() -> None:
    (rule,) = JOB["podFailurePolicy"]["rules"]
    given_up = rule["onExitCodes"]["values"]
    assert rule["action"] == "FailJob" and rule["onExitCodes"]["containerName"] == CONTAINER["name"]
    assert ConfigError.exit_code in given_up and RestartError.exit_code not in given_up
    assert POD["restartPolicy"] == "Never"  # podFailurePolicy wants it
