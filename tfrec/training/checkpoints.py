"""Checkpoints: every number that the next step depends on, in one file that is whole or absent."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfrec.errors import TrainingError

FILE = "checkpoint.npz"
_PLAIN = (bool, int, float, str, type(None))


def save(folder: Path, variables: Sequence[Any], callbacks: Sequence[Any], progress: dict[str, Any]) -> None:
    """Writes variables, callback state and progress beside the last checkpoint, then takes its place.

    Args:
        folder: of one training phase; made when absent.
        variables: Keras or TensorFlow variables, in an order that a restart repeats.
        callbacks: Keras callbacks whose plain attributes and weight lists are kept.
        progress: JSON values.
    """
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {_key(i, v): np.asarray(v.numpy()) for i, v in enumerate(variables)}
    states = []
    for i, callback in enumerate(callbacks):
        plain, lists = _callback_state(callback)
        states.append(plain)
        arrays.update({f"callback/{i}/{name}/{j}": x for name, xs in lists.items() for j, x in enumerate(xs)})
    header = json.dumps({"progress": progress, "callbacks": states})
    beside = folder / f".{FILE}.{os.getpid()}"
    try:
        with beside.open("wb") as file:
            np.savez(file, header=np.array(header), **arrays)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(folder / FILE)
    finally:
        beside.unlink(missing_ok=True)


def restore(folder: Path, variables: Sequence[Any], callbacks: Sequence[Any]) -> dict[str, Any] | None:
    """Assigns what :func:`save` wrote and returns its progress; None when there is no checkpoint.

    Raises:
        TrainingError: the file is damaged or belongs to another model.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
            header = json.loads(str(arrays.pop("header")))
    except (zipfile.BadZipFile, ValueError, KeyError, EOFError, OSError) as error:
        raise TrainingError(
            "a checkpoint must be whole", f"{path}: {error}", "Remove it to train from the beginning"
        ) from error
    _assign(path, variables, arrays)
    for i, (callback, plain) in enumerate(zip(callbacks, header["callbacks"], strict=True)):
        vars(callback).update(plain)
        for name in _callback_lists(callback, arrays, i):
            prefix = f"callback/{i}/{name}/"
            setattr(callback, name, [arrays[f"{prefix}{j}"] for j in range(sum(k.startswith(prefix) for k in arrays))])
    return header["progress"]


def _assign(path: Path, variables: Sequence[Any], arrays: dict[str, np.ndarray]) -> None:
    for i, variable in enumerate(variables):
        value = arrays.get(_key(i, variable))
        if value is None or tuple(value.shape) != tuple(variable.shape):
            raise TrainingError(
                f"a checkpoint must fit the model; {variable.path} [{tuple(variable.shape)}] is not in {path}",
                advice="Settings or data changed: remove the run's folder or name another run",
            )
        variable.assign(value)


def _key(i: int, variable: Any) -> str:
    return f"{i:05d} {getattr(variable, 'path', variable.name)}"


def _callback_state(callback: keras.callbacks.Callback) -> tuple[dict[str, Any], dict[str, list[np.ndarray]]]:
    attributes = {k: v.item() if isinstance(v, np.generic) else v for k, v in vars(callback).items()}
    plain = {k: v for k, v in attributes.items() if isinstance(v, _PLAIN)}
    lists = {k: v for k, v in attributes.items() if isinstance(v, list) and v and isinstance(v[0], np.ndarray)}
    return plain, lists


def _callback_lists(callback: Any, arrays: dict[str, np.ndarray], i: int) -> set[str]:
    prefix = f"callback/{i}/"
    return {name.split("/")[2] for name in arrays if name.startswith(prefix)}
