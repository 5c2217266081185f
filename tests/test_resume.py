from __future__ import annotations

import json
import random
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import local_cluster
import pytest

CHECK = local_cluster.HERE / "resume_check.py"
STEPS = 24  # 6 epochs of 4
AGAIN = 75


def start(*arguments: object) -> subprocess.Popen[str]:
    return local_cluster.start([CHECK, *arguments])


def start_workers(command: str, folder: Path, steps: Sequence[int] = (0, 0)) -> list[subprocess.Popen[str]]:
    configs = local_cluster.local_configs({"worker": len(steps)})
    words = ([CHECK, command, folder, step] for step in steps)
    return [local_cluster.start(each, config) for each, config in zip(words, configs, strict=True)]


def kill_at(folder: Path, step: int) -> None:
    process = start("train", folder, step)
    out, error = process.communicate()
    assert process.returncode == -signal.SIGKILL, error[-3000:]
    assert out.split()[-1] == str(step)


def assert_ends_as_uninterrupted(folder: Path) -> None:
    process = start("compare", folder)
    out, error = process.communicate()
    assert process.returncode == 0, error[-3000:]
    assert_equal(out)


def assert_equal(out: str) -> None:
    report = json.loads(out.splitlines()[-1])
    assert report["differing"] == []
    assert report["variables"] > 20 and report["seeds"] > 0
    assert report["history"] and report["csv"]


def test_killed_damaged_and_terminated_it_ends_with_the_same_weights(tmp_path: Path) -> None:
    step = random.randint(2, STEPS // 2)
    print(f"killed at step {step}")
    kill_at(tmp_path / "killed", step)
    (last_checkpoint,) = (tmp_path / "killed").rglob("checkpoint.npz")
    last_checkpoint.write_bytes(last_checkpoint.read_bytes()[:-100])
    process = start("train", tmp_path / "killed", 0)
    for _ in range(3):
        done = int(process.stdout.readline())
    process.terminate()
    out, error = process.communicate()
    assert process.returncode == AGAIN, error[-3000:]
    assert "a checkpoint must be whole" in error and "Continuing from the one before it" in error
    last = int((out.split() or [done])[-1])
    assert f"SIGTERM stopped the training after epoch {(last - 1) // 4 + 1}, step {(last - 1) % 4 + 1}" in error
    assert_ends_as_uninterrupted(tmp_path / "killed")


@pytest.mark.slow
def test_workers_killed_ten_times_end_with_the_same_weights(tmp_path: Path) -> None:
    for step in sorted(random.sample(range(1, STEPS // 2), 10)):
        victim = random.randrange(2)
        steps = [step if worker == victim else 0 for worker in range(2)]
        done = local_cluster.finish(start_workers("train", tmp_path / "killed", steps))
        assert done[victim][0] == -signal.SIGKILL, done[victim][2][-3000:]
        code, _, error = done[1 - victim]
        assert code == AGAIN, error[-3000:]
        assert "every worker must live until the end of the training; one is gone" in error
    done = local_cluster.finish(start_workers("compare", tmp_path / "killed"))
    assert [code for code, _, _ in done] == [0, 0], done[0][2][-3000:]
    for _, out, _ in done:
        assert_equal(out)


@pytest.mark.slow
def test_sigterm_to_one_worker_stops_all_with_a_checkpoint(tmp_path: Path) -> None:
    processes = start_workers("train", tmp_path / "killed")
    processes[1].stdout.readline()
    processes[1].terminate()
    for code, _, error in local_cluster.finish(processes):
        assert code == AGAIN, error[-3000:]
        assert "SIGTERM stopped the training after epoch" in error
    done = local_cluster.finish(start_workers("compare", tmp_path / "killed"))
    for code, out, error in done:
        assert code == 0, error[-3000:]
        assert_equal(out)


@pytest.mark.slow
def test_killed_again_and_again_at_any_moment(tmp_path: Path) -> None:
    for step in sorted(random.sample(range(1, STEPS // 2), 10)):
        kill_at(tmp_path / "killed", step)
    for _ in range(3):
        process = start("train", tmp_path / "killed", 0)
        process.stdout.readline()
        time.sleep(random.random() / 4)
        process.kill()
        process.communicate()
    assert_ends_as_uninterrupted(tmp_path / "killed")
