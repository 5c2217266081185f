from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
import world

from tfrec.errors import ConfigError
from tfrec.training.strategies import make_strategy

HERE = Path(__file__).parent


def run(*cases: str) -> dict[str, Any]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)])}
    command = [sys.executable, str(HERE / "mirrored_check.py"), *cases]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def assert_equal(report: dict[str, Any], tolerance: float = 1e-5) -> None:
    assert report["replicas"] == 2
    assert report["steps"][0] == report["steps"][1]
    assert report["weights"] < tolerance
    assert report["losses"] < tolerance
    assert report["falls"] > 0.1


# With in_batch, accumulation is another objective by definition: each part has its own candidates.
QUICK = [
    "sgd softmax",
    "adam softmax clip accumulate",
    "sgd in_batch clip",
    "lazy_adam mixed",
    "sparse_adagrad gbce",
]


@pytest.fixture(scope="module")
def reports() -> dict[str, Any]:
    return run(*QUICK)


@pytest.mark.parametrize("case", QUICK)
def test_two_replicas_end_as_one_device(case: str, reports: dict[str, Any]) -> None:
    assert reports[case]["steps"] == [20, 20]
    assert_equal(reports[case])


def test_a_mirrored_training_resumes_exactly(reports: dict[str, Any]) -> None:
    assert reports["resumed"] == 0.0


SLOW = [
    "adam in_batch",
    "sgd sampled accumulate clip",
    "adamw transformer",
    "sparse_adagrad in_batch clip",
    "lazy_adam in_batch",
    "rowwise softmax accumulate",
]


@pytest.mark.slow
def test_two_replicas_with_a_transformer_sparse_optimizers_and_float16() -> None:
    reports = run(*SLOW, "float16 clip")
    for case in SLOW:
        assert_equal(reports[case])
    assert_equal(reports["float16 clip"], tolerance=1e-3)


def test_none_is_the_strategy_of_the_scope() -> None:
    assert make_strategy(world.settings().train) is tf.distribute.get_strategy()


def test_more_devices_than_there_are_is_refused() -> None:
    settings = world.settings(strategy="mirrored", devices=64, batch=64).train
    with pytest.raises(ConfigError, match=r"train\.devices must be at most .* got 64"):
        make_strategy(settings)


def test_a_batch_that_devices_cannot_share_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    devices = [tf.config.LogicalDevice(f"/device:CPU:{i}", "CPU") for i in range(3)]
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [])
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: devices)
    with pytest.raises(ConfigError, match=r"multiple of replicas × train\.accumulate, 3 × 1; got 8"):
        make_strategy(world.settings(strategy="mirrored", batch=8).train)


def test_a_tpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(tpu: str | None) -> None:
        raise ValueError(f"no TPU {tpu}")

    monkeypatch.setattr(tf.distribute.cluster_resolver, "TPUClusterResolver", absent)
    with pytest.raises(ConfigError, match=r"needs a TPU that train.tpu or TPU_NAME leads to; got .*no TPU pod-1"):
        make_strategy(world.settings(strategy="tpu", tpu="pod-1").train)


@pytest.mark.parametrize(("train", "static"), [({}, False), ({"jit": True}, True), ({"strategy": "tpu"}, True)])
def test_a_tpu_has_static_shapes_without_asking(train: dict[str, Any], static: bool) -> None:
    assert world.settings(**train).train.static == static


def test_equal_settings_share_one_strategy() -> None:
    # Two strategies over the same devices collide in their collectives: a refit would break.
    settings = world.settings(strategy="mirrored", devices=1).train
    assert make_strategy(settings) is make_strategy(settings)
