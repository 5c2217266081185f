"""tfrec serve hands over to TensorFlow Serving's own server when it is on PATH."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tables

from tfrec import cli, pipeline
from tfrec.config import load
from tfrec.server.flags import parser

FAKE = '#!/bin/sh\nprintf \'%s\\n\' "$$" "$@"\nexit 7\n'


@pytest.fixture
def config(tmp_path: Path, cache: Path) -> str:
    """Settings of a shop whose export is a folder without contents."""
    settings = tables.shop(tmp_path)
    (tmp_path / "exports" / "shop" / "3").mkdir(parents=True)
    return settings


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A PATH with an executable that prints its process and its arguments."""
    executable = tmp_path / "bin" / "tensorflow_model_server"
    executable.parent.mkdir()
    executable.write_text(FAKE)
    executable.chmod(0o755)
    return f"{executable.parent}:{os.environ['PATH']}"


def test_the_real_server_takes_the_process_over(config: str, path: str) -> None:
    command = [sys.executable, "-m", "tfrec", "serve", config, "serve.port=8510", "serve.rest_port=8511"]
    process = subprocess.Popen(
        [*command, "serve.threads=3"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PATH": path},
        cwd=Path(__file__).parents[1],
    )
    out, err = process.communicate(timeout=120)
    pid, *flags = out.splitlines()
    assert (process.returncode, int(pid)) == (7, process.pid)
    assert f"starting {path.split(':')[0]}/tensorflow_model_server; it listens on every interface" in err
    assert all(flag.startswith("--") and "=" in flag for flag in flags)
    given = parser("").parse_args(flags)
    assert (given.port, given.rest_api_port, given.grpc_max_threads) == (8510, 8511, 3)
    base = Path(config).parent / "exports" / "shop"
    assert (given.model_name, given.model_base_path) == ("shop", str(base.resolve()))


def test_both_servers_get_the_same_flags(config: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, list[str]] = {}
    monkeypatch.setattr("os.execv", lambda file, argv: given.update(real=argv[1:]))
    monkeypatch.setattr("tfrec.server.grpc_server.main", lambda argv: given.update(own=argv) or 0)
    said: list[str] = []
    for folders in (path, ""):
        monkeypatch.setenv("PATH", folders)
        pipeline.serve(load(config, ["serve.host=0.0.0.0"]), said.append)
    assert given["own"] == ["--host=0.0.0.0", *given["real"]]
    assert said[1] == "tensorflow_model_server is not on PATH: starting the embedded server"


def test_the_real_server_needs_a_port(
    config: str, path: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", path)
    assert cli.main(["serve", config, "serve.port=0"]) == 2
    assert "tensorflow_model_server must get a port; 0 turns its gRPC off; got 0" in capsys.readouterr().err


def test_nothing_to_serve(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["serve", config, "run.name=other"]) == 1
    assert "serving needs an exported version" in capsys.readouterr().err
