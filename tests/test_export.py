"""An export is whole or absent, numbered, and says what it is."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from parts import ITEMS, LENGTH, make_parts
from tensorflow.core.protobuf import saved_model_pb2

from tfrec.artifact import export as module
from tfrec.artifact.export import CARD, export, versions
from tfrec.artifact.recommender import Parts
from tfrec.errors import ArtifactError, ServerError
from tfrec.server.servable import Servable
from tfrec.server.tensors import to_array


@pytest.fixture(scope="module")
def parts() -> Parts:
    return make_parts()


@pytest.fixture(scope="module")
def published(parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(parts, tmp_path_factory.mktemp("exports") / "shop", {"model": "shop"}, lambda path: None)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Writes one file instead of a SavedModel."""

    def write(parts: Parts, folder: Path, card: object) -> None:
        folder.mkdir()
        (folder / "saved_model.pb").write_bytes(b"model")

    monkeypatch.setattr(module, "write_model", write)


def nothing(path: Path) -> None:
    pass


def contents(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_some_signatures_answer_as_among_all(parts: Parts, published: Path, tmp_path: Path) -> None:
    module.write_model(parts, tmp_path / "1", {}, only=["recommend"])
    assert module.read_card(tmp_path / "1")["signatures"] == ["recommend"]
    answers = []
    for folder in (published, tmp_path / "1"):
        servable = Servable(folder)
        answers.append(servable.run("recommend", {"k": np.int32(4)}))
        servable.close()
    assert [*servable.signatures] == ["recommend"]
    for name, values in answers[0].items():
        np.testing.assert_array_equal(answers[1][name], values)


def test_versions_count_up(parts: Parts, tmp_path: Path, quick: None) -> None:
    folder = tmp_path / "exports" / "shop"
    assert [export(parts, folder, {}, nothing).name for _ in range(3)] == ["1", "2", "3"]
    assert export(parts, folder, {}, nothing, version=20).name == "20"
    assert export(parts, folder, {}, nothing).name == "21"
    assert versions(folder) == [1, 2, 3, 20, 21]


def test_only_folders_with_plain_numbers_are_versions(tmp_path: Path) -> None:
    for name in ("3", "10", ".4.123", "latest", "²", "-1"):
        (tmp_path / name).mkdir()
    (tmp_path / "7").write_text("a file")
    assert versions(tmp_path) == [3, 10]
    assert versions(tmp_path / "absent") == []


def test_a_version_is_written_once(parts: Parts, tmp_path: Path, quick: None) -> None:
    folder = tmp_path / "shop"
    export(parts, folder, {}, nothing)
    with pytest.raises(ArtifactError, match="a version is written once"):
        export(parts, folder, {}, lambda path: pytest.fail("must not be reached"), version=1)
    assert contents(folder) == ["1"]


def test_nothing_is_visible_before_it_is_finished(parts: Parts, tmp_path: Path, quick: None) -> None:
    folder = tmp_path / "shop"
    seen: list[list[int]] = []

    def finish(path: Path) -> None:
        seen.append(versions(folder))
        assert path.parent == folder
        (path / "golden").write_text("with the model")

    published = export(parts, folder, {}, finish)
    assert seen == [[]]
    assert contents(published) == ["golden", "saved_model.pb"]


@pytest.mark.parametrize("error", [ServerError("it must load"), ArtifactError("it must verify"), KeyboardInterrupt()])
def test_a_failed_check_publishes_nothing(parts: Parts, tmp_path: Path, quick: None, error: BaseException) -> None:
    def finish(path: Path) -> None:
        raise error

    with pytest.raises(type(error)):
        export(parts, tmp_path / "shop", {}, finish)
    assert contents(tmp_path / "shop") == []


def test_a_failed_write_is_one_sentence_and_publishes_nothing(parts: Parts, tmp_path: Path, quick: None) -> None:
    folder = tmp_path / "shop"
    export(parts, folder, {}, nothing)

    def finish(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(ArtifactError, match=r"nothing was published.*No space left on device"):
        export(parts, folder, {}, finish)
    assert contents(folder) == ["1"]


def test_a_folder_that_cannot_be_made_is_refused(parts: Parts, tmp_path: Path) -> None:
    (tmp_path / "exports").write_text("a file, not a folder")
    with pytest.raises(ArtifactError, match="an export must be written to"):
        export(parts, tmp_path / "exports" / "shop", {}, nothing)


def test_a_version_published_meanwhile_is_kept(parts: Parts, tmp_path: Path, quick: None) -> None:
    folder = tmp_path / "shop"

    def finish(path: Path) -> None:
        (folder / "1").mkdir()
        (folder / "1" / "saved_model.pb").write_bytes(b"theirs")

    with pytest.raises(ArtifactError, match="nothing was published"):
        export(parts, folder, {}, finish)
    assert contents(folder) == ["1"]
    assert (folder / "1" / "saved_model.pb").read_bytes() == b"theirs"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    command = [str(mount), "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(folder)]
    if mount is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_publishes_nothing(parts: Parts, small_disk: Path) -> None:
    with pytest.raises(ArtifactError, match="nothing was published"):
        export(parts, small_disk / "shop", {}, nothing)
    assert contents(small_disk / "shop") == []


def test_the_card_says_what_a_client_needs(published: Path) -> None:
    card = json.loads((published / CARD).read_text(encoding="utf-8"))
    assert card["contract"] == 2
    assert card["model"] == "shop"
    assert card["items"] == len(ITEMS)
    assert card["batched_requests"] == {"history": LENGTH, "exclude": LENGTH, "filler": ""}
    names = ["embed_item", "embed_query", "embed_user", "rank", "recommend", "search", "serving_default", "similar"]
    assert card["signatures"] == names


def test_optional_inputs_have_defaults_in_the_signature(published: Path) -> None:
    model = saved_model_pb2.SavedModel.FromString((published / "saved_model.pb").read_bytes())
    signatures = model.meta_graphs[0].signature_def
    defaults = {name: {k: to_array(v) for k, v in signatures[name].defaults.items()} for name in signatures}
    assert defaults["recommend"].keys() == {"user_id", "history", "exclude", "k"}
    assert defaults["recommend"]["k"] == np.int32(10)
    assert defaults["recommend"]["history"].shape == (1, 0)
    assert defaults["recommend"]["user_id"].tolist() == [b""]
    assert defaults["serving_default"].keys() == defaults["recommend"].keys()
    assert defaults["search"].keys() == defaults["similar"].keys() == {"exclude", "k"}
    assert defaults["rank"].keys() == defaults["embed_user"].keys() == {"user_id", "history"}
    assert defaults["embed_item"].keys() == {"item_id"}
    assert not defaults["embed_query"]
