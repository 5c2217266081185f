"""Embeddings of unchanged texts, kept on disk: a second run encodes only what is new."""

from __future__ import annotations

import hashlib
import os
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

_CHUNK = 16_384


def cached(
    encode: Callable[[np.ndarray], np.ndarray], token_ids: np.ndarray, identity: str, folder: Path, chunk: int = _CHUNK
) -> np.ndarray:
    """Embeddings of token ids, read from the cache where they are known and encoded where not.

    The key of a row is sha256(row without padding), below a folder of the encoder's identity. Each chunk becomes a
    part file of its own: a killed run keeps what it had, and two runs at once do not overwrite one another.

    Args:
        encode: int32 [m, S] → float32 [m, t]; called with distinct unknown rows only.
        token_ids: int32 [n, S], padded with 0.
        identity: names the encoder and its weights.
        folder: where encoders keep their embeddings.
        chunk: rows encoded between two writes.

    Returns:
        float32 [n, t].
    """
    folder = folder / identity
    keys = [_key(row) for row in token_ids]
    known = _read(folder)
    missing = list({key: row for row, key in enumerate(keys) if key not in known}.items())
    for start in range(0, len(missing), chunk):
        part = missing[start : start + chunk]
        vectors = encode(token_ids[[row for _, row in part]])
        _write(folder, [key for key, _ in part], vectors)
        known.update(zip((key for key, _ in part), vectors, strict=True))
    if not keys:
        return encode(token_ids)
    return np.stack([known[key] for key in keys])


def _key(row: np.ndarray) -> bytes:
    return hashlib.sha256(np.trim_zeros(row, "b").astype("<i4").tobytes()).digest()


def _read(folder: Path) -> dict[bytes, np.ndarray]:
    known: dict[bytes, np.ndarray] = {}
    for path in sorted(folder.glob("*.npz")):
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as part:
                keys, vectors = part["keys"], part["vectors"]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            warnings.warn(f"a damaged part of the embedding cache is ignored: {path}: {error}", stacklevel=2)
            continue
        known.update(zip((key.tobytes() for key in keys), vectors, strict=True))
    return known


def _write(folder: Path, keys: list[bytes], vectors: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    digests = np.frombuffer(b"".join(keys), np.uint8).reshape(len(keys), -1)
    name = hashlib.sha256(b"".join(keys)).hexdigest()[:32]
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=".part-")
    with os.fdopen(handle, "wb") as file:
        np.savez(file, keys=digests, vectors=vectors)
    os.replace(temporary, folder / f"{name}.npz")
