"""Model config files after promote and rollback, as TensorFlow Serving reads them."""

from __future__ import annotations

from pathlib import Path

import pytest
from tensorflow_serving.config.model_server_config_pb2 import ModelConfig, ModelServerConfig

from tfrec import cli
from tfrec.errors import ServerError
from tfrec.server.config import check_transition, read_config
from tfrec.server.promote import promote, rollback

OTHER = """
model_config_list {
  config { name: "other" base_path: "/models/other" model_platform: "tensorflow" }
  config { name: "shop" base_path: "/models/shop" model_platform: "tensorflow" }
}
"""


@pytest.fixture
def exports(tmp_path: Path) -> Path:
    for version in (1, 2, 10):
        (tmp_path / "exports" / "shop" / str(version)).mkdir(parents=True)
    (tmp_path / "exports" / "shop" / ".11.99").mkdir()
    return tmp_path / "exports" / "shop"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "models.config"


def entry(file: Path) -> ModelConfig:
    config = read_config(file)
    check_transition(ModelServerConfig(), config)
    [model] = [model for model in config.model_config_list.config if model.name == "shop"]
    return model


def served(file: Path) -> list[int]:
    return list(entry(file).model_version_policy.specific.versions)


def test_a_version_is_pinned_and_unpinned(exports: Path, file: Path) -> None:
    promote(file, exports, 10)
    assert served(file) == [10]
    assert entry(file).base_path == str(exports)
    assert [rollback(file, exports), rollback(file, exports)] == [(2, True), (1, True)]
    assert served(file) == [1]
    with pytest.raises(ServerError, match=r"needs a published version below 1"):
        rollback(file, exports)
    assert served(file) == [1]


def test_a_label_moves_and_what_it_meant_stays_loaded(exports: Path, file: Path) -> None:
    assert promote(file, exports, 1, "stable")
    assert not promote(file, exports, 10, "stable")  # a server refuses the label before it has loaded 10
    assert dict(entry(file).version_labels) == {"stable": 1}
    assert served(file) == [1, 10]
    assert promote(file, exports, 10, "stable")
    assert dict(entry(file).version_labels) == {"stable": 10}
    assert served(file) == [1, 10]
    # 2 is below 10 too, but 1 is what was served before.
    assert rollback(file, exports, "stable") == (1, True)
    assert dict(entry(file).version_labels) == {"stable": 1}
    assert served(file) == [1, 10]


def test_labels_do_not_disturb_each_other(exports: Path, file: Path) -> None:
    promote(file, exports, 2, "stable")
    assert [promote(file, exports, 10, "canary") for _ in range(2)] == [False, True]
    assert dict(entry(file).version_labels) == {"stable": 2, "canary": 10}
    assert served(file) == [2, 10]
    with pytest.raises(ServerError, match="a label must be named"):
        promote(file, exports, 1)
    with pytest.raises(ServerError, match=r"must be one of \['canary', 'stable'\]; got 'beta'"):
        rollback(file, exports, "beta")


def test_other_models_and_the_base_path_stay(exports: Path, file: Path) -> None:
    file.write_text(OTHER)
    promote(file, exports, 2, "stable")
    assert [model.name for model in read_config(file).model_config_list.config] == ["other", "shop"]
    assert entry(file).base_path == "/models/shop"
    assert list(file.parent.glob(".models*")) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [("model_config_list { config { nam", "Invalid protobuf file"), ("custom_model_config { }", "must list models")],
)
def test_a_file_that_cannot_be_used_stays_as_it_is(exports: Path, file: Path, text: str, message: str) -> None:
    file.write_text(text)
    with pytest.raises(ServerError, match=message):
        promote(file, exports, 2)
    assert file.read_text() == text


def test_by_the_command_line(exports: Path, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(exports), "--config", str(file), "--label", "stable"]
    assert cli.main(["promote", str(exports), "3", *words[1:]]) == 1
    assert "must be one of [1, 2, 10]" in capsys.readouterr().err
    assert not file.exists()
    assert cli.main(["rollback", *words]) == 1
    assert "No such file" in capsys.readouterr().err
    assert cli.main(["promote", str(exports), "10", *words[1:]]) == 0
    assert cli.main(["rollback", *words]) == 75
    out, err = capsys.readouterr()
    assert out.split() == ["10"] and "loads version 2 first; run this again" in err
    assert served(file) == [2, 10]
    assert cli.main(["rollback", *words]) == 0
    assert capsys.readouterr().out.split() == ["2"]


def test_a_server_that_cannot_be_told(exports: Path, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["promote", str(exports), "2", "--config", str(file), "--server", "127.0.0.1:9", "--timeout", "5"]
    assert cli.main(words) == 1
    assert "127.0.0.1:9 must accept" in capsys.readouterr().err
