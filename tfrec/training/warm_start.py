"""Starts a model from an earlier run: rows of known ids and values are kept, new ones are fresh."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from tfrec.errors import TrainingError
from tfrec.models.two_tower import TwoTower

_ROWS = re.compile(r"(?P<side>item|user)_tower/(id|features/(?P<feature>\w+)_embedding)/embeddings")
_SHARED = re.compile(r"(item|user)_tower/id/(row|frequent/.*|shared/.*|quotient/.*|remainder/.*)")
Names = Mapping[str, Sequence[str]]


def starter(old: TwoTower, old_names: Names, new_names: Names) -> Callable[[TwoTower], None]:
    """A function that copies an earlier model's weights into a freshly built one.

    Args:
        old: the earlier model.
        old_names, new_names: what the rows of an embedding stand for, row 1 first:
            "item" and "user" ids, and the values of each categorical feature.

    Raises:
        TrainingError: by that function, when a weight of both models has another shape.
    """
    before = {variable.path.split("/", 1)[-1]: variable for variable in old.trainable_variables}

    def start(model: TwoTower) -> None:
        for variable in model.trainable_variables:
            path = variable.path.split("/", 1)[-1]
            if path not in before or _SHARED.fullmatch(path):
                continue  # rows that follow from indices, which are others in another run
            value, rows = before[path].numpy(), _rows_of(path)
            rows = rows if rows in new_names else None  # what is hashed or bucketed has rows without names
            first = 1 if rows else 0  # the number of rows may differ
            if value.shape[first:] != tuple(variable.shape)[first:]:
                raise TrainingError(
                    f"a warm start needs weights of the same shape; {path} was {value.shape}",
                    tuple(variable.shape),
                    "Use the earlier run's model settings and features",
                )
            variable.assign(_merged(variable.numpy(), value, new_names[rows], old_names[rows]) if rows else value)

    return start


def _rows_of(path: str) -> str | None:
    """Whose rows a variable holds: "item", "user", a feature's name, or None."""
    found = _ROWS.fullmatch(path)
    return (found["feature"] or found["side"]) if found else None


def _merged(new: np.ndarray, old: np.ndarray, new_names: Sequence[str], old_names: Sequence[str]) -> np.ndarray:
    place = {name: row for row, name in enumerate(old_names, start=1)}
    known = np.array([place.get(name, 0) for name in new_names], np.int64)
    merged = new.copy()
    rows = np.flatnonzero(known) + 1
    merged[rows] = old[known[rows - 1]]
    merged[0] = old[0]  # the unknown
    return merged
