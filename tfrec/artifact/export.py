"""Writes an artefact: SavedModel, golden requests, warm-up and card, beside the others, then renames it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from tfrec.artifact.recommender import Parts, build, defaults
from tfrec.errors import ArtifactError

CONTRACT = 2
CARD = "assets.extra/tfrec.json"
Requests = Sequence[tuple[str, Mapping[str, np.ndarray]]]


def versions(folder: Path) -> list[int]:
    """The published versions below exports/<model>, ascending."""
    if not folder.is_dir():
        return []
    return sorted(int(child.name) for child in folder.iterdir() if child.name.isdecimal() and child.is_dir())


def export(
    parts: Parts, folder: Path, card: Mapping[str, Any], finish: Callable[[Path], None], version: int | None = None
) -> Path:
    """Writes one version and publishes it when ``finish`` raises nothing.

    Args:
        parts: of the trained model.
        folder: exports/<model>.
        card: what the artefact says about itself; contract version and signatures are added.
        finish: gets the unpublished folder: writes golden requests, verifies.
        version: its number; absent = the next one.

    Returns:
        folder/<version>.

    Raises:
        ArtifactError: the version exists, or nothing can be written there.
    """
    published = versions(folder)
    version = version if version is not None else (published[-1] + 1 if published else 1)
    target = folder / str(version)
    if target.exists():
        raise ArtifactError("a version is written once", str(target), "Export under another number")
    beside = folder / f".{version}.{os.getpid()}"  # TF Serving reads folders with numeric names only
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write(parts, beside, card)
        finish(beside)
        beside.rename(target)
    except (OSError, tf.errors.OpError) as error:
        raise ArtifactError(
            f"an export must be written to {folder}; nothing was published", str(error), "Free space or choose a folder"
        ) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return target


def _write(parts: Parts, folder: Path, card: Mapping[str, Any]) -> None:
    module, signatures = build(parts)
    tf.saved_model.save(module, str(folder), signatures=signatures)
    _add_defaults(folder / "saved_model.pb")
    contents = {
        "contract": CONTRACT,
        "signatures": sorted(signatures),
        "items": len(parts.item_ids),
        "index": hashlib.sha256(parts.item_vectors.tobytes()).hexdigest(),
        # TF Serving's batching wants one row a request for every input, of one width, never empty.
        "batched_requests": {"history": parts.history_length, "exclude": parts.history_length, "filler": ""},
        **card,
    }
    path = folder / CARD
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(contents, indent=1, ensure_ascii=False), encoding="utf-8")


def _add_defaults(path: Path) -> None:
    model = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    for graph in model.meta_graphs:
        for name, signature in graph.signature_def.items():
            for key, value in defaults(name).items():
                signature.defaults[key].CopyFrom(tf.make_tensor_proto(value, shape=value.shape))
    path.write_bytes(model.SerializeToString())
