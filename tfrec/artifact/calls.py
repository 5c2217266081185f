"""Signature calls and their expected answers as JSON, for a process that has no protobuf and no TensorFlow."""

from __future__ import annotations

from typing import Any

import numpy as np


def encode(array: np.ndarray) -> dict[str, Any]:
    """An array as JSON values; bytes become text by Latin-1, which maps every byte to one character."""
    if array.dtype == object:
        values = [value.decode("latin-1") for value in array.ravel()]
        return {"dtype": "string", "shape": list(array.shape), "data": values}
    data = np.ascontiguousarray(array).tobytes().decode("latin-1")
    return {"dtype": array.dtype.name, "shape": list(array.shape), "data": data}


def decode(value: dict[str, Any]) -> np.ndarray:
    """The inverse of encode."""
    if value["dtype"] == "string":
        array = np.empty(len(value["data"]), object)
        array[:] = [text.encode("latin-1") for text in value["data"]]
    else:
        array = np.frombuffer(value["data"].encode("latin-1"), value["dtype"])
    return array.reshape(value["shape"])


def difference(expected: np.ndarray, got: np.ndarray) -> str:
    """What is different, in words; "" when it is equal.

    Floats must be within 1e-5 (absolute + relative), everything else must be equal.
    """
    if expected.dtype != got.dtype or expected.shape != got.shape:
        return f"expected {expected.dtype} {list(expected.shape)}, got {got.dtype} {list(got.shape)}"
    if np.issubdtype(expected.dtype, np.floating):
        wrong = ~np.isclose(got, expected, rtol=1e-5, atol=1e-5, equal_nan=True)
    else:
        wrong = np.asarray(expected != got, bool)
    if not wrong.any():
        return ""
    place = tuple(int(i) for i in np.argwhere(wrong)[0])
    values = f"expected {expected[place]}, got {got[place]}"
    return f"{int(wrong.sum())} of {wrong.size} values differ; at {list(place)} {values}"
