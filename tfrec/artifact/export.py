"""Writes an artefact: SavedModel, golden requests, warm-up and card, beside the others, then renames it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from tfrec.artifact import options, ranker
from tfrec.artifact.indexed import PROBING
from tfrec.artifact.ranker import RankerParts
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


def read_card(path: Path) -> dict[str, Any]:
    """What a version says about itself.

    Raises:
        ArtifactError: the card is absent or damaged.
    """
    try:
        card: dict[str, Any] = json.loads((path / CARD).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError("a version must have a card", str(path / CARD), "Export it again, or remove it") from error
    return card


def newest(folder: Path) -> Path | None:
    """The newest published version below exports/<model>."""
    published = versions(folder)
    return folder / str(published[-1]) if published else None


def export(
    parts: Parts | RankerParts,
    folder: Path,
    card: Mapping[str, Any],
    finish: Callable[[Path], None],
    version: int | None = None,
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

    def write(beside: Path) -> None:
        write_model(parts, beside, card)
        finish(beside)

    return publish(folder, write, version)


def publish(folder: Path, write: Callable[[Path], None], version: int | None = None) -> Path:
    """Lets ``write`` fill a folder beside the versions, and renames it to one when it raises nothing.

    Args:
        folder: exports/<model>.
        write: gets a path that does not exist.
        version: its number; absent = the next one.

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
        write(beside)
        beside.rename(target)
    except (OSError, tf.errors.OpError) as error:
        raise ArtifactError(
            f"an export must be written to {folder}; nothing was published", str(error), "Free space or choose a folder"
        ) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return target


def write_model(
    parts: Parts | RankerParts, folder: Path, card: Mapping[str, Any], only: Collection[str] | None = None
) -> None:
    """Writes the SavedModel and its card into a folder that does not exist; publishes nothing.

    Args:
        parts: what it is made of.
        folder: parent exists.
        card: what the artefact says about itself.
        only: signatures to write; None = all.
    """
    if isinstance(parts, RankerParts):
        module, signatures = ranker.build(parts)
        optional, index = {name: ranker.defaults(parts) for name in signatures}, {}
    else:
        module, signatures = build(parts)
        optional = {name: defaults(name, parts) for name in signatures}
        if parts.cascade is not None:
            plain = {name: defaults(name.replace(options.WITH, ""), parts) for name in signatures}
            optional = {name: plain[name] | options.defaults(name.removesuffix(PROBING)) for name in signatures}
        index = {"index": hashlib.sha256(parts.item_vectors.tobytes()).hexdigest()}
    if only is not None:
        signatures = {name: signatures[name] for name in only}
        optional = {name: optional[name] for name in only}
    tf.saved_model.save(module, str(folder), signatures=signatures)
    _add_defaults(folder / "saved_model.pb", optional)
    contents = {
        "contract": CONTRACT,
        "signatures": sorted(signatures),
        "items": len(parts.item_ids),
        **index,
        # TF Serving's batching wants one row a request for every input, of one width, never empty.
        "batched_requests": {"history": parts.history_length, "exclude": parts.history_length, "filler": ""},
        **card,
    }
    write_card(folder, contents)


def write_card(path: Path, contents: Mapping[str, Any]) -> None:
    """Writes the card into a version that is not published yet."""
    file = path / CARD
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(contents, indent=1, ensure_ascii=False), encoding="utf-8")


def _add_defaults(path: Path, optional: Mapping[str, Mapping[str, Any]]) -> None:
    model = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    for graph in model.meta_graphs:
        for name, signature in graph.signature_def.items():
            for key, value in optional.get(name, {}).items():
                signature.defaults[key].CopyFrom(tf.make_tensor_proto(value, shape=value.shape))
    path.write_bytes(model.SerializeToString())
