"""What numbers are to blame when something is not finite."""

from __future__ import annotations

import keras
import numpy as np

from tfrec.models.two_tower import Table


def widest_feature(model: keras.Model) -> str:
    """One sentence on the numeric feature with the largest values that the towers read; "" where there is none."""
    ranges = {
        f'"{name}" of {layer.name.removesuffix("_table")}s': (float(np.min(column)), float(np.max(column)))
        for layer in model._flatten_layers()
        if isinstance(layer, Table)
        for name, column in ((name, tensor.numpy()) for name, tensor in layer.tensors.items())
        if column.dtype == np.float32 and column.ndim == 1
    }
    if not ranges:
        return ""
    name, (low, high) = max(ranges.items(), key=lambda item: np.nan_to_num(np.abs(item[1]), nan=np.inf).max())
    return f"The widest numeric feature is {name}: {low:.3g} to {high:.3g} in the standardised tensors"
