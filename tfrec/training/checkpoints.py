"""Checkpoints: every number that the next step depends on, in one file that is whole or absent."""

from __future__ import annotations

import json
import os
import re
import warnings
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfrec.errors import TrainingError

FILE, BEFORE = "checkpoint.npz", "checkpoint.before.npz"
_RULE = "a checkpoint must be whole"
_DAMAGE = (zipfile.BadZipFile, ValueError, KeyError, TypeError, EOFError, OSError, NotImplementedError, RuntimeError)


def save(folder: Path, variables: Sequence[Any], callbacks: Sequence[Any], progress: dict[str, Any]) -> None:
    """Writes variables, callback state and progress beside the last checkpoint, which then becomes the one before.

    Args:
        folder: of one training phase; made when absent.
        variables: Keras or TensorFlow variables, in an order that a restart repeats.
        callbacks: Keras callbacks whose numbers, lists and dicts of them, and weight lists are kept.
        progress: JSON values.
    """
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {_key(i, v): np.asarray(v.numpy()) for i, v in enumerate(variables)}
    states = []
    for i, callback in enumerate(callbacks):
        plain, lists = _callback_state(callback)
        states.append({"type": type(callback).__name__, "state": plain})
        arrays.update({f"callback/{i}/{name}/{j}": x for name, xs in lists.items() for j, x in enumerate(xs)})
    header = json.dumps({"progress": progress, "callbacks": states})
    # A fixed name: what a kill leaves behind is overwritten.
    beside = folder / f".{FILE}.partial"
    with beside.open("wb") as file:
        np.savez(file, header=np.array(header), **arrays)  # type: ignore[arg-type]
        file.flush()
        os.fsync(file.fileno())
    if (folder / FILE).exists():
        (folder / FILE).replace(folder / BEFORE)
    beside.replace(folder / FILE)


@dataclass(frozen=True)
class Checkpoint:
    """What :func:`save` wrote."""

    path: Path
    progress: dict[str, Any]
    callbacks: list[dict[str, Any]]
    arrays: dict[str, np.ndarray]

    def restore(self, variables: Sequence[Any], callbacks: Sequence[Any], writes: bool = True) -> None:
        """Assigns variables and callback state, or nothing at all.

        Args:
            variables, callbacks: those of :func:`save`.
            writes: whether this process writes: later rows of logs are dropped, and the checkpoint before a damaged
                one becomes the last.

        Raises:
            TrainingError: it was written by another model or with other callbacks.
        """
        self._check(variables, callbacks)
        for i, variable in enumerate(variables):
            variable.assign(self.arrays[_key(i, variable)])
        for i, (callback, stored) in enumerate(zip(callbacks, self.callbacks, strict=True)):
            if isinstance(callback, keras.callbacks.CSVLogger):
                if writes:
                    _truncate(callback, stored["state"]["size"])
            else:
                vars(callback).update(stored["state"] | self._weight_lists(i))
        if writes and self.path.name == BEFORE:
            self.path.replace(self.path.with_name(FILE))

    def _check(self, variables: Sequence[Any], callbacks: Sequence[Any]) -> None:
        stored = {k: v.shape for k, v in self.arrays.items() if not k.startswith("callback/")}
        wanted = {_key(i, v): tuple(v.shape) for i, v in enumerate(variables)}
        differing = sorted(key for key in stored.keys() | wanted.keys() if stored.get(key) != wanted.get(key))
        if differing:
            name = differing[0]
            raise TrainingError(
                f"a checkpoint must fit the model; {self.path} holds {name} with shape {stored.get(name)}",
                wanted.get(name),
                "Settings or data changed: remove the run's folder or name another run",
            )
        before, now = [x["type"] for x in self.callbacks], [type(x).__name__ for x in callbacks]
        if before != now:
            raise TrainingError(f"a checkpoint must be continued with its callbacks, {before} in {self.path}", now)

    def _weight_lists(self, i: int) -> dict[str, list[np.ndarray]]:
        lists: dict[str, list[np.ndarray]] = {}
        for key, array in self.arrays.items():  # in the order of saving
            if key.startswith(f"callback/{i}/"):
                lists.setdefault(key.split("/")[2], []).append(array)
        return lists


def read(folder: Path) -> Checkpoint | None:
    """The last checkpoint of a folder, or the one before if that is damaged, with a warning; None when there is none.

    Raises:
        TrainingError: none of them is whole.
    """
    damaged: list[str] = []
    for path in (folder / FILE, folder / BEFORE):
        try:
            found = _read(path) if path.exists() else None
        except _DAMAGE as error:
            damaged.append(f"{path}: {error}")
            continue
        if found and damaged:
            warnings.warn(f"{_RULE}; got {damaged[0]!r}. Continuing from the one before it, {path}", stacklevel=2)
        if found:
            return found
    if damaged:
        raise TrainingError(_RULE, "; ".join(damaged), "Remove it to train from the beginning")
    return None


def _read(path: Path) -> Checkpoint:
    # NumPy leaves a damaged file open that it opened itself.
    with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    header = json.loads(str(arrays.pop("header")))
    return Checkpoint(path, header["progress"], header["callbacks"], arrays)


def _key(i: int, variable: Any) -> str:
    # Keras numbers optimizers and seed generators through the life of a process.
    return f"{i:05d} {re.sub(r'_[0-9]+(?=/|$)', '', getattr(variable, 'path', variable.name))}"


def _callback_state(callback: Any) -> tuple[dict[str, Any], dict[str, list[np.ndarray]]]:
    if isinstance(callback, keras.callbacks.CSVLogger):
        return {"size": os.path.getsize(callback.filename)}, {}
    attributes = {k: v.item() if isinstance(v, np.generic) else v for k, v in vars(callback).items() if k != "params"}
    plain = {k: v for k, v in attributes.items() if _is_state(v)}
    lists = {k: v for k, v in attributes.items() if isinstance(v, list) and v and all(map(_is_array, v))}
    return plain, lists


def _is_state(value: Any) -> bool:
    """Numbers and what is made of them; strings are paths and modes, and belong to the settings."""
    if isinstance(value, list):
        return all(map(_is_state, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) for key in value) and all(map(_is_state, value.values()))
    return isinstance(value, bool | int | float | None)


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray | np.generic)  # Keras gives a scalar weight as the latter


def _truncate(logger: keras.callbacks.CSVLogger, size: int) -> None:
    """Drops the rows of epochs that will be trained again."""
    logger.csv_file.truncate(min(size, os.path.getsize(logger.filename)))
    logger.append_header = os.path.getsize(logger.filename) == 0
