"""Reads and replaces variables of a SavedModel's folder by name, whatever its graph is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import tensorflow as tf

_PREFIX = "variables/variables"
_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"


def read_variables(path: Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Attributes of the saved module that are variables; those that it lacks are left out.

    Args:
        path: the SavedModel's folder.
        names: of attributes.
    """
    reader = tf.train.load_checkpoint(str(path / _PREFIX))
    return {name: reader.get_tensor(name + _VALUE) for name in names if reader.has_tensor(name + _VALUE)}


def write_variables(source: Path, target: Path, changed: Mapping[str, np.ndarray]) -> None:
    """Writes the variables of one SavedModel into another folder, some of them with other values.

    Args:
        source: the SavedModel's folder.
        target: a folder with the same graph and no variables.
        changed: attribute -> value of the same type; its shape may differ where the variable's is open.
    """
    reader = tf.train.load_checkpoint(str(source / _PREFIX))
    keys = sorted(reader.get_variable_to_shape_map())
    types = reader.get_variable_to_dtype_map()
    replaced = {name + _VALUE: value for name, value in changed.items()}
    values = [tf.constant(replaced[key] if key in replaced else reader.get_tensor(key), types[key]) for key in keys]
    (target / _PREFIX).parent.mkdir()
    tf.raw_ops.SaveV2(
        prefix=str(target / _PREFIX), tensor_names=keys, shape_and_slices=[""] * len(keys), tensors=values
    )
