"""Raw strings and numbers → model tensors: the one piece of code that fills tables and serves requests."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import tensorflow as tf

from tfrec.data.tokens import Tokenizer, join_text
from tfrec.errors import DataError
from tfrec.schema import Feature, Schema, Side

AGE_ROWS = 27


def age_rows(now: tf.Tensor, then: tf.Tensor) -> tf.Tensor:
    """Embedding rows of how long ago something was, in steps that double.

        row = 1 + ⌊log2(1 + minutes)⌋, at most AGE_ROWS − 1, which is 60 years

    Args:
        now, then: seconds int64 [...]; ``then`` of 0 or less is unknown, what lies ahead is 0 minutes ago.

    Returns:
        int32 [...], 0 = unknown.
    """
    minutes = tf.cast(tf.maximum(now - then, 0), tf.float64) / 60
    steps = tf.cast(tf.math.log1p(minutes) / np.log(2) + 1e-9, tf.int32)  # 2^n − 1 minutes begin a step
    return tf.where(then > 0, tf.minimum(steps + 1, AGE_ROWS - 1), 0)


@dataclass(frozen=True)
class Statistics:
    """What preprocessing learns from data.

    Args:
        vocabularies: categorical feature -> its values; the value at place i has index i + 1.
        moments: numeric feature -> (mean, standard deviation), of logs where it says so.
        boundaries: bucketed feature -> what separates its quantiles, ascending.
    """

    vocabularies: Mapping[str, Sequence[str]]
    moments: Mapping[str, tuple[float, float]]
    boundaries: Mapping[str, Sequence[float]] = field(default_factory=dict)

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
        side: "item", "user" or "context".
        raw: columns of that side.
        counts: training events of each row; rows without any are left out, unless none has.
    """
    seen = counts > 0 if np.any(counts > 0) else np.ones(len(counts), bool)
    vocabularies, moments, boundaries = {}, {}, {}
    for feature in schema.side(side):
        column = raw[feature.name][seen]
        if feature.buckets:
            boundaries[feature.name] = _quantiles(column, feature.buckets)
        elif feature.kind == "numeric":
            moments[feature.name] = _moments(_logarithm(column) if feature.log else column)
        elif feature.kind == "categorical" and not feature.hash_rows:
            vocabularies[feature.name] = _vocabulary(feature, column)
    return Statistics(vocabularies, moments, boundaries)


def joined(parts: Iterable[Statistics]) -> Statistics:
    """The statistics of several sides as one."""
    out: dict[str, dict[str, Any]] = {"vocabularies": {}, "moments": {}, "boundaries": {}}
    for part in parts:
        for name, values in out.items():
            values |= getattr(part, name)
    return Statistics(**out)


def _vocabulary(feature: Feature, column: np.ndarray) -> list[str]:
    values = _split_values(feature, tf.constant(column, tf.string)).numpy().ravel() if len(column) else []
    frequency = Counter(value.decode() for value in values if value)
    frequent = (value for value, count in frequency.items() if count >= feature.min_count)
    ordered = sorted(frequent, key=lambda value: (-frequency[value], value))
    return ordered[: feature.max_vocabulary]


def _moments(column: np.ndarray) -> tuple[float, float]:
    finite = column[np.isfinite(column)].astype(np.float64)
    if not len(finite):
        return 0.0, 1.0
    mean, deviation = float(finite.mean()), float(finite.std())
    # Equal values have a deviation of rounding errors, by which nothing can be divided.
    return mean, deviation if deviation > 1e-6 * abs(mean) else 1.0


def _logarithm(column: Any) -> Any:
    """sign(x) · log(1 + |x|) in float32, of an array or a tensor."""
    x = tf.convert_to_tensor(column, tf.float32)
    logs = tf.sign(x) * tf.math.log1p(tf.abs(x))
    return logs if isinstance(column, tf.Tensor) else logs.numpy()


def _quantiles(column: np.ndarray, buckets: int) -> list[float]:
    finite = column[np.isfinite(column)]
    if not len(finite):
        return []
    inner = np.arange(1, buckets) / buckets
    # float32, as the requests that are compared with them.
    return np.unique(np.quantile(finite, inner, method="inverted_cdf").astype(np.float32)).tolist()


def _numbers(strings: tf.Tensor, width: int) -> tf.Tensor:
    """[R] "0.1 0.2" -> float32 [R, width]; zeros where there are not so many finite numbers."""
    parts = tf.strings.split(strings)
    right = tf.strings.regex_full_match(parts.values, r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
    values = tf.strings.to_number(tf.where(right, parts.values, "nan"))
    rows = parts.with_values(values).to_tensor(0.0, shape=[None, width])
    good = (parts.row_lengths() == width) & tf.reduce_all(tf.math.is_finite(rows), axis=1)
    return tf.where(good[:, None], rows, 0.0)


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

    def rows(self) -> dict[str, int]:
        """Embedding rows of each indexed feature, row 0 for the unknown included."""
        hashed = {f.name: f.hash_rows + 1 for f in self.schema.features if f.hash_rows}
        buckets = {name: len(cuts) + 2 for name, cuts in self.statistics.boundaries.items()}
        return {**self.statistics.rows(), **hashed, **buckets}

    def features(self, side: Side, raw: Mapping[str, Any]) -> dict[str, tf.Tensor]:
        """Model tensors of the features of one side but for texts, which take an encoder.

        Args:
            side: "item", "user" or "context".
            raw: name -> [R] strings (categorical, vector) or float32 (numeric, NaN = missing).

        Returns:
            name -> int32 [R, max_values] (0 = none or unknown), float32 [R], standardised, or float32 [R, width].
        """
        read = (feature for feature in self.schema.side(side) if feature.kind != "text")
        return {feature.name: self._feature(feature, raw[feature.name]) for feature in read}

    def _feature(self, feature: Feature, column: Any) -> tf.Tensor:
        if feature.kind == "vector":
            return _numbers(tf.convert_to_tensor(column, tf.string), feature.width)
        if feature.kind == "categorical":
            values = _split_values(feature, tf.convert_to_tensor(column, tf.string))
            return self._hashed(values, feature.hash_rows) if feature.hash_rows else self._lookup(feature.name, values)
        number = tf.convert_to_tensor(column, tf.float32)
        if feature.buckets:
            return self._bucket(feature.name, number)
        mean, deviation = self.statistics.moments[feature.name]
        scaled = ((_logarithm(number) if feature.log else number) - mean) / deviation
        return tf.where(tf.math.is_finite(scaled), scaled, 0.0)

    def _lookup(self, name: str, values: tf.Tensor) -> tf.Tensor:
        return self._values[name].lookup(values)

    def _hashed(self, values: tf.Tensor, rows: int) -> tf.Tensor:
        row = tf.cast(tf.strings.to_hash_bucket_fast(values, rows), tf.int32) + 1
        return tf.where(values == "", 0, row)

    def _bucket(self, name: str, number: tf.Tensor) -> tf.Tensor:
        cuts = tf.constant(self.statistics.boundaries[name], tf.float32, [len(self.statistics.boundaries[name])])
        place = tf.searchsorted(cuts, number, side="left") + 1  # a quantile holds what is at most its upper end
        return tf.where(tf.math.is_finite(number), place, 0)[:, None]

    def text(self, raw: Mapping[str, Any]) -> tf.Tensor:
        """An item's text [R] from its columns."""
        return join_text([tf.convert_to_tensor(raw[name], tf.string) for name in self.schema.text])

    def tokens(self, texts: Any) -> tf.Tensor:
        """Token ids int32 [R, S] of texts [R]."""
        if self.tokenizer is None:
            raise DataError("tokens need features.text.columns", advice="Name the item columns that make the text")
        return self.tokenizer(texts)
