"""Adds, changes and delists items of a published version without training code: its graph stays, its rows grow."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tensorflow_serving.apis.prediction_log_pb2 import PredictLog

from tfrec.artifact import export as artifacts
from tfrec.artifact import gate, reindexed, verify
from tfrec.artifact.golden import Request, answered, read_golden, write_golden
from tfrec.artifact.variables import read_variables, write_variables
from tfrec.errors import ArtifactError
from tfrec.server.servable import Servable
from tfrec.server.tensors import to_array

Arrays = dict[str, np.ndarray]
BATCH = 64
SAME = 1e-4  # of a unit vector: batches of another size round otherwise
_VARIABLE = {"embedding": "item_vectors", "text_embedding": "text_vectors"}
_OF_CATALOGUE = ("item_ids", "item_vectors", "text_vectors", "blend_texts", "popularity", "available")
_OF_MODEL = ("embed_item", "embed_query")  # read the weights alone, which stay; verification runs them again
_GRAPH_ONLY = shutil.ignore_patterns("variables", "fingerprint.pb", "assets.extra")


@dataclass(frozen=True)
class Before:
    """The version that is carried on.

    Args:
        path: its folder.
        card: what it says about itself.
        golden: requests of its export with their answers.
    """

    path: Path
    card: Mapping[str, Any]
    golden: Sequence[PredictLog]


@dataclass(frozen=True)
class Changes:
    """What a new version says of each item.

    Args:
        delisted: rows that may not be returned any more.
        catalogue: the artefact's variables with their new rows.
        counts: added, changed, unchanged, delisted.
        ends: inputs and outputs of embed_item for the first and the last item of the table; None = it is empty.
    """

    delisted: np.ndarray
    catalogue: dict[str, np.ndarray]
    counts: dict[str, int]
    ends: tuple[Arrays, Arrays] | None


def reindex(
    folder: Path,
    items: Mapping[str, np.ndarray],
    remove: Sequence[str],
    bounds: Mapping[str, Any],
    force: bool = False,
    listed: np.ndarray | None = None,
    columns: Mapping[str, np.ndarray] | None = None,
) -> Path:
    """Publishes the next version of exports/<model> with these items.

    Args:
        folder: exports/<model>.
        items: "item_id" and the columns that embed_item takes, as it takes them: object arrays of bytes, float32.
        remove: ids that are not returned any more.
        bounds: "least_golden_overlap", and "tf_serving" to verify against.
        force: publish although the golden answers differ by more.
        listed: bool [rows of items], which of them may be returned; None = all. The others are known, so that histories
            may name them, and wait to be listed.
        columns: further variables of the artefact that hold a row an item, by name: [rows of items, ...]. Items that
            are in none of its rows have NaN or 0.

    Returns:
        folder/<version>.

    Raises:
        ArtifactError: nothing to work on, an id that occurs twice or nowhere, a version that fails verification or the
            gate; nothing is published then.
    """
    before = _before(folder)
    listed = np.ones(len(items["item_id"]), bool) if listed is None else listed
    changes = _changes(before.path, items, listed, [id_.encode() for id_ in remove], columns or {})

    def write(beside: Path) -> None:
        shutil.copytree(before.path, beside, ignore=_GRAPH_ONLY)
        write_variables(before.path, beside, changes.catalogue)
        requests = _new_requests(before, changes, items["item_id"])
        write_golden(beside, [*_asked(before.golden), *requests], _model(before))
        about = {"from": int(before.path.name), **changes.counts, "requests": len(requests), "table": _hash(items)}
        decision = gate.decide(_verdict(before, beside, changes, bounds["least_golden_overlap"]), force)
        artifacts.write_card(beside, _card(before.card, changes) | {"reindexed": about, "gate": decision})
        _verify(beside, bounds["tf_serving"])

    return artifacts.publish(folder, write)


def _before(folder: Path) -> Before:
    path = artifacts.newest(folder)
    if path is None:
        raise ArtifactError("reindex needs an exported version", str(folder), "Export first")
    card = artifacts.read_card(path)
    if card.get("contract") != artifacts.CONTRACT:
        advice = "Export it again with this tfrec, or use the tfrec that wrote it"
        raise ArtifactError(f"the contract of {path} must be {artifacts.CONTRACT}", card.get("contract"), advice)
    golden = read_golden(path)
    return Before(path, card, golden[: len(golden) - card.get("reindexed", {}).get("requests", 0)])


def _model(before: Before) -> str:
    """The name of the model in its requests."""
    return str(before.card.get("model", "default"))


def _verdict(before: Before, beside: Path, changes: Changes, least_overlap: float) -> gate.Verdict:
    gone = changes.catalogue["item_ids"][~changes.catalogue["available"]].tolist()
    answers = read_golden(beside)[: len(before.golden)]
    return gate.compare_answers(before.golden, answers, gone, least_overlap)


def _verify(beside: Path, tf_serving: str) -> None:
    report = verify.verify(beside, tf_serving)
    if not report.ok:
        raise ArtifactError("an artefact must pass verification; nothing was published", advice=str(report))


def _changes(
    path: Path,
    items: Mapping[str, np.ndarray],
    listed: np.ndarray,
    remove: Sequence[bytes],
    columns: Mapping[str, np.ndarray],
) -> Changes:
    catalogue = read_variables(path, _OF_CATALOGUE)
    known = {id_: row for row, id_ in enumerate(catalogue["item_ids"].tolist())}
    ids = items["item_id"]
    _check_ids(ids.tolist(), remove, known)
    old = len(known)
    new = [id_ for id_ in ids.tolist() if id_ not in known]
    index = np.array([known.get(id_, -1) for id_ in ids.tolist()], np.int32)
    index[index < 0] = np.arange(old, old + len(new), dtype=np.int32)
    grown = {name: _with_rows(rows, len(new)) for name, rows in catalogue.items()}
    grown["item_ids"][old:] = new
    vectors, ends = _embedded(path, items) if len(ids) else ({}, None)
    same = _put_vectors(grown, index, vectors, old)
    reindexed.put_blend_texts(path, grown, index[~same])
    held = read_variables(path, columns)  # shorter than the catalogue where nothing has filled them
    held = {name: _with_rows(rows, old + len(new) - len(rows), np.nan) for name, rows in held.items()}
    same &= _put_columns(held, index, columns)
    was = grown["available"][index]
    removed = np.array([known[id_] for id_ in remove], np.int32)
    delisted = np.unique(np.concatenate([removed, index[was & ~listed]]))
    counts = {"delisted": int(grown["available"][delisted].sum())}
    grown["available"][index], grown["available"][removed] = listed, False
    grown |= held | reindexed.indexes(path, grown, index[listed & ~(same & was)], np.append(removed, index[~listed]))
    unchanged = int((same & (was == listed)).sum())
    changed = len(ids) - len(new) - unchanged - int((was & ~listed).sum())
    counts |= {"added": len(new), "changed": changed, "unchanged": unchanged}
    return Changes(delisted, grown, counts, ends)


def _put_vectors(
    grown: dict[str, np.ndarray], index: np.ndarray, vectors: dict[str, np.ndarray], old: int
) -> np.ndarray:
    """Writes the vectors of rows that are new or differ; returns which were there already, bool [rows]."""
    same = index < old
    for name, rows in vectors.items():
        same &= np.all(np.abs(grown[name][index] - rows) <= SAME, axis=1)
    for name, rows in vectors.items():
        grown[name][index[~same]] = rows[~same]
    return same


def _put_columns(held: Mapping[str, np.ndarray], index: np.ndarray, columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """Writes further columns of rows; returns which were there already, bool [rows]."""
    same = np.ones(len(index), bool)
    for name, table in held.items():
        rows = columns[name].astype(table.dtype)
        equal = (table[index] == rows) | ((table[index] != table[index]) & (rows != rows))  # NaN is like NaN
        same &= equal.reshape(len(index), -1).all(axis=1)
        table[index] = rows
    return same


def _check_ids(ids: Sequence[bytes], remove: Sequence[bytes], known: Collection[bytes]) -> None:
    if not ids and not remove:
        raise ArtifactError("reindex needs items to add, change or remove", "an empty table")
    seen: set[bytes] = set()
    for id_ in ids:
        if not id_:
            raise ArtifactError("every item must have an item_id", "an empty one")
        if id_ in seen:
            raise ArtifactError("an item must occur once in the items", id_.decode(), "Keep one of its rows")
        seen.add(id_)
    for id_ in remove:
        if id_ in seen:
            raise ArtifactError("an item must not be both in the items and among the removed", id_.decode())
        if not id_ or id_ not in known:
            raise ArtifactError("an item that is removed must be in the artefact", id_.decode())


def _with_rows(rows: np.ndarray, more: int, unknown: float = 0.0) -> np.ndarray:
    """Further rows of empty strings, of 0, or of what stands for an unknown number."""
    fill = {"O": b"", "f": unknown}.get(rows.dtype.kind, 0)
    return np.concatenate([rows, np.full((more, *rows.shape[1:]), fill, rows.dtype)])


def _embedded(path: Path, items: Mapping[str, np.ndarray]) -> tuple[Arrays, tuple[Arrays, Arrays]]:
    """What the version's own embed_item says: of every row, by the variable that holds it; and of the two ends."""
    servable = Servable(path)
    try:
        inputs = _columns(servable.signatures["embed_item"].inputs, items)
        parts = [
            servable.run("embed_item", {name: column[i : i + BATCH] for name, column in inputs.items()})
            for i in range(0, len(inputs["item_id"]), BATCH)
        ]
        ends = {name: column[[0, -1]] for name, column in inputs.items()}
        answer = servable.run("embed_item", ends)
    finally:
        servable.close()
    return {_VARIABLE[name]: np.concatenate([part[name] for part in parts]) for name in parts[0]}, (ends, answer)


def _columns(wanted: Collection[str], items: Mapping[str, np.ndarray]) -> Arrays:
    if {*wanted} == {"item_id"}:
        advice = "Name features or a text in the settings, and train"
        raise ArtifactError("an item must have text or features to be embedded", sorted(wanted), advice)
    for name in wanted:
        if name not in items:
            raise ArtifactError(f"the items must have the column {name!r} that embed_item takes", sorted(items))
    return {name: items[name] for name in wanted}


def _asked(golden: Sequence[PredictLog]) -> list[Request | PredictLog]:
    """The requests of golden logs; with their answers where no item of the catalogue is read."""
    return [log if log.request.model_spec.signature_name in _OF_MODEL else _request(log) for log in golden]


def _request(log: PredictLog) -> Request:
    inputs = {name: to_array(value) for name, value in log.request.inputs.items()}
    return log.request.model_spec.signature_name, inputs


def _new_requests(before: Before, changes: Changes, table: np.ndarray) -> list[Request | PredictLog]:
    """Requests that touch the first and the last item of the table, and those that are delisted."""
    gone = changes.catalogue["item_ids"][changes.delisted[:2]]
    ids = np.concatenate([table[:1], table[-1:], gone])
    nothing, ten = np.empty((1, 0), object), np.array(gate.TOP, np.int32)
    requests: list[Request | PredictLog] = [
        ("similar", {"item_id": ids, "exclude": nothing, "k": ten}),
        ("recommend", {"user_id": np.array([b""], object), "history": ids[:, None], "exclude": nothing, "k": ten}),
    ]
    if changes.ends is not None:
        asked, answer = changes.ends
        requests.append(answered(_model(before), ("embed_item", asked), answer))
    return requests


def _card(card: Mapping[str, Any], changes: Changes) -> dict[str, Any]:
    """The card of the version before, whose metrics are those of the model that stays, about the new catalogue."""
    vectors, available = changes.catalogue["item_vectors"], changes.catalogue["available"]
    return {**card, "items": int(available.sum()), "index": hashlib.sha256(vectors.tobytes()).hexdigest()}


def _hash(items: Mapping[str, np.ndarray]) -> str:
    table = hashlib.sha256()
    for name in sorted(items):
        table.update(repr((name, items[name].tolist())).encode())
    return table.hexdigest()
