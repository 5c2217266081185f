"""Raw strings and numbers → model tensors: the one piece of code that fills tables and serves requests."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import tensorflow as tf

from tfrec.data.tokens import Tokenizer, join_text
from tfrec.errors import DataError
from tfrec.schema import Feature, Schema, Side


@dataclass(frozen=True)
class Statistics:
    """What preprocessing learns from data.

    Args:
        vocabularies: categorical feature -> its values; the value at place i has index i + 1.
        moments: numeric feature -> (mean, standard deviation).
    """

    vocabularies: Mapping[str, Sequence[str]]
    moments: Mapping[str, tuple[float, float]]

    def save(self, path: Path) -> None:
        beside = path.with_name(f".{path.name}")
        beside.write_text(json.dumps(asdict(self), ensure_ascii=False), encoding="utf-8")
        os.replace(beside, path)

    @classmethod
    def load(cls, path: Path) -> Statistics:
        return cls(**json.loads(path.read_text(encoding="utf-8")))

    def rows(self) -> dict[str, int]:
        """Embedding rows of each categorical feature, row 0 for the unknown included."""
        return {name: len(values) + 1 for name, values in self.vocabularies.items()}


def raw_columns(table: pa.Table, names: Iterable[str], numeric: Iterable[str]) -> dict[str, np.ndarray]:
    """Columns as a request carries them: UTF-8 strings with "" for missing, float32 with NaN for missing.

    Raises:
        DataError: a column is absent, or a numeric one holds something else.
    """
    numeric = set(numeric)
    return {name: _raw_column(table, name, name in numeric) for name in names}


def _raw_column(table: pa.Table, name: str, numeric: bool) -> np.ndarray:
    if name not in table.column_names:
        raise DataError(f"a feature must be a column of its table; {name} is not", table.column_names)
    column = table.column(name)
    if not numeric:
        return np.array([_text(value) for value in column.to_pylist()], dtype=object)
    try:
        with np.errstate(over="ignore"):  # beyond float32 is infinite, which counts as missing
            return column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False).astype(np.float32)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(f"the numeric feature {name} must hold numbers", str(error)) from error


def _text(value: Any) -> bytes:
    return b"" if value is None else str(value).encode("utf-8", "replace")


def fit(schema: Schema, side: Side, raw: Mapping[str, np.ndarray], counts: np.ndarray) -> Statistics:
    """Vocabularies by frequency and moments, from the rows that training has seen.

    Args:
        schema: features.
        side: "item" or "user".
        raw: columns of that side.
        counts: training events of each row; rows without any are left out, unless none has.
    """
    seen = counts > 0 if np.any(counts > 0) else np.ones(len(counts), bool)
    vocabularies, moments = {}, {}
    for feature in schema.side(side):
        column = raw[feature.name][seen]
        if feature.kind == "categorical":
            vocabularies[feature.name] = _vocabulary(feature, column)
        else:
            moments[feature.name] = _moments(column)
    return Statistics(vocabularies, moments)


def _vocabulary(feature: Feature, column: np.ndarray) -> list[str]:
    values = _split_values(feature, tf.constant(column, tf.string)).numpy().ravel() if len(column) else []
    frequency = Counter(value.decode() for value in values if value)
    ordered = sorted(frequency, key=lambda value: (-frequency[value], value))
    return ordered[: feature.max_vocabulary]


def _moments(column: np.ndarray) -> tuple[float, float]:
    finite = column[np.isfinite(column)].astype(np.float64)
    if not len(finite):
        return 0.0, 1.0
    mean, deviation = float(finite.mean()), float(finite.std())
    # Equal values have a deviation of rounding errors, by which nothing can be divided.
    return mean, deviation if deviation > 1e-6 * abs(mean) else 1.0


def _split_values(feature: Feature, strings: tf.Tensor) -> tf.Tensor:
    """[R] -> [R, max_values] stripped values, "" = none."""
    if not feature.separator:
        return tf.strings.strip(strings)[:, None]
    parts = tf.strings.strip(tf.strings.split(strings, feature.separator).to_tensor(""))
    parts = parts[:, : feature.max_values]
    return tf.pad(parts, [[0, 0], [0, feature.max_values - tf.shape(parts)[1]]], constant_values="")


def index_table(values: Sequence[str] | np.ndarray, name: str) -> tf.lookup.StaticHashTable:
    """string -> place + 1, 0 for what is not in ``values``."""
    # A table cannot be empty; "" means nothing everywhere.
    keys = tf.constant(values if len(values) else [""], tf.string)
    places = tf.range(1, len(values) + 1, dtype=tf.int32) if len(values) else tf.constant([0])
    return tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(keys, places), 0, name=name)


class Preprocessor:
    """Maps raw columns to tensors, in preparation and inside an exported graph.

    Args:
        schema: features and text columns.
        user_ids, item_ids: id at place i has index i + 1.
        statistics: of all features.
        tokenizer: of the text encoder; None = no text.
    """

    def __init__(
        self,
        schema: Schema,
        user_ids: Sequence[str] | np.ndarray,
        item_ids: Sequence[str] | np.ndarray,
        statistics: Statistics,
        tokenizer: Tokenizer | None = None,
    ):
        self.schema, self.statistics, self.tokenizer = schema, statistics, tokenizer
        self.users, self.items = index_table(user_ids, "users"), index_table(item_ids, "items")
        self._values = {name: index_table(values, name) for name, values in statistics.vocabularies.items()}

    @property
    def tables(self) -> list[tf.lookup.StaticHashTable]:
        """The lookup tables that an exported module must hold."""
        return [self.users, self.items, *self._values.values()]

    def features(self, side: Side, raw: Mapping[str, Any]) -> dict[str, tf.Tensor]:
        """Model tensors of the features of one side.

        Args:
            side: "item" or "user".
            raw: name -> [R] strings (categorical) or float32 (numeric, NaN = missing).

        Returns:
            name -> int32 [R, max_values] (0 = none or unknown) or float32 [R], standardised.
        """
        return {feature.name: self._feature(feature, raw[feature.name]) for feature in self.schema.side(side)}

    def _feature(self, feature: Feature, column: Any) -> tf.Tensor:
        if feature.kind == "categorical":
            return self._values[feature.name].lookup(_split_values(feature, tf.convert_to_tensor(column, tf.string)))
        mean, deviation = self.statistics.moments[feature.name]
        scaled = (tf.convert_to_tensor(column, tf.float32) - mean) / deviation
        return tf.where(tf.math.is_finite(scaled), scaled, 0.0)

    def text(self, raw: Mapping[str, Any]) -> tf.Tensor:
        """An item's text [R] from its columns."""
        return join_text([tf.convert_to_tensor(raw[name], tf.string) for name in self.schema.text])

    def tokens(self, texts: Any) -> tf.Tensor:
        """Token ids int32 [R, S] of texts [R]."""
        if self.tokenizer is None:
            raise DataError("tokens need features.text.columns", advice="Name the item columns that make the text")
        return self.tokenizer(texts)
