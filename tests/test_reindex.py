"""A published version learns items without training code, and is replaced by a whole version or not at all."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tables
import tensorflow as tf
from conftest import Shop
from parts import ITEM_VECTORS, ITEMS, LOWEST, make_parts
from saved_models import strings

from tfrec import cli
from tfrec.artifact import reindex as module
from tfrec.artifact.export import CARD, export, read_card, versions
from tfrec.artifact.golden import read_golden, write_golden
from tfrec.artifact.reindex import reindex
from tfrec.artifact.variables import read_variables
from tfrec.artifact.verify import Failure, Report
from tfrec.errors import ArtifactError
from tfrec.server.servable import Servable

BOUNDS = {"least_golden_overlap": 0.0, "tf_serving": "2.18"}
NONE = np.empty((1, 0), object)
ONE = np.int32(1)
_READ = {"user_id": strings(["?"]), "history": strings([["d"]])}
GOLDEN = [
    *((name, _READ | {"exclude": NONE, "k": ONE}) for name in ("serving_default", "recommend")),
    ("similar", {"item_id": strings(["a"]), "exclude": NONE, "k": np.int32(2)}),
    ("search", {"query": strings(["up"]), "exclude": NONE, "k": ONE}),
    ("rank", _READ | {"item_ids": strings([["a", "b"]])}),
    ("embed_user", _READ),
    ("embed_item", {"item_id": strings(["a"]), "title": strings(["up"]), "price": np.ones(1, np.float32)}),
    ("embed_query", {"query": strings(["up"])}),
]


def items(**rows: tuple[str, float]) -> dict[str, np.ndarray]:
    """Items of the plane: a direction and a length."""
    titles, prices = zip(*rows.values(), strict=True) if rows else ((), ())
    ids = np.array([id_.encode() for id_ in rows], object)
    titles_ = np.array([title.encode() for title in titles], object)
    return {"item_id": ids, "title": titles_, "price": np.array(prices, np.float32)}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exports") / "shop"
    export(make_parts(), folder, {"model": "shop"}, lambda path: write_golden(path, GOLDEN, "shop"))
    return folder


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    """exports/shop with version 1."""
    return Path(shutil.copytree(exported, tmp_path / "shop"))


@pytest.fixture
def trusting(monkeypatch: pytest.MonkeyPatch) -> None:
    """No clean process: what is served is looked at here."""
    monkeypatch.setattr(module.verify, "verify", lambda path, tf_serving: Report(path, tf_serving, {}, 0, ()))


@pytest.fixture(scope="module")
def grown(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Version 2 with a new item f straight up and c turned left, without b; verified in clean processes."""
    folder = Path(shutil.copytree(exported, tmp_path_factory.mktemp("grown") / "shop"))
    path = reindex(folder, items(f=("up", 1.0), c=("right", -1.0)), ["b"], BOUNDS)
    servable = Servable(path)
    yield servable
    servable.close()


def ids(servable: Servable, signature: str, **inputs: Any) -> list[str]:
    ready = {name: strings(value) if isinstance(value, list) else value for name, value in inputs.items()}
    return [item.decode() for item in servable.run(signature, ready)["item_ids"][0] if item]


# What a new version returns


def test_a_new_item_is_found_as_any_other(grown: Servable) -> None:
    assert ids(grown, "search", query=["up"])[:2] == ["f", "d"]
    assert "f" in ids(grown, "similar", item_id=["d"])
    assert "f" in ids(grown, "recommend", history=[["d"]])
    # f is (0, 1): d has the largest sine of the others.
    assert ids(grown, "similar", item_id=["f"])[0] == "d"
    assert ids(grown, "recommend", history=[["f"]])[0] == "d"
    assert "f" not in ids(grown, "recommend", history=[["f"]])


def test_a_new_item_is_scored_and_unpopular(grown: Servable) -> None:
    inputs = {"user_id": strings(["?"]), "history": strings([["d"]]), "item_ids": strings([["f", "d", "?"]])}
    scores = grown.run("rank", inputs)["scores"][0]
    np.testing.assert_allclose(scores[:2], [3 * ITEM_VECTORS[4][1], 3], rtol=1e-5)
    assert scores[2] == np.float32(LOWEST)
    assert ids(grown, "recommend", user_id=["?"]) == ["e", "c", "d", "ü", "a", "f"]


def test_a_changed_item_has_its_new_vector(grown: Servable) -> None:
    assert ids(grown, "similar", item_id=["c"])[0] == "e"  # both point left


def test_a_delisted_item_is_never_returned_but_remembered(grown: Servable) -> None:
    every = {name: ids(grown, name, **inputs) for name, inputs in {
        "recommend": {"user_id": ["new"]}, "search": {"query": ["right"]}, "similar": {"item_id": ["a"]},
    }.items()}  # fmt: skip
    assert all(found and "b" not in found for found in every.values())
    inputs = {"user_id": strings([""]), "history": strings([["d"]]), "item_ids": strings([["b"]])}
    assert grown.run("rank", inputs)["scores"].tolist() == [[np.float32(LOWEST)]]
    stored, given = (grown.run("embed_user", {"user_id": strings(["ann"]), "history": history})["embedding"]
                     for history in (np.empty((1, 0), object), strings([["a", "b"]])))  # fmt: skip
    np.testing.assert_allclose(stored, given)
    np.testing.assert_allclose(stored[0], 2 * ITEM_VECTORS[1] + 3 * ITEM_VECTORS[2], rtol=1e-5)


def test_existing_items_keep_their_rows(grown: Servable) -> None:
    rows = read_variables(grown.path, ("item_ids", "item_vectors", "popularity"))
    assert [id_.decode() for id_ in rows["item_ids"]] == ["", *ITEMS, "f"]
    untouched = [0, 1, 2, 4, 5, 6]
    np.testing.assert_array_equal(rows["item_vectors"][untouched], ITEM_VECTORS.astype(np.float32)[untouched])
    assert rows["popularity"][-1] == 0


def test_the_card_says_what_changed(grown: Servable) -> None:
    card = read_card(grown.path)
    about = card["reindexed"]
    assert {name: about[name] for name in ("from", "added", "changed", "unchanged", "delisted")} == {
        "from": 1, "added": 1, "changed": 1, "unchanged": 0, "delisted": 1,
    }  # fmt: skip
    assert card["items"] == len(ITEMS)
    assert card["index"] != read_card(grown.path.parent / "1")["index"]
    assert len(about["table"]) == 64
    assert card["gate"]["passed"] and not card["gate"]["forced"]


def test_the_signatures_and_their_defaults_stay(grown: Servable) -> None:
    before = (grown.path.parent / "1" / "saved_model.pb").read_bytes()
    assert (grown.path / "saved_model.pb").read_bytes() == before


# Again and again


def test_a_second_reindex_knows_the_first(folder: Path, trusting: None) -> None:
    reindex(folder, items(f=("up", 1.0)), ["b"], BOUNDS)
    path = reindex(folder, items(f=("up", 1.0), b=("up", 1.0), g=("right", 1.0)), ["a"], BOUNDS)
    assert path.name == "3" and versions(folder) == [1, 2, 3]
    about = read_card(path)["reindexed"]
    assert (about["added"], about["changed"], about["unchanged"], about["delisted"]) == (1, 1, 1, 1)
    assert read_variables(path, ["item_ids"])["item_ids"].tolist()[-2:] == [b"f", b"g"]
    # Those of the export, and those about this table alone.
    assert len(read_golden(path)) == len(GOLDEN) + 3
    servable = Servable(path)
    try:
        assert "b" in ids(servable, "recommend", user_id=["?"])
    finally:
        servable.close()


def test_items_may_only_go(folder: Path, trusting: None) -> None:
    path = reindex(folder, items(), ["b", "e"], BOUNDS)
    assert read_card(path)["items"] == len(ITEMS) - 2


def test_what_is_not_available_is_delisted_until_it_is(folder: Path, trusting: None) -> None:
    table = items(a=("right", 1.0), c=("right", 1.0), f=("up", 1.0))
    path = reindex(folder, table, [], BOUNDS, listed=np.array([False, True, False]))
    about = read_card(path)["reindexed"]
    assert (about["added"], about["changed"], about["unchanged"], about["delisted"]) == (1, 1, 0, 1)
    assert read_card(path)["items"] == len(ITEMS) - 1
    servable = Servable(path)
    try:
        assert not {"a", "f"} & {*ids(servable, "recommend", user_id=["?"]), *ids(servable, "search", query=["up"])}
        assert ids(servable, "recommend", history=[["f"]])[0] == "d"  # a history may name it: f points up
    finally:
        servable.close()
    again = read_card(reindex(folder, table, [], BOUNDS, listed=np.array([False, True, True])))
    about = again["reindexed"]
    assert (about["added"], about["changed"], about["unchanged"], about["delisted"]) == (0, 1, 2, 0)
    assert again["items"] == len(ITEMS)


# What is refused


@pytest.mark.parametrize(
    ("table", "remove", "message"),
    [
        (items(), [], "reindex needs items to add, change or remove"),
        (items(**{"": ("up", 1.0)}), [], "every item must have an item_id"),
        ({name: np.concatenate([column, column]) for name, column in items(f=("up", 1.0)).items()}, [], "once.*'f'"),
        (items(a=("up", 1.0)), ["a"], "must not be both.*'a'"),
        (items(f=("up", 1.0)), ["z"], "must be in the artefact; got 'z'"),
        ({"item_id": strings(["f"]), "price": np.ones(1, np.float32)}, [], "must have the column 'title'"),
    ],
)
def test_what_cannot_be_indexed_is_named(
    folder: Path, table: dict[str, np.ndarray], remove: list[str], message: str
) -> None:
    with pytest.raises(ArtifactError, match=message):
        reindex(folder, table, remove, BOUNDS)
    assert [path.name for path in folder.iterdir()] == ["1"]


def test_a_model_of_ids_alone_cannot_embed_an_item(tmp_path: Path) -> None:
    parts = make_parts(
        item_columns={}, embed_item=lambda item, raw: {"embedding": tf.zeros([tf.size(item), 2])}, embed_query=None
    )
    asked = [("similar", {"item_id": strings(["a"]), "exclude": NONE, "k": ONE})]
    export(parts, tmp_path, {}, lambda path: write_golden(path, asked))
    with pytest.raises(ArtifactError, match=r"must have text or features to be embedded; got \['item_id'\]"):
        reindex(tmp_path, {"item_id": strings(["f"])}, [], BOUNDS)


def test_another_contract_is_refused(folder: Path) -> None:
    card = folder / "1" / CARD
    card.write_text(json.dumps(read_card(folder / "1") | {"contract": 1}), encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"the contract of .* must be 2; got 1"):
        reindex(folder, items(f=("up", 1.0)), [], BOUNDS)


def test_nothing_exported(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="needs an exported version"):
        reindex(tmp_path, items(f=("up", 1.0)), [], BOUNDS)


@pytest.mark.parametrize("error", [RuntimeError("killed"), KeyboardInterrupt(), OSError("No space left on device")])
@pytest.mark.parametrize("place", ["write_variables", "write_golden"])
def test_a_crash_half_way_leaves_the_old_version(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, place: str
) -> None:
    real: Callable[..., None] = getattr(module, place)

    def crash(*arguments: Any) -> None:
        real(*arguments)
        raise error

    monkeypatch.setattr(module, place, crash)
    with pytest.raises((type(error), ArtifactError)):
        reindex(folder, items(f=("up", 1.0)), [], BOUNDS)
    assert [path.name for path in folder.iterdir()] == ["1"]
    assert (folder / "1" / "variables" / "variables.index").is_file()


def test_a_version_that_fails_verification_is_not_published(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = (Failure("session", "load", "no"),)
    monkeypatch.setattr(module.verify, "verify", lambda path, tf_serving: Report(path, tf_serving, {}, 0, bad))
    with pytest.raises(ArtifactError, match=r"must pass verification.*session: load: no"):
        reindex(folder, items(f=("up", 1.0)), [], BOUNDS)
    assert versions(folder) == [1]


def test_the_gate_refuses_and_is_forced(folder: Path, trusting: None) -> None:
    # c was the answer to d, b and c were those to a; d is still the answer to "up".
    turned = items(c=("right", -1.0), b=("right", -1.0))
    strict = BOUNDS | {"least_golden_overlap": 0.9}
    with pytest.raises(
        ArtifactError, match=r"answers keep 25.0% of their items in 4 rows; 90.0% must be kept.*--force"
    ):
        reindex(folder, turned, [], strict)
    assert versions(folder) == [1]
    gate = read_card(reindex(folder, turned, [], strict, force=True))["gate"]
    assert gate["forced"] and not gate["passed"] and "25.0%" in gate["reason"]


# By the command line, on a trained shop


@pytest.fixture
def shop_export(shop: Shop, tmp_path: Path) -> Path:
    shutil.copytree(shop.exports / "1", tmp_path / "shop" / "1")
    return tmp_path / "shop"


def new_rows() -> list[dict[str, Any]]:
    return [
        {"item_id": "tool-77", "title": "steel tool 7", "tags": "tool|odd", "price": 12.0, "shelf": "4"},
        {"item_id": "fruit-3", "title": "fresh fruit 3", "tags": "fruit| odd |new", "price": 3.0, "shelf": "1"},
    ]


def test_a_trained_shop_takes_items(shop_export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tables.write(tmp_path / "new.csv", new_rows())
    gone = tables.write(tmp_path / "gone.csv", [{"item_id": "tool-1"}])
    assert cli.main(["reindex", str(shop_export), table, "--remove", gone]) == 0
    printed = capsys.readouterr()
    assert printed.out.strip() == str(shop_export / "2")
    assert "that the model does not read: shelf" in printed.err
    assert "1 added, 0 changed, 1 unchanged, 1 delisted" in printed.err
    servable = Servable(shop_export / "2")
    try:
        k = np.int32(9)
        assert "tool-77" in ids(servable, "similar", item_id=["tool-7"], k=k)
        assert "tool-77" in ids(servable, "search", query=["steel tool 7"], k=k)
        found = ids(servable, "recommend", history=[["tool-77", "tool-1"]], k=np.int32(5))
        assert {tables.block(item) for item in found} == {"tool"} and "tool-1" not in found
        unseen = ids(servable, "recommend", history=[["tool-2", "tool-3"]], k=np.int32(30))
        assert "tool-77" in unseen and "tool-1" not in unseen
        columns = {"item_id": strings(["tool-77", ""]), "title": strings(["steel tool 7"] * 2),
                   "tags": strings(["tool|odd"] * 2), "price": np.full(2, 12, np.float32)}  # fmt: skip
        vectors = servable.run("embed_item", columns)["embedding"]
        np.testing.assert_allclose(vectors[0], vectors[1], rtol=1e-5)  # it has no row of its own
    finally:
        servable.close()


def test_the_role_available_delists(
    shop_export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], trusting: None
) -> None:
    card = read_card(shop_export / "1")
    card["settings"]["data"]["roles"]["available"] = "in_stock"
    card["blend_keeps_texts"] = True
    (shop_export / "1" / CARD).write_text(json.dumps(card), encoding="utf-8")
    rows = [row | {"in_stock": flag} for row, flag in zip(new_rows(), ("no", "perhaps"), strict=True)]
    assert cli.main(["reindex", str(shop_export), tables.write(tmp_path / "new.csv", rows)]) == 0
    printed = capsys.readouterr().err
    assert "that the model does not read: shelf\n" in printed
    assert "items whose in_stock is neither yes nor no, taken as yes: 1\n" in printed
    assert "1 added, 0 changed, 1 unchanged, 0 delisted" in printed
    assert "the blend compares texts as the export had them" in printed
    available = read_variables(shop_export / "2", ["item_ids", "available"])
    assert not available["available"][available["item_ids"].tolist().index(b"tool-77")]
    assert available["available"].sum() == card["items"]


@pytest.mark.parametrize(
    ("rows", "more", "message"),
    [
        ([{"item_id": "x", "titel": "steel", "tags": "", "price": 1.0}], [], "must have a column 'title'.*'titel'"),
        ([{"title": "steel", "tags": "", "price": 1.0}], [], "must have a column 'item_id'"),
        ([*new_rows(), *new_rows()], [], "an item must occur once in the items; got 'tool-77'"),
        (new_rows(), ["--remove", "tool-1,nobody"], "must be in the artefact; got 'nobody'"),
    ],
)
def test_bad_tables_are_refused_by_name(
    shop_export: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    rows: list[dict[str, Any]],
    more: list[str],
    message: str,
) -> None:
    table = tables.write(tmp_path / "new.csv", rows)
    assert cli.main(["reindex", str(shop_export), table, "--quiet", *more]) == 1
    error = capsys.readouterr().err
    assert error.startswith("tfrec: ") and error.count("\n") == 1
    assert re.search(message, error)
    assert versions(shop_export) == [1]


def test_an_empty_table_and_no_table_are_refused(
    shop_export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty.csv").write_text("item_id,title,tags,price\n")
    assert cli.main(["reindex", str(shop_export), str(tmp_path / "empty.csv"), "--quiet"]) == 1
    assert "the items must have rows" in capsys.readouterr().err
    assert cli.main(["reindex", str(shop_export)]) == 2
    assert "reindex needs ITEMS, --remove or both" in capsys.readouterr().err
