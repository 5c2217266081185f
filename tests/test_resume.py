from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

HERE = Path(__file__).parent
STEPS = 24  # 6 epochs of 4


def start(*arguments: object) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)])}
    command = [sys.executable, str(HERE / "resume_check.py"), *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def kill_at(folder: Path, step: int) -> None:
    process = start("train", folder, step)
    out, error = process.communicate()
    assert process.returncode == -signal.SIGKILL, error[-3000:]
    assert out.split()[-1] == str(step)


def assert_ends_as_uninterrupted(folder: Path) -> None:
    process = start("compare", folder)
    out, error = process.communicate()
    assert process.returncode == 0, error[-3000:]
    report = json.loads(out.splitlines()[-1])
    assert report["differing"] == []
    assert report["variables"] > 20 and report["seeds"] > 0
    assert report["history"] and report["csv"]


def test_killed_at_a_random_step_it_ends_with_the_same_weights(tmp_path: Path) -> None:
    step = random.randint(2, STEPS // 2)
    print(f"killed at step {step}")
    kill_at(tmp_path / "killed", step)
    assert_ends_as_uninterrupted(tmp_path / "killed")


@pytest.mark.slow
def test_killed_again_and_again_at_any_moment(tmp_path: Path) -> None:
    for step in sorted(random.sample(range(1, STEPS // 2), 3)):
        kill_at(tmp_path / "killed", step)
    for _ in range(3):
        process = start("train", tmp_path / "killed", 0)
        process.stdout.readline()
        time.sleep(random.random() / 4)
        process.kill()
        process.communicate()
    assert_ends_as_uninterrupted(tmp_path / "killed")
