"""What holds the house together: what may import what, what is public, how long a file may be."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import tfrec

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("tensorflow", "keras", "keras_hub", "tensorflow_text", "tensorflow_recommenders", "ibis", "grpc")


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_starts_a_command_is_light() -> None:
    loaded = python(
        "import contextlib, io, sys\n"
        "import tfrec, tfrec.cli, tfrec.config, tfrec.schema, tfrec.errors, tfrec.client, tfrec.evaluation.metrics\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit): tfrec.cli.main(['--help'])\n"
        "print(*sys.modules)"
    ).split()
    assert "tfrec.cli" in loaded
    assert not set(HEAVY) & set(loaded)


def test_importing_tfrec_changes_no_environment() -> None:
    code = (
        "import os; before = dict(os.environ); import tfrec, tfrec.cli, tfrec.config; print(before == dict(os.environ))"
    )
    assert python(code).strip() == "True"


def test_the_public_names() -> None:
    assert sorted(tfrec.__all__) == ["AsyncClient", "Client", "Run", "__version__", "load"]
    assert all(getattr(tfrec, name) for name in tfrec.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        tfrec.nothing  # noqa: B018


def test_the_imports_go_one_way() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    if not linter.exists():
        pytest.skip("import-linter is not installed")
    done = subprocess.run([str(linter)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "0 broken" in done.stdout


@pytest.mark.parametrize("folder", ["tfrec", "benchmarks", "tools"])
def test_no_file_is_longer_than_400_lines(folder: str) -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in (ROOT / folder).rglob("*.py")}
    assert {str(path): lines for path, lines in lengths.items() if lines > 400} == {}


def test_every_module_says_what_it_is() -> None:
    modules = [path for path in (ROOT / "tfrec").rglob("*.py") if path.read_text(encoding="utf-8").strip()]
    assert len(modules) > 20
    assert [str(path) for path in modules if not path.read_text(encoding="utf-8").startswith('"""')] == []


def test_the_commands_of_the_package_exist() -> None:
    for line in (ROOT / "setup.cfg").read_text(encoding="utf-8").splitlines():
        name, _, target = line.strip().partition(" = tfrec.")
        if target:
            module, _, function = target.partition(":")
            assert callable(getattr(importlib.import_module(f"tfrec.{module}"), function)), name
