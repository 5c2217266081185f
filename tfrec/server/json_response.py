"""Answers → REST bodies, laid out as RapidJSON's pretty writer does.

Reference: tensorflow_serving/util/json_tensor.cc.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping

import numpy as np
from tensorflow_serving.apis.classification_pb2 import ClassificationResult
from tensorflow_serving.apis.regression_pb2 import RegressionResult

from tfrec.server.json_text import decimals, quoted
from tfrec.server.status import invalid
from tfrec.server.tensors import dtype_name, dtype_of

_BYTES = "_bytes"  # outputs named so hold bytes, not text
_WRITABLE = {"float", "double", "int32", "int16", "int8", "uint8", "string", "int64", "bool", "uint32", "uint64"}


def predictions(outputs: Mapping[str, np.ndarray]) -> str:
    """The row form: a list with an entry per row; an object per row when there are several outputs.

    Raises:
        RequestError: an output has no rows, another number of them, or a type that JSON lacks.
    """
    rows = _common_rows(outputs)
    texts = {name: _texts(name, value) for name, value in outputs.items()}
    if len(outputs) == 1:
        ((name, value),) = outputs.items()
        lines = [_one_line(texts[name], value.shape, i) for i in range(rows)]
        return _enclosed("predictions", ", ".join(lines))
    items = []
    for i in range(rows):
        members = (f"{quoted(name)}: {_one_line(texts[name], value.shape, i)}" for name, value in outputs.items())
        items.append("\n        {\n            " + ",\n            ".join(members) + "\n        }")
    return _enclosed("predictions", ",".join(items))


def columns(outputs: Mapping[str, np.ndarray]) -> str:
    """The columnar form: the one output, or an object of them.

    Raises:
        RequestError: an output has a type that JSON lacks.
    """
    nested = {
        name: _nested(_texts(name, value), value.shape, 2 if len(outputs) > 1 else 1) for name, value in outputs.items()
    }
    if len(outputs) == 1:
        return f'{{\n    "outputs": {next(iter(nested.values()))}\n}}'
    members = ",\n        ".join(f"{quoted(name)}: {text}" for name, text in nested.items())
    return f'{{\n    "outputs": {{\n        {members}\n    }}\n}}'


def classifications(result: ClassificationResult) -> str:
    """A list of [label, score] pairs per example.

    Raises:
        RequestError: there is none.
    """
    if not result.classifications:
        raise invalid("Cannot convert empty ClassificationResults to JSON")
    rows = []
    for found in result.classifications:
        scores = decimals(np.array([c.score for c in found.classes], np.float32)) if found.classes else []
        pairs = (f"[{quoted(c.label)}, {score}]" for c, score in zip(found.classes, scores, strict=True))
        rows.append(f"[{', '.join(pairs)}]")
    return _enclosed("results", ", ".join(rows))


def regressions(result: RegressionResult) -> str:
    """A value per example.

    Raises:
        RequestError: there is none.
    """
    if not result.regressions:
        raise invalid("Cannot convert empty RegressionResults to JSON")
    values = decimals(np.array([regression.value for regression in result.regressions], np.float32))
    return f'{{\n    "results": [{", ".join(values)}]\n}}'


def error(text: str) -> str:
    """The body of a refusal."""
    return f'{{\n    "error": {quoted(text)}\n}}'


def _enclosed(key: str, items: str) -> str:
    return f'{{\n    "{key}": [{items}\n    ]\n}}' if items else f'{{\n    "{key}": []\n}}'


def _common_rows(outputs: Mapping[str, np.ndarray]) -> int:
    if not outputs:
        raise invalid("Cannot convert empty tensor map to JSON")
    rows = -1
    for name, value in outputs.items():
        if value.ndim == 0:
            raise invalid(f"Tensor name: {name} has no shape information ")
        if rows >= 0 and len(value) != rows:
            raise invalid(f"Tensor name: {name} has inconsistent batch size: {len(value)} expecting: {rows}")
        rows = len(value)
    return rows


def _texts(name: str, value: np.ndarray) -> list[str]:
    """Every element as JSON text."""
    kind = dtype_name(dtype_of(value))
    if kind not in _WRITABLE:
        raise invalid(f"Failed to write JSON value for tensor type: {kind}")
    flat = value.ravel()
    if kind in ("float", "double"):
        return decimals(flat) if len(flat) else []
    if kind != "string":
        return [quoted(element) for element in flat.tolist()]
    strings = [element.encode() if isinstance(element, str) else element for element in flat.tolist()]
    if name.endswith(_BYTES):
        return [f'{{\n"b64": "{base64.b64encode(element).decode()}"\n}}' for element in strings]
    return [quoted(element.decode("utf-8", "surrogateescape")) for element in strings]


def _one_line(texts: list[str], shape: tuple[int, ...], row: int) -> str:
    size = len(texts) // shape[0]
    return _joined(texts[row * size : (row + 1) * size], shape[1:])


def _joined(texts: list[str], shape: tuple[int, ...]) -> str:
    if not shape:
        return texts[0]
    size = len(texts) // shape[0] if shape[0] else 0
    return "[" + ", ".join(_joined(texts[i * size : (i + 1) * size], shape[1:]) for i in range(shape[0])) + "]"


def _nested(texts: list[str], shape: tuple[int, ...], depth: int) -> str:
    if not shape:
        return texts[0]
    if not shape[0]:
        return "[]"
    size, pad = len(texts) // shape[0], "    " * (depth + 1)
    parts = (_nested(texts[i * size : (i + 1) * size], shape[1:], depth + 1) for i in range(shape[0]))
    return "[\n" + ",\n".join(pad + part for part in parts) + "\n" + "    " * depth + "]"
