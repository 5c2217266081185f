"""One small shop, trained and exported once for all tests."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import tables
from hypothesis import settings

# One verdict a commit; make test-slow draws other examples each time.
settings.register_profile("random")
settings.register_profile("same", derandomize=True)
settings.load_profile("same")


@dataclass(frozen=True)
class Shop:
    """What ``tfrec train`` left behind.

    Args:
        config: the settings' file.
        folder: holds tables, encoder, runs and exports.
        code: exit code of the command.
        out, err: what it printed.
    """

    config: str
    folder: Path
    code: int
    out: str
    err: str

    @property
    def run(self) -> Path:
        return self.folder / "runs" / "shop"

    @property
    def exports(self) -> Path:
        return self.folder / "exports" / "shop"


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache folder of the tests' own."""
    folder = tmp_path_factory.mktemp("cache")
    before = os.environ.get("TFREC_CACHE")
    os.environ["TFREC_CACHE"] = str(folder)
    yield folder
    if before is None:
        del os.environ["TFREC_CACHE"]
    else:
        os.environ["TFREC_CACHE"] = before


@pytest.fixture(scope="session")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The SavedModel of half_plus_two, to be copied."""
    from tests.half_plus_two import save_half_plus_two

    return save_half_plus_two(tmp_path_factory.mktemp("half") / "1")


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Shop:
    """The checkerboard with text, item and user features, trained by the command line."""
    import contextlib
    import io

    from tfrec import cli

    folder = tmp_path_factory.mktemp("shop")
    config = tables.shop(folder)
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = cli.main(["train", config])
    return Shop(config, folder, code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate authority, and a server and a client that it vouches for."""
    folder = tmp_path_factory.mktemp("tls")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    openssl("req", "-x509", *new, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=ca", "-days", "2")
    (folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1")
    for name in ("server", "client"):
        openssl("req", *new, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        signed = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names"]
        openssl("x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.pem", *signed)
    return folder
