"""Embeddings of ids that take fewer rows than there are ids. All save with Keras and learn by sparse gradients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from tfrec.models.layers import RowEmbedding

_PRIME = 2**31 - 1


FULL = {"kind": "full"}


def id_embedding(
    ids: int, dimension: int, table: Mapping[str, Any], start: Any, spread: float, **kwargs: Any
) -> keras.layers.Layer:
    """The embedding of indices 0 to ``ids``.

    Args:
        ids: N; 0 stands for the unknown.
        dimension: d.
        table: {"kind": "full", "frequent", "hashed" or "compositional", "rows": …, "hashes": …}.
        start: initializer of a full table.
        spread: standard deviation of the vectors at the start, for the others.
    """
    match table["kind"]:
        case "full":
            return RowEmbedding(ids + 1, dimension, start, **kwargs)
        case "frequent":
            return FrequentEmbedding(ids, table["rows"], dimension, spread, **kwargs)
        case "hashed":
            return HashedEmbedding(table["rows"], table["hashes"], dimension, spread, **kwargs)
    return CompositionalEmbedding(ids, table["rows"], dimension, spread, **kwargs)


@keras.saving.register_keras_serializable("tfrec")
class FrequentEmbedding(keras.layers.Layer):
    """A row for each id that is frequent; the others share row 0.

    Args:
        ids: N.
        rows: F, frequent ids.
        dimension: d.
        spread: standard deviation of the vectors at the start.

    Call: int32 [...] -> [..., d].
    """

    def __init__(self, ids: int, rows: int, dimension: int, spread: float, **kwargs: Any):
        super().__init__(**kwargs)
        self.settings = {"ids": ids, "rows": rows, "dimension": dimension, "spread": spread}
        start = keras.initializers.RandomNormal(stddev=spread)
        self.frequent = RowEmbedding(rows + 1, dimension, start, name="frequent", dtype=self.dtype_policy)

    def build(self, input_shape: Any = None) -> None:
        self.frequent.build()
        shape = (self.settings["ids"] + 1,)
        self.row = self.add_weight(shape=shape, initializer="zeros", dtype="int32", trainable=False, name="row")
        self.built = True

    def fill(self, frequent: np.ndarray) -> None:
        """Gives rows to ids.

        Args:
            frequent: bool [N + 1], F of them True; index 0 is not.
        """
        self.row.assign(np.where(frequent, np.cumsum(frequent), 0).astype(np.int32))

    def call(self, inputs: Any) -> Any:
        return self.frequent(tf.gather(self.row.value, ops.cast(inputs, "int32")))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), **self.settings}


@keras.saving.register_keras_serializable("tfrec")
class HashedEmbedding(keras.layers.Layer):
    """The sum of the rows that several hashes pick: ids rarely share all of them.

        e(i) = Σ_k E_{h_k(i)},   h_k(i) = ((a_k i + b_k) mod (2³¹ − 1)) mod R

    Args:
        rows: R.
        hashes: K; the hashes share the table.
        dimension: d.
        spread: standard deviation of the vectors at the start.

    Call: int32 [...] -> [..., d].

    Source: Svenstrup et al. 2017, Hash embeddings, arXiv 1709.03933, with equal importance of the hashes, as in
    Serrà and Karatzoglou 2017, arXiv 1706.03993; the hashes are Carter and Wegman's, 1979.
    """

    def __init__(self, rows: int, hashes: int, dimension: int, spread: float, **kwargs: Any):
        super().__init__(**kwargs)
        self.settings = {"rows": rows, "hashes": hashes, "dimension": dimension, "spread": spread}
        start = keras.initializers.RandomNormal(stddev=spread / hashes**0.5)
        self.shared = RowEmbedding(rows, dimension, start, name="shared", dtype=self.dtype_policy)
        # A fixed seed: a model that is loaded again must hash as it did.
        random = np.random.default_rng(0)
        self._factor = random.integers(1, _PRIME, hashes)
        self._shift = random.integers(0, _PRIME, hashes)

    def build(self, input_shape: Any = None) -> None:
        self.shared.build()
        self.built = True

    def call(self, inputs: Any) -> Any:
        ids = tf.cast(inputs, tf.int64)[..., None]
        rows = tf.math.floormod(tf.math.floormod(ids * self._factor + self._shift, _PRIME), self.settings["rows"])
        return ops.sum(self.shared(tf.cast(rows, tf.int32)), axis=-2)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), **self.settings}


@keras.saving.register_keras_serializable("tfrec")
class CompositionalEmbedding(keras.layers.Layer):
    """A vector of its own for each id from two small tables.

        e(i) = Q_{i div R} ∘ E_{i mod R}

    Args:
        ids: N.
        rows: R of the table of remainders; that of quotients has ⌈(N + 1) / R⌉.
        dimension: d.
        spread: standard deviation of the vectors at the start.

    Call: int32 [...] -> [..., d].

    Source: Shi et al. 2020, Compositional embeddings using complementary partitions, arXiv 1909.02107.
    """

    def __init__(self, ids: int, rows: int, dimension: int, spread: float, **kwargs: Any):
        super().__init__(**kwargs)
        self.settings = {"ids": ids, "rows": rows, "dimension": dimension, "spread": spread}
        policy = {"dtype": self.dtype_policy}
        one, start = (keras.initializers.RandomNormal(stddev=s) for s in (1.0, spread))
        self.quotient = RowEmbedding(-(-(ids + 1) // rows), dimension, one, name="quotient", **policy)
        self.remainder = RowEmbedding(rows, dimension, start, name="remainder", **policy)

    def build(self, input_shape: Any = None) -> None:
        self.quotient.build()
        self.remainder.build()
        self.built = True

    def call(self, inputs: Any) -> Any:
        ids, rows = tf.cast(inputs, tf.int32), self.settings["rows"]
        return self.quotient(ids // rows) * self.remainder(ids % rows)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), **self.settings}
