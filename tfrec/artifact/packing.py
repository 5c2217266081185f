"""Three vectors of whole numbers in one row of int32: a third of the bytes, and one product for all three."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import tensorflow as tf

WIDTH = 3  # vectors of a row
_BITS = 10
LONGEST = float(np.sqrt(2.0 ** (_BITS - 1) - 1))  # of vectors whose products fit into 10 bits, by Cauchy and Schwarz
_BIAS = sum(1 << (_BITS * place + _BITS - 1) for place in range(WIDTH - 1))  # no field borrows from the next
NONE = 0  # a field below that of any product
NOTHING = -_BIAS - (1 << (_BITS * WIDTH - 1))  # the products of a row all of whose fields are that
_BLOCK = 2**16


def pack(vectors: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Rows Σ_j 2^(10 j) round(s v_j), with the :func:`scale` s of the vectors.

    Args:
        vectors: float32 [N, d]; one that is much longer than the others costs all of them precision.
        chosen: int [W, 3] which of them.

    Returns:
        int32 [W, d].
    """
    factor = scale(vectors)
    rows = np.empty((len(chosen), vectors.shape[1]), np.int32)
    for block in _blocks(len(chosen)):
        parts = [_rounded(vectors[chosen[block, place]], factor).astype(np.int32) for place in range(WIDTH)]
        rows[block] = sum(part << (_BITS * place) for place, part in enumerate(parts))
    return rows


def scale(vectors: np.ndarray) -> float:
    """A factor s, about the largest, for which no vector round(s v) is longer than √511."""
    longest = max(float(np.linalg.norm(vectors[block], axis=1).max()) for block in _blocks(len(vectors)))
    factor = LONGEST / max(longest, 1e-12)
    while (square := max(_square(vectors[block], factor) for block in _blocks(len(vectors)))) > LONGEST**2:
        factor *= 0.999 * LONGEST / float(np.sqrt(square))
    return factor


def length(dimensions: int) -> float:
    """Of a query before it is rounded, which lengthens its square by about d / 12: few are too long then."""
    return float(np.sqrt(0.93 * max(LONGEST**2 - dimensions / 12, 1)))


def rounded(query: tf.Tensor, before: float) -> tf.Tensor:
    """Directions of queries float32 [B, d] of this length in whole numbers int32 [B, d], none longer than √511."""
    long = tf.math.divide_no_nan(query * before, tf.norm(query, axis=1, keepdims=True))
    near = tf.round(long)
    fits = tf.reduce_sum(near * near, axis=1, keepdims=True) <= LONGEST**2
    return tf.cast(tf.where(fits, near, long), tf.int32)  # which cuts what is no whole number


def fields(products: tf.Tensor) -> list[tf.Tensor]:
    """The products of a query with each of a row's three vectors, and 512, from those with rows, int32 [...]."""
    biased = products + _BIAS
    low = [tf.bitwise.bitwise_and(_shifted(biased, place), 2**_BITS - 1) for place in range(WIDTH - 1)]
    return [*low, _shifted(biased, WIDTH - 1) + 2 ** (_BITS - 1)]


def _shifted(value: tf.Tensor, places: int) -> tf.Tensor:
    return tf.bitwise.right_shift(value, _BITS * places) if places else value


def _square(vectors: np.ndarray, factor: float) -> float:
    return float((_rounded(vectors, factor) ** 2).sum(axis=1).max())


def _rounded(vectors: np.ndarray, factor: float) -> np.ndarray:
    return np.rint(vectors * np.float32(factor))


def _blocks(rows: int) -> Iterator[slice]:
    return (slice(low, low + _BLOCK) for low in range(0, rows, _BLOCK))
