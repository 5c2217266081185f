"""ModelServerConfig: read, checked and compared as TensorFlow Serving's ServerCore does.

Reference: tensorflow_serving/model_servers/server_core.cc.
"""

from __future__ import annotations

import os
from pathlib import Path

from tensorflow_serving.config.model_server_config_pb2 import ModelConfig, ModelServerConfig, ModelType

from tfrec.server.protos import read_text
from tfrec.server.status import RequestError, invalid

_PLATFORM = "tensorflow"
Labels = dict[str, dict[str, int]]


def single_model(name: str, base_path: str) -> ModelServerConfig:
    """The configuration of one model, as from ``--model_name`` and ``--model_base_path``."""
    config = ModelServerConfig()
    config.model_config_list.config.add(name=name, base_path=os.path.abspath(base_path), model_platform=_PLATFORM)
    return config


def read_config(file: Path) -> ModelServerConfig:
    """A model config file.

    Raises:
        RequestError: it is absent or no ModelServerConfig.
    """
    return read_text(file, ModelServerConfig())


def check_transition(old: ModelServerConfig, new: ModelServerConfig) -> None:
    """Refuses a configuration that is wrong in itself or cannot follow the old one.

    Raises:
        RequestError: in TensorFlow Serving's words.
    """
    if old.WhichOneof("config") and new.WhichOneof("config") != "model_config_list":
        raise RequestError(
            "FAILED_PRECONDITION",
            "Cannot transition to requested config. It is only legal to transition from one ModelConfigList to "
            "another.",
        )
    if new.WhichOneof("config") == "custom_model_config":
        raise invalid("Missing custom_model_config_loader in ServerCore Options")
    _check_list(list(new.model_config_list.config))
    for model in new.model_config_list.config:
        platform = _platform(model)
        if platform != _PLATFORM:
            raise invalid(f"Model {model.name} requests unsupported platform {platform}")


def _check_list(models: list[ModelConfig]) -> None:
    seen: set[str] = set()
    for model in models:
        if model.name in seen:
            raise invalid(f"Illegal to list model {model.name} multiple times in config list")
        seen.add(model.name)
    for model in models:
        if not os.path.isabs(model.base_path):
            raise invalid(
                f"Expected model {model.name} to have an absolute path or URI; got base_path()={model.base_path}"
            )


def _platform(model: ModelConfig) -> str:
    if model.model_type != ModelType.MODEL_TYPE_UNSPECIFIED:
        if model.model_platform:
            raise invalid(
                "Illegal setting both ModelServerConfig::model_type (deprecated) and ModelServerConfig::model_platform."
            )
        if model.model_type != ModelType.TENSORFLOW:
            raise invalid(f"ModelServerConfig::model_type choice {model.model_type} not supported.")
        return _PLATFORM
    if not model.model_platform:
        raise invalid(
            "Illegal setting neither ModelServerConfig::model_type (deprecated) nor ModelServerConfig::model_platform."
        )
    return model.model_platform
