"""What a column holds, as bytes to hash: the same however it is cut, and whatever library wrote it."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def content(column: pa.Array | pa.ChunkedArray) -> bytes:
    """The bytes of numbers one after the other, of strings UTF-8 and a zero; null is NaN or None."""
    if not pa.types.is_string(column.type):
        return column.to_numpy(zero_copy_only=False).tobytes()
    parts = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    return b"".join(_text(part) for part in parts)


def _text(strings: pa.StringArray) -> bytes:
    """UTF-8, each string closed by a zero; null is None."""
    closed = pc.binary_join_element_wise(pc.fill_null(strings, "None"), "", "\0")
    start, end = closed.offset, closed.offset + len(closed)
    _, offsets, data = closed.buffers()
    bounds = np.frombuffer(offsets, np.int32)
    return data[bounds[start] : bounds[end]].to_pybytes() if end > start else b""
