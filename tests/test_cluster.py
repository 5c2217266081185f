"""Who trains together: clusters from the environment, processes that meet, agree, and end as one device would."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import local_cluster
import numpy as np
import pyarrow as pa
import pytest
import world
from train_cluster import free_ports

from tfrec import config as settings
from tfrec.data import groups
from tfrec.errors import ConfigError, RestartError, TrainingError
from tfrec.runs import Run, read_json, write_json
from tfrec.training import cluster
from tfrec.training.cluster import Task, joined, read_task
from tfrec.training.peers import Peers, meet

TWO = {"worker": ["a:1", "b:2"]}


def task(tree: Any, monkeypatch: pytest.MonkeyPatch, strategy: str = "multi_worker") -> Task:
    monkeypatch.setenv("TF_CONFIG", tree if isinstance(tree, str) else json.dumps(tree))
    return read_task(strategy)


def test_the_task_of_tf_config(monkeypatch: pytest.MonkeyPatch) -> None:
    tree = {"cluster": TWO, "task": {"type": "worker", "index": 1}}
    assert task(tree, monkeypatch) == Task(("worker 0", "worker 1"), 1, "a:1")


def test_a_chief_leads_wherever_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    tree = {"cluster": {**TWO, "chief": ["c:3"]}, "task": {"type": "worker", "index": "0"}}
    assert task(tree, monkeypatch) == Task(("chief 0", "worker 0", "worker 1"), 1, "c:3")


@pytest.mark.parametrize(
    "tree",
    [
        "",
        "{",
        "[]",
        {"cluster": TWO},
        {"cluster": TWO, "task": {"type": "worker", "index": 2}},
        {"cluster": {**TWO, "evaluator": ["c:3"]}, "task": {"type": "worker", "index": 0}},
        {"cluster": {"worker": ["a", "b"]}, "task": {"type": "worker", "index": 0}},
    ],
)
def test_another_tf_config_is_refused_with_an_example(tree: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_PROCID", raising=False)
    with pytest.raises(ConfigError, match=r'multi_worker needs TF_CONFIG .*; got .*For example \{"cluster"'):
        task(tree, monkeypatch)


def test_the_task_of_slurm_is_given_to_tensorflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TF_CONFIG", "")
    monkeypatch.delenv("TF_CONFIG")
    slurm = {"PROCID": 2, "STEP_NUM_TASKS": 3, "STEP_NODELIST": "n[1-2]", "STEP_TASKS_PER_NODE": "2,1"}
    for name, value in slurm.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    assert read_task("multi_worker") == Task(("worker 0", "worker 1", "worker 2"), 2, "n1:8888")


def test_half_a_slurm_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TF_CONFIG", raising=False)
    monkeypatch.setenv("SLURM_PROCID", "0")
    with pytest.raises(ConfigError, match="a cluster of Slurm must be described"):
        read_task("multi_worker")


NAMES = ("worker 0", "worker 1", "worker 2")


@contextmanager
def three(*bodies: Callable[[Peers], Any]) -> Iterator[list[Future[Any]]]:
    """Three processes as threads that have met, each with its body."""
    address = f"127.0.0.1:{free_ports(1)[0]}"

    def live(index: int) -> Any:
        peers = meet(NAMES, index, address, 20)
        try:
            return bodies[index](peers)
        finally:
            peers.close()

    with ThreadPoolExecutor(3) as pool:
        yield [pool.submit(live, index) for index in (2, 1, 0)][::-1]


def test_equal_values_are_agreed_on_and_the_first_leads() -> None:
    def body(peers: Peers) -> bool:
        peers.agree("all must be equal", {"a": 1, "b": [1, "ü"]})
        peers.wait()
        return peers.leads

    with three(body, body, body) as futures:
        assert [future.result(20) for future in futures] == [True, False, False]


@pytest.mark.parametrize("odd", [0, 2])
def test_what_differs_is_named_in_every_process(odd: int) -> None:
    def body(peers: Peers) -> None:
        peers.agree("all must be equal", {"seed": 1, "batch": 16 if peers.index == odd else 8})

    with three(body, body, body) as futures:
        for future in futures:
            with pytest.raises(ConfigError, match=r"all must be equal; batch is (16|8) at worker 0 and (8|16) at wor"):
                future.result(20)


def test_a_value_that_one_process_lacks_differs() -> None:
    def body(peers: Peers) -> None:
        peers.agree("all must be equal", {} if peers.index else {"hash": "x"})

    with three(body, body, body) as futures, pytest.raises(ConfigError, match="hash is 'x' at worker 0 and None at"):
        futures[1].result(20)


@pytest.mark.parametrize("gone", [0, 1])
def test_who_waits_for_one_that_has_gone_is_told(gone: int) -> None:
    def body(peers: Peers) -> None:
        if peers.index != gone:
            peers.wait()

    with three(body, body, body) as futures:
        waits = futures[2 if gone == 0 else 0]
        with pytest.raises(RestartError, match=f"worker {gone} ended. Its own log says why.*start all processes again"):
            waits.result(20)


def test_who_does_not_come_is_named_in_time() -> None:
    address = f"127.0.0.1:{free_ports(1)[0]}"
    with pytest.raises(TrainingError, match=rf"come to {address} within train.peer_seconds; .* worker 1, worker 2"):
        meet(NAMES, 0, address, 0.2)
    with pytest.raises(TrainingError, match=r"these did not: worker 0. Start them"):
        meet(NAMES, 1, address, 0.2)


def test_strangers_are_sent_away_and_a_process_may_come_twice() -> None:
    port = free_ports(1)[0]
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(meet, NAMES[:2], 0, f"127.0.0.1:{port}", 20)
        for words in (b"GET / HTTP/1.1\r\n", b"7\n", b"true\n", b"\xff\n", b""):
            for _ in range(100):
                try:
                    stranger = socket.create_connection(("127.0.0.1", port), 5)
                    break
                except ConnectionRefusedError:
                    threading.Event().wait(0.05)
            with stranger:
                stranger.sendall(words)
                stranger.shutdown(socket.SHUT_WR)
                assert stranger.recv(100) == b""
        second = meet(NAMES[:2], 1, f"127.0.0.1:{port}", 20)
        waiting = pool.submit(second.wait)
        first.result(20).wait()
        waiting.result(20)
        first.result().close()
        second.close()


def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(TrainingError, match=rf"must be able to listen on port {port}"):
            meet(NAMES, 0, f"127.0.0.1:{port}", 5)


def test_other_settings_are_refused_before_tensorflow_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"127.0.0.1:{free_ports(1)[0]}"
    tasks = iter([Task(NAMES[:2], 0, address), Task(NAMES[:2], 1, address)])
    monkeypatch.setattr(cluster, "read_task", lambda strategy: next(tasks))
    monkeypatch.setattr(cluster, "make_strategy", lambda settings: pytest.fail("they must not start"))

    def join(batch: int) -> None:
        with joined(world.settings(strategy="multi_worker", batch=batch, peer_seconds=20)):
            pytest.fail("they must not train")

    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(join, 8), pool.submit(join, 16)]:
            with pytest.raises(ConfigError, match=r"versions; train.batch is 8 at worker 0 and 16 at"):
                future.result(30)


def test_other_tables_are_refused(shop: Any, tmp_path: Path) -> None:
    config = settings.load(shop.config)
    other = settings.load(shop.config, [f"run.folder={tmp_path}"])
    (tmp_path / "shop").mkdir()
    for part in ("prepared", "features"):
        (tmp_path / "shop" / part).symlink_to(Run(config).folder / part)
    report = read_json(Run(config).folder / "prepared" / "report.json")
    (tmp_path / "shop" / "prepared").unlink()
    (tmp_path / "shop" / "prepared").mkdir()
    for file in (Run(config).folder / "prepared").iterdir():
        (tmp_path / "shop" / "prepared" / file.name).symlink_to(file)
    (tmp_path / "shop" / "prepared" / "report.json").unlink()
    report["hashes"]["items"] = "another"
    write_json(tmp_path / "shop" / "prepared" / "report.json", report)

    def body(peers: Peers) -> None:
        Run(other if peers.index == 2 else config).agree(peers)

    with three(body, body, body) as futures:
        for future in futures:
            with pytest.raises(
                ConfigError, match=r"one shared run.folder; the hash of items is '.*' at worker 0 and 'an"
            ):
                future.result(60)


def test_one_process_alone_agrees_with_itself() -> None:
    with joined(world.settings()) as peers:
        assert peers.leads
        peers.agree("all must be equal", {"a": 1})


def workers(epochs: int, *cases: str) -> list[dict[str, Any]]:
    configs = local_cluster.local_configs({"worker": 2})
    command = [local_cluster.HERE / "workers_check.py", epochs, *cases]
    done = local_cluster.finish([local_cluster.start(command, config) for config in configs])
    assert [code for code, _, _ in done] == [0, 0], done[0][2][-3000:] + done[1][2][-3000:]
    return [json.loads(out) for _, out, _ in done]


def assert_equal(reports: list[dict[str, Any]], case: str, steps: int) -> None:
    first, second = (report[case] for report in reports)
    assert first["replicas"] == second["replicas"] == 2
    assert first["steps"] == [steps, steps]
    assert first["weights"] < 1e-5 and first["loss"] < 1e-5
    assert first["losses"] == second["losses"] and np.isfinite(first["losses"]).all()


# Each of 5 steps an epoch.
@pytest.fixture(scope="module")
def reports() -> list[dict[str, Any]]:
    return workers(1, *QUICK)


QUICK = ["sgd in_batch clip", "adam softmax clip accumulate", "lazy_adam mixed"]


@pytest.mark.parametrize("case", QUICK)
def test_two_workers_end_as_one_device(case: str, reports: list[dict[str, Any]]) -> None:
    assert_equal(reports, case, steps=5)


@pytest.mark.slow
def test_two_workers_end_as_one_device_after_fifty_steps() -> None:
    cases = ["sgd in_batch clip", "sgd softmax", "adam in_batch", "adam softmax clip accumulate"]
    cases += ["sgd sampled accumulate clip", "lazy_adam mixed", "sparse_adagrad gbce", "rowwise softmax accumulate"]
    reports = workers(10, *cases)
    for case in cases:
        assert_equal(reports, case, steps=50)


@pytest.mark.slow
def test_two_workers_in_float16_end_as_one_device_up_to_its_rounding() -> None:
    report = workers(10, "float16 clip")[0]["float16 clip"]
    ours, alone = report["steps"]
    assert ours == alone > 25  # the others were skipped while the loss scale was too large
    assert report["weights"] < 1e-3 and report["loss"] < 1e-3
    assert report["losses"][-1] < 0.9 * report["losses"][0]


def test_each_worker_reads_row_groups_of_its_own(tmp_path: Path) -> None:
    table = pa.table(world.checkerboard(users=18, items=12, blocks=2, seed=0, events=6))
    groups.write(tmp_path / "events.parquet", table.schema, table.to_batches(), 12)
    configs = local_cluster.local_configs({"worker": 2})
    command = [local_cluster.HERE / "shards_check.py", tmp_path / "events.parquet"]
    done = local_cluster.finish([local_cluster.start(command, config) for config in configs])
    assert [code for code, _, _ in done] == [0, 0], done[0][2][-3000:] + done[1][2][-3000:]
    first, second = (json.loads(out) for _, out, _ in done)
    assert not set(first["users"]) & set(second["users"])
    assert len(first["users"]) + len(second["users"]) == 18
    assert first["steps"] == second["steps"] > 8
    assert first["weights"] < 1e-5


def test_parameter_servers_train_and_their_checkpoint_is_read_again() -> None:
    configs = local_cluster.local_configs({"chief": 1, "worker": 1, "ps": 1})
    done = local_cluster.finish(
        [local_cluster.start([local_cluster.HERE / "servers_check.py"], config) for config in configs]
    )
    assert [code for code, _, _ in done] == [0, 0, 0], [error[-2000:] for _, _, error in done]
    report = json.loads(done[0][1])
    assert report["losses"][-1] < 0.5 * report["losses"][0]
    assert report["same"]
    assert all("/job:ps/" in device for device in report["devices"])


def test_parameter_servers_with_one_thread_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TF_NUM_INTEROP_THREADS", "1")
    with (
        pytest.raises(ConfigError, match="need TF_NUM_INTEROP_THREADS above 1"),
        joined(world.settings(strategy="parameter_server")),
    ):
        pytest.fail("they would hang")
