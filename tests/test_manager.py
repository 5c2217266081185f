"""Versions that come, go and fail; labels; reload; warm-up; requests that hold a version."""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time

import numpy as np
import pytest
from tensorflow_serving.apis.model_pb2 import ModelSpec
from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog
from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

from tests.half_plus_two import add_version, add_warmup, save_half_plus_two, warmup_log
from tfrec.server.background import native
from tfrec.server.manager import Every, Loading, Manager
from tfrec.server.servable import Servable
from tfrec.server.status import RequestError
from tfrec.server.version import AVAILABLE, END
from tfrec.server.warmup import warm_up


def warmed(path):
    servable = Servable(path)
    try:
        warm_up(servable)
    except RequestError:
        servable.close()
        raise
    return servable


@pytest.fixture
def base(half, tmp_path):
    add_version(tmp_path / "half", 1, half)
    return tmp_path / "half"


@pytest.fixture
def manager():
    made = Manager(Loading(load=warmed, threads=2, retries=0, early_labels=False))
    yield made
    made.close()


def config(base, policy="", labels="", name="half", **others):
    made = ModelServerConfig()
    made.model_config_list.SetInParent()
    for model, folder in {name: base, **others}.items():
        entry = made.model_config_list.config.add(name=model, base_path=str(folder), model_platform="tensorflow")
        if policy == "all":
            entry.model_version_policy.all.SetInParent()
        elif isinstance(policy, int):
            entry.model_version_policy.latest.num_versions = policy
        elif policy:
            entry.model_version_policy.specific.versions.extend(policy)
        entry.version_labels.update(labels or {})
    return made


def spec(version=None, label=None, name="half"):
    made = ModelSpec(name=name)
    if version is not None:
        made.version.value = version
    if label is not None:
        made.version_label = label
    return made


def answer(manager, made=None, x=2.0):
    with manager.using(made or spec()) as (servable, version):
        y = servable.run("", {"x": np.array([x], np.float32)})["y"]
        return version.number, float(y[0])


def states(manager, name="half"):
    return [(v.number, v.state) for v in manager.states(name)]


def settle(manager, expected, name="half"):
    """Waits until the versions are as expected."""
    end = time.monotonic() + 20
    while states(manager, name) != expected:
        assert time.monotonic() < end, states(manager, name)
        time.sleep(0.01)


def refused(call, *arguments):
    with pytest.raises(RequestError) as caught:
        call(*arguments)
    return caught.value.code, str(caught.value)


def test_a_new_version_replaces_the_old_one(manager, base, half):
    manager.reload(config(base))
    assert answer(manager) == (1, 3.0)
    add_version(base, 2, half)
    manager.poll()
    settle(manager, [(2, AVAILABLE), (1, END)])
    assert answer(manager) == (2, 3.0)
    assert refused(answer, manager, spec(1)) == ("NOT_FOUND", "Servable not found for request: Specific(half, 1)")
    shutil.rmtree(base / "2")
    manager.poll()  # the old one is wanted again
    settle(manager, [(2, END), (1, AVAILABLE)])
    assert manager.states("half", 1)[0].proto().status.error_code == 0


def test_policies(manager, base, half):
    for number in (2, 3):
        add_version(base, number, half)
    manager.reload(config(base, 2))
    settle(manager, [(3, AVAILABLE), (2, AVAILABLE)])
    manager.reload(config(base, "all"))
    settle(manager, [(3, AVAILABLE), (2, AVAILABLE), (1, AVAILABLE)])
    manager.reload(config(base, [1]))
    settle(manager, [(3, END), (2, END), (1, AVAILABLE)])
    assert answer(manager)[0] == 1


def test_a_config_whose_labels_are_refused_loads_nothing(manager, base, half):
    add_version(base, 2, half)
    manager.reload(config(base, [1]))
    settle(manager, [(1, AVAILABLE)])
    code, text = refused(manager.reload, config(base, [1, 2], {"stable": 2}))
    assert code == "FAILED_PRECONDITION" and "assign label to version 2" in text
    manager.poll()
    assert states(manager) == [(1, AVAILABLE)]
    manager.reload(config(base, [1, 2]))
    settle(manager, [(2, AVAILABLE), (1, AVAILABLE)])
    manager.reload(config(base, [1, 2], {"stable": 2}))
    assert answer(manager, spec(label="stable")) == (2, 3.0)


@pytest.mark.parametrize("damage", ["empty", "cut", "no variables", "bad record", "failing record"])
def test_a_broken_version_leaves_the_old_one_serving(manager, base, half, tmp_path, damage):
    manager.reload(config(base))
    broken = tmp_path / "broken"
    shutil.copytree(half, broken)
    if damage == "empty":
        shutil.rmtree(broken)
        broken.mkdir()
    elif damage == "cut":
        (broken / "saved_model.pb").write_bytes((half / "saved_model.pb").read_bytes()[:2000])
    elif damage == "no variables":
        (broken / "variables" / "variables.data-00000-of-00001").write_bytes(b"")
    elif damage == "bad record":
        add_warmup(broken, warmup_log("half", x=[1]))
        file = broken / "assets.extra" / "tf_serving_warmup_requests"
        file.write_bytes(file.read_bytes()[:-3])
    else:
        add_warmup(broken, warmup_log("half", z=[1]))
    add_version(base, 2, broken)
    manager.poll()
    settle(manager, [(2, END), (1, AVAILABLE)])
    status = manager.states("half", 2)[0].proto().status
    codes = {"empty": 5, "cut": 15, "no variables": (11, 15), "bad record": 15, "failing record": 3}[damage]
    assert status.error_code in (codes if isinstance(codes, tuple) else (codes,)), status
    assert status.error_message
    assert answer(manager) == (1, 3.0)
    manager.poll()  # it is not tried again while it stays
    settle(manager, [(2, END), (1, AVAILABLE)])


def test_a_failed_load_is_tried_again(base, half):
    tries = []

    def load(path):
        tries.append(time.monotonic())
        if len(tries) < 3:
            raise RequestError("UNAVAILABLE", "not yet")
        return Servable(path)

    manager = Manager(Loading(load=load, retries=2, retry_seconds=0.05))
    manager.reload(config(base))
    assert answer(manager)[0] == 1 and len(tries) == 3 and tries[1] - tries[0] >= 0.05
    manager.close()


def test_a_version_is_unloaded_when_its_last_request_is_done(manager, base, half):
    manager.reload(config(base))
    entered, leave, answers = threading.Event(), threading.Event(), []

    def hold():
        with manager.using(spec()) as (servable, _):
            entered.set()
            leave.wait(20)
            answers.append(servable.run("", {"x": np.ones(1, np.float32)})["y"][0])

    thread = threading.Thread(target=hold)
    thread.start()
    assert entered.wait(20)
    add_version(base, 2, half)
    manager.poll()
    end = time.monotonic() + 20
    while answer(manager)[0] != 2:
        assert time.monotonic() < end
    assert manager.states("half", 1)[0].servable is not None
    leave.set()
    thread.join()
    settle(manager, [(2, AVAILABLE), (1, END)])
    assert answers == [2.5]
    assert manager.states("half", 1)[0].servable is None


def test_labels(manager, base, half):
    add_version(base, 2, half)
    text = "Request to assign label to version 2 of model half, which is not currently available for inference"
    assert refused(manager.reload, config(base, "all", {"stable": 2})) == ("FAILED_PRECONDITION", text)
    manager.reload(config(base, "all"))
    settle(manager, [(2, AVAILABLE), (1, AVAILABLE)])
    manager.reload(config(base, "all", {"stable": 1, "canary": 2}))
    assert answer(manager, spec(label="stable"))[0] == 1
    assert answer(manager, spec(label="canary"))[0] == 2
    assert refused(answer, manager, spec(label="x")) == (
        "INVALID_ARGUMENT",
        "Unrecognized servable version label: x",
    )


def test_new_labels_may_come_early_where_allowed(base, half):
    manager = Manager(Loading(early_labels=True, retries=0))
    manager.reload(config(base, "", {"stable": 1}))
    assert answer(manager, spec(label="stable"))[0] == 1
    code, _ = refused(manager.reload, config(base, "", {"stable": 7}))  # an existing label may not
    assert code == "FAILED_PRECONDITION"
    manager.close()


def test_models_come_and_go_by_reload(manager, base, half, tmp_path):
    manager.reload(config(base))
    add_version(tmp_path / "other", 5, half)
    manager.reload(config(base, other=tmp_path / "other"))
    assert answer(manager, spec(name="other"))[0] == 5
    manager.reload(config(tmp_path / "other", name="other"))
    settle(manager, [(1, END)])
    assert refused(answer, manager) == ("NOT_FOUND", "Servable not found for request: Latest(half)")


def test_a_new_model_that_cannot_load_is_named(manager, base, tmp_path):
    manager.reload(config(base))
    (tmp_path / "bad" / "1").mkdir(parents=True)
    code, text = refused(manager.reload, config(base, bad=tmp_path / "bad"))
    assert code == "UNKNOWN"
    assert text.startswith(
        "1 model(s) did not become available: {{{name: bad version: 1} due to error: NOT_FOUND: Could not find"
    )
    assert answer(manager)[0] == 1


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"base_path": "relative"}, "Expected model half to have an absolute path or URI; got base_path()=relative"),
        ({"model_platform": "torch"}, "Model half requests unsupported platform torch"),
        ({"model_platform": ""}, "Illegal setting neither ModelServerConfig::model_type (deprecated) nor "
         "ModelServerConfig::model_platform."),
    ],
)  # fmt: skip
def test_configurations_that_are_refused(manager, base, change, text):
    made = config(base)
    for name, value in change.items():
        setattr(made.model_config_list.config[0], name, value)
    assert refused(manager.reload, made) == ("INVALID_ARGUMENT", text)


def test_a_model_may_be_listed_once(manager, base):
    made = config(base)
    made.model_config_list.config.add().CopyFrom(made.model_config_list.config[0])
    text = "Illegal to list model half multiple times in config list"
    assert refused(manager.reload, made) == ("INVALID_ARGUMENT", text)


def test_warm_up_counts_its_records(half, tmp_path):
    shutil.copytree(half, tmp_path / "1")
    add_warmup(tmp_path / "1", *[warmup_log("any", x=[1])] * 3, PredictionLog())
    servable = Servable(tmp_path / "1")
    assert warm_up(servable) == 4
    add_warmup(tmp_path / "1", *[warmup_log("any", x=[1])] * 1001)
    with pytest.raises(RequestError, match=r"Number of warmup records exceeds the maximum \(1000\)"):
        warm_up(servable)
    servable.close()


def test_polling_goes_by_the_monotonic_clock(monkeypatch):
    times = []
    monkeypatch.setattr(time, "time", lambda: 0.0)  # a clock that jumps back and stands still
    every = Every(0.02, lambda: times.append(time.monotonic()), "test")
    end = time.monotonic() + 5
    while len(times) < 3 and time.monotonic() < end:
        time.sleep(0.01)
    every.stop()
    assert len(times) >= 3


def test_a_folder_that_vanishes_changes_nothing(manager, base, caplog):
    manager.reload(config(base))
    base.rename(base.with_name("gone"))
    manager.poll()
    manager.poll()
    assert answer(manager)[0] == 1
    assert sum("Could not find base path" in record.message for record in caplog.records) == 1


def test_a_model_with_another_bias_takes_over(manager, base, tmp_path):
    manager.reload(config(base))
    add_version(base, 2, save_half_plus_two(tmp_path / "three", 3.0))
    manager.poll()
    settle(manager, [(2, AVAILABLE), (1, END)])
    assert answer(manager) == (2, 4.0)


@pytest.mark.skipif(sys.platform != "linux", reason="threads have a priority of their own on Linux alone")
def test_a_version_gives_way_to_requests_while_it_loads_beside_another(base, half):
    nice = []

    def load(path):
        nice.append(native(lambda: os.getpriority(os.PRIO_PROCESS, threading.get_native_id())))
        return Servable(path)

    manager = Manager(Loading(load=load))
    try:
        manager.reload(config(base))
        add_version(base, 2, half)
        manager.poll()
        settle(manager, [(2, AVAILABLE), (1, END)])
    finally:
        manager.close()
    usual = os.getpriority(os.PRIO_PROCESS, 0)
    assert nice == [usual, min(usual + 10, 19)]
