"""How the vectors of an inverted file lie in memory, and what a product with them tells."""

from __future__ import annotations

from typing import Literal

import numpy as np
import tensorflow as tf

from tfrec.artifact import packing

LOWEST = float(np.finfo(np.float32).min)
Storage = Literal["packed", "float32", "bfloat16"]


class Plain:
    """A vector a row, float32 or rounded to bfloat16."""

    width = 1  # vectors of a row
    none = nothing = LOWEST  # a field below all others, and products that have only such

    def __init__(self, dtype: Literal["float32", "bfloat16"]):
        self.dtype = dtype
        self.exact = dtype == "float32"  # a field is the score itself

    def rows(self, vectors: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        """Rows [W, d] of the chosen vectors, int [W, width]."""
        return tf.cast(vectors[chosen[:, 0]], self.dtype).numpy()

    def distances(self, reach: np.ndarray, centroids: np.ndarray) -> np.ndarray:
        """Differences of cosines as :meth:`within` wants them."""
        return reach

    def asked(self, query: tf.Tensor) -> tf.Tensor:
        """Queries as rows are multiplied with them."""
        return tf.cast(query, self.dtype)

    def within(self, distance: tf.Tensor, query: tf.Tensor) -> tf.Tensor:
        """A difference of cosines as one of fields [B, 1]."""
        return distance * tf.norm(query, axis=1, keepdims=True)

    def fields(self, products: tf.Tensor) -> list[tf.Tensor]:
        """For each vector of a row a number that grows with its score, from the products of rows."""
        return [tf.cast(products, tf.float32)]

    def shortlist(self, count: tf.Tensor) -> tf.Tensor:
        """How many of the largest fields hold the ``count`` best."""
        return count if self.exact else 2 * count


class Packed:
    """Three vectors a row, see :mod:`tfrec.artifact.packing`, with the methods of :class:`Plain`."""

    width, none, nothing, exact = packing.WIDTH, packing.NONE, packing.NOTHING, False

    def __init__(self, dimensions: int):
        self._length = packing.length(dimensions)

    def rows(self, vectors: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        return packing.pack(vectors, chosen)

    def distances(self, reach: np.ndarray, centroids: np.ndarray) -> np.ndarray:
        return np.ceil(reach * packing.scale(centroids) * self._length).astype(np.int32)

    def asked(self, query: tf.Tensor) -> tf.Tensor:
        return packing.rounded(query, self._length)

    def within(self, distance: tf.Tensor, query: tf.Tensor) -> tf.Tensor:
        return distance  # all queries have one length

    def fields(self, products: tf.Tensor) -> list[tf.Tensor]:
        return packing.fields(products)

    def shortlist(self, count: tf.Tensor) -> tf.Tensor:
        return 4 * count + 100


def stored_as(storage: Storage, dimensions: int) -> Plain | Packed:
    return Packed(dimensions) if storage == "packed" else Plain(storage)


def storage_of(rows: np.ndarray) -> Storage:
    """The storage of such rows."""
    return "packed" if rows.dtype == np.int32 else "bfloat16" if rows.dtype == tf.bfloat16 else "float32"
