"""Which versions a TensorFlow Serving model config file serves, and what their labels mean.

Reference: tensorflow_serving/config/model_server_config.proto, file_system_storage_path_source.proto.
"""

from __future__ import annotations

import os
from pathlib import Path

from google.protobuf import text_format
from tensorflow_serving.config.model_server_config_pb2 import ModelConfig, ModelServerConfig

from tfrec.errors import ServerError
from tfrec.server.config import read_config
from tfrec.server.versions import version_folders


def promote(file: Path, folder: Path, version: int, label: str = "") -> bool:
    """Makes a version the one that is served, or the one that a label means.

    With a label, the version that it meant before stays loaded, so that a rollback is instant. A running server refuses
    a label on a version that it has not loaded: one that the file does not load yet is added to those that it does.

    Args:
        file: the model config file; made when absent.
        folder: exports/<model>; its name is the model's.
        version: a published one.
        label: "" = the version that requests without version get.

    Returns:
        whether that is done; otherwise the label stays where it was until the same is asked again, once the server has
        loaded the version.

    Raises:
        ServerError: the version is not published, the file cannot be used, or labels are in use and none is named.
    """
    published = _published(folder)
    if version not in published:
        raise ServerError(f"a version that is promoted must be one of {published} in {folder}", version)
    config = read_config(file) if file.exists() else ModelServerConfig()
    model = _model(config, file, folder)
    done = _point(model, version, label)
    _write(file, config)
    return done


def rollback(file: Path, folder: Path, label: str = "") -> tuple[int, bool]:
    """Goes back to the version before: the highest below the current one that is loaded, else published.

    Args:
        file: the model config file.
        folder: exports/<model>.
        label: "" = the version that requests without version get.

    Returns:
        the version before, and whether it is served now, as for promote.

    Raises:
        ServerError: there is none, or the file cannot be used.
    """
    config = read_config(file)
    model = _model(config, file, folder)
    published = _published(folder)
    current = _current(model, published, label)
    lower = [version for version in published if version < current]
    loaded = [version for version in model.model_version_policy.specific.versions if version in lower]
    if not lower:
        raise ServerError(f"a rollback needs a published version below {current} in {folder}", published)
    version = max(loaded or lower)
    done = _point(model, version, label)
    _write(file, config)
    return version, done


def _published(folder: Path) -> list[int]:
    return sorted(version_folders(folder)) if folder.is_dir() else []


def _model(config: ModelServerConfig, file: Path, folder: Path) -> ModelConfig:
    """The model's entry, added when there is none."""
    if config.WhichOneof("config") == "custom_model_config":
        raise ServerError(f"{file} must list models in model_config_list", "custom_model_config")
    name = folder.resolve().name
    models = config.model_config_list.config
    for model in models:
        if model.name == name:
            return model
    return models.add(name=name, base_path=str(folder.resolve()), model_platform="tensorflow")


def _current(model: ModelConfig, published: list[int], label: str) -> int:
    if label:
        if label not in model.version_labels:
            raise ServerError(f"a label that is rolled back must be one of {sorted(model.version_labels)}", label)
        return model.version_labels[label]
    versions = list(model.model_version_policy.specific.versions) or published
    return max(versions, default=0)


def _point(model: ModelConfig, version: int, label: str) -> bool:
    labels, loaded = dict(model.version_labels), model.model_version_policy.specific.versions
    if labels and not label:
        raise ServerError("a label must be named where a config has labels", sorted(labels), "Add --label")
    done = not label or version in loaded or not (labels or loaded)
    kept = {version, *(labels.values() if label else ()), *(() if done else loaded)}
    if label and done:
        model.version_labels[label] = version
    loaded[:] = sorted(kept)
    return done


def _write(file: Path, config: ModelServerConfig) -> None:
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        beside.write_text(text_format.MessageToString(config), encoding="utf-8")
        os.replace(beside, file)
    finally:
        beside.unlink(missing_ok=True)
