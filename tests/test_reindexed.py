"""An artefact with an index takes items and answers as one that computes all scores."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cascade_twin import CATEGORIES, PRICES, make_cascade
from parts import ITEM_VECTORS, ITEMS, make_parts
from saved_models import strings

from tfrec.artifact import ivf, reindexed
from tfrec.artifact import reindex as module
from tfrec.artifact.buckets import build, from_rows
from tfrec.artifact.export import export, read_card
from tfrec.artifact.golden import write_golden
from tfrec.artifact.indexed import Plan
from tfrec.artifact.reindex import reindex
from tfrec.artifact.stored import Storage
from tfrec.artifact.variables import read_variables
from tfrec.artifact.verify import Report
from tfrec.errors import ArtifactError
from tfrec.server.servable import Servable

BUCKETS = build(ITEM_VECTORS.astype(np.float32), np.arange(1, len(ITEMS) + 1, dtype=np.int32), 2)
PLANS: dict[str, Plan | None] = {
    "packed": Plan(BUCKETS, 1),
    "float32": Plan(BUCKETS, 1, "float32"),
    "bfloat16": Plan(BUCKETS, 1, "bfloat16"),
    "scan": Plan(),
    "all scores": None,
}
BOUNDS = {"least_golden_overlap": 0.0, "tf_serving": "2.18"}
NEW = 40
MANY = np.array([1000], np.int32)


def items(first: int, count: int) -> dict[str, np.ndarray]:
    """Items that point up or right, of different lengths."""
    which = range(first, first + count)
    return {
        "item_id": strings([f"new-{i}" for i in which]),
        "title": strings([("up", "right")[i % 2] for i in which]),
        "price": np.array([1 + i / 100 for i in which], np.float32),
    }


def joined(*tables: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, list[Servable]]]:
    """Versions 2 and 3 of each kind of artefact."""
    asked = [("similar", {"item_id": strings(["a"]), "exclude": np.empty((1, 0), object), "k": np.int32(2)})]
    changed = {"item_id": strings(["a", "e"]), "title": strings(["up", "up"]), "price": np.array([0.5, 2], np.float32)}
    made: dict[str, list[Servable]] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.verify, "verify", lambda path, tf_serving: Report(path, tf_serving, {}, 0, ()))
        for name, plan in PLANS.items():
            folder = tmp_path_factory.mktemp("exports") / "shop"
            parts = replace(make_parts(), item_plan=plan, text_plan=plan)
            export(parts, folder, {}, lambda path: write_golden(path, asked))
            second = reindex(folder, joined(items(0, NEW), changed), ["b"], BOUNDS)
            third = reindex(
                folder, joined(items(NEW, 3), {**changed, "item_id": strings(["b", "c"])}), ["new-7", "ü"], BOUNDS
            )
            made[name] = [Servable(second), Servable(third)]
    yield made
    for servable in (each for pair in made.values() for each in pair):
        servable.close()


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize("kind", ["packed", "float32", "bfloat16", "scan"])
@pytest.mark.parametrize(
    ("signature", "inputs"),
    [
        ("similar", {"item_id": strings(["a", "new-3", "c", "b"])}),
        ("search", {"query": strings(["up", "right"]), "exclude": strings([["new-1"], ["new-2"]])}),
        ("recommend", {"user_id": strings(["?", "?", "ann"]), "history": strings([["d"], ["new-5"], [""]])}),
    ],
)
def test_an_index_answers_as_brute_force_over_the_same_items(
    versions: dict[str, list[Servable]], kind: str, version: int, signature: str, inputs: dict[str, Any]
) -> None:
    name, probes = (signature, {}) if kind == "scan" else (f"{signature}_nprobe", {"nprobe": MANY})
    got = versions[kind][version].run(name, {**inputs, **probes, "k": np.int32(60)})
    wanted = versions["all scores"][version].run(signature, {**inputs, "k": np.int32(60)})
    np.testing.assert_allclose(got["scores"], wanted["scores"], rtol=1e-5, atol=1e-6)
    for mine, theirs, scores in zip(got["item_ids"], wanted["item_ids"], wanted["scores"], strict=True):
        assert set(mine) == set(theirs)
        apart = np.diff(scores, append=-9) < -1e-4
        apart[1:] &= apart[:-1]
        assert mine[apart].tolist() == theirs[apart].tolist()


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize("name", ["item", "text"])
@pytest.mark.parametrize("kind", ["packed", "float32"])
def test_buckets_hold_what_is_available_once(
    versions: dict[str, list[Servable]], version: int, name: str, kind: Storage
) -> None:
    path: Path = versions[kind][version].path
    names = ["available", f"{name}_vectors", *(f"{name}_index/{held}" for held in ivf.HELD)]
    available, vectors, centroids, directions, starts, items, rows = (read_variables(path, names)[n] for n in names)
    assert sorted(items[items > 0].tolist()) == np.flatnonzero(available).tolist()
    made = ivf.contents(from_rows(centroids, items, starts), vectors, kind).values()
    for got, wanted in zip(made, (centroids, directions, starts, items, rows), strict=True):
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("items", r"must know its reach; that of exports.1 has another form\. Export the run again"),
        ("columns", r"must read item_vectors; that of exports.1 has a copy of them\. Export the run again"),
    ],
)
def test_indexes_of_earlier_forms_are_refused(name: str, rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    held = {f"item_index/{name}": np.zeros((2, 3), np.int32)}
    monkeypatch.setattr(reindexed, "read_variables", lambda path, names: held)
    with pytest.raises(ArtifactError, match=rule):
        reindexed.indexes(Path("exports/1"), {}, np.empty(0, np.int32), np.empty(0, np.int32))


# What the filters of a cascade read


def test_a_cascade_filters_new_items_by_their_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.verify, "verify", lambda path, tf_serving: Report(path, tf_serving, {}, 0, ()))
    asked = [("similar", {"item_id": strings(["a"]), "exclude": np.empty((1, 0), object), "k": np.int32(2)})]
    export(make_cascade(candidates=20), tmp_path, {}, lambda path: write_golden(path, asked))
    table = {"item_id": strings(["new", "a"]), "title": strings(["up", "up"]), "price": np.ones(2, np.float32)}
    reindex(tmp_path, items(0, 1), [], BOUNDS)  # of which no price is known
    columns = {"cascade/prices": np.array([9, np.nan], np.float32), "cascade/categories": np.array([[3, 0], [2, 3]])}
    third = reindex(tmp_path, table, [], BOUNDS, columns=columns)
    held = read_variables(third, ("cascade/prices", "cascade/categories"))
    np.testing.assert_array_equal(held["cascade/prices"], np.append(PRICES, [np.nan, 9]).astype(np.float32) * KNOWN)
    assert held["cascade/categories"][[1, 7, 8]].tolist() == [[2, 3], [0, 0], [3, 0]]
    assert held["cascade/categories"][2:7].tolist() == CATEGORIES[2:].tolist()
    again = reindex(tmp_path, table, [], BOUNDS, columns=columns)
    assert read_card(again)["reindexed"]["unchanged"] == 2
    servable = Servable(third)
    try:
        toys = servable.run("recommend_with", {"user_id": strings(["?"]), "allow_categories": strings([["toy"]])})
        assert {*toys["item_ids"][0]} - {b""} == {b"new", b"a", ITEMS[3].encode()}
        dear = servable.run("recommend_with", {"user_id": strings(["?"]), "min_price": np.float32(6)})
        assert {*dear["item_ids"][0]} - {b""} == {b"new"}
    finally:
        servable.close()


KNOWN = np.array([1, np.nan, 1, 1, 1, 1, 1, 1, 1], np.float32)  # the price of a is withdrawn
