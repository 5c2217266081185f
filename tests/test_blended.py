"""A blend that is searched by indexes answers as one of which all scores are computed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from cascade_twin import make_cascade
from conftest import Shop
from parts import ITEM_VECTORS, ITEMS, POPULARITY, USERS, make_parts
from saved_models import strings

from tfrec import cli
from tfrec.artifact import reindex as module
from tfrec.artifact.blended import moments
from tfrec.artifact.buckets import build
from tfrec.artifact.export import export, read_card
from tfrec.artifact.golden import write_golden
from tfrec.artifact.indexed import Plan
from tfrec.artifact.recommender import Parts
from tfrec.artifact.reindex import reindex
from tfrec.artifact.verify import Report
from tfrec.models.blend import COMPONENTS, LINEAR, Blend
from tfrec.models.blend_at import BlendAt
from tfrec.models.ranking.signals import evidence_of
from tfrec.server.servable import Servable

VECTORS = ITEM_VECTORS.astype(np.float32)
BUCKETS = build(VECTORS, np.arange(1, len(ITEMS) + 1, dtype=np.int32), 2)
BOUNDS = {"least_golden_overlap": 0.0, "tf_serving": "2.18"}
WEIGHTS = {"model": 0.4, "neighbours": 0.3, "transitions": 0.2, "text": 0.3, "popularity": 0.1, "frequency": 0.2}


def make_blend(shares_texts: bool) -> Blend:
    """Every part of a blend over the plane's items; its own texts are others than the catalogue's."""
    random = np.random.default_rng(0)
    linear = random.normal(size=(2, len(ITEMS) + 1, len(ITEMS) + 1)).astype(np.float32)
    linear[:, 0] = linear[:, :, 0] = 0
    texts = VECTORS if shares_texts else random.normal(size=(len(ITEMS) + 1, 3)).astype(np.float32)
    blend = Blend(WEIGHTS, dict.fromkeys(COMPONENTS, 0.8), len(ITEMS), len(ITEMS) + 1, texts.shape[1])
    blend.build()
    blend.fill(dict(zip(LINEAR, linear, strict=True)), texts, POPULARITY)
    return blend


def blended_parts(shares_texts: bool, plan: Plan | None, blend: Blend | None = None) -> Parts:
    parts, blend = make_parts(drop_history=False), blend or make_blend(shares_texts)
    return replace(
        parts,
        blend=lambda cosines, history, catalogue: blend(
            cosines, history, tf.convert_to_tensor(catalogue) if shares_texts else None
        ),
        blend_at=BlendAt(blend, None if shares_texts else moments(np.asarray(blend.texts))),
        variables=[*parts.variables, *(variable.value for variable in blend.variables)],
        item_plan=plan,
        text_plan=plan,
    )


@pytest.fixture(scope="module", params=[True, False], ids=["texts of the catalogue", "texts of its own"])
def pairs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[list[Servable]]]:
    """Of each version, one with all scores and one with an index; the second has new items."""
    asked = [("similar", {"item_id": strings(["a"]), "exclude": np.empty((1, 0), object), "k": np.int32(2)})]
    new = {
        "item_id": strings(["f", "g", "c"]),
        "title": strings(["up", "right", "right"]),
        "price": np.array([1, 0.5, -1], np.float32),
    }
    made: list[list[Servable]] = [[], []]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.verify, "verify", lambda path, tf_serving: Report(path, tf_serving, {}, 0, ()))
        for plan in (None, Plan(BUCKETS, 1)):
            folder = tmp_path_factory.mktemp("exports") / "shop"
            parts = blended_parts(request.param, plan)
            made[0].append(Servable(export(parts, folder, {}, lambda path: write_golden(path, asked))))
            made[1].append(Servable(reindex(folder, new, ["d"], BOUNDS)))
    yield made
    for servable in (each for pair in made for each in pair):
        servable.close()


@pytest.mark.parametrize("version", [0, 1])
def test_all_buckets_give_the_blend_of_all_items(pairs: list[list[Servable]], version: int) -> None:
    dense, found = pairs[version]
    users = [*USERS, "?", "?", "?"]
    histories = [[""] * 4, ["a", "b", "a", ""], [""] * 4, ["", "f", "e", "c"], [""] * 4, ["d", "ü", "g", "g"]]
    inputs = {"user_id": strings(users), "history": strings(histories), "exclude": strings([["b"]]), "k": np.int32(12)}
    wanted = dense.run("recommend", inputs)
    got = found.run("recommend", {**inputs, "nprobe": np.int32(99)})
    np.testing.assert_allclose(got["scores"], wanted["scores"], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(got["item_ids"], wanted["item_ids"])
    asked = {**inputs, "item_ids": strings([["a", "ü", "f", "d", "nope"]] * len(users))}
    del asked["exclude"], asked["k"]
    scores = [servable.run("rank", asked)["scores"] for servable in (dense, found)]
    np.testing.assert_allclose(*scores, rtol=1e-4, atol=1e-5)


def test_what_any_part_brings_forward_is_found_with_one_bucket(pairs: list[list[Servable]]) -> None:
    """Neighbours and popular items are candidates whatever bucket they lie in."""
    dense, found = pairs[0]
    inputs = {"history": strings([["a", "b"]]), "k": np.int32(4)}
    answers = [servable.run("recommend", inputs)["item_ids"] for servable in (dense, found)]
    np.testing.assert_array_equal(*answers)


def test_a_cascade_reads_of_an_index_what_it_reads_of_all_scores(tmp_path: Path) -> None:
    blend, answers = make_blend(True), []
    stages = make_cascade().cascade
    assert stages is not None

    def tasks(user: Any, seen: Any, items: Any, own: Mapping[str, tf.Tensor], columns: Any) -> dict[str, tf.Tensor]:
        return {"like": tf.add_n([(i + 1.0) * own[name] for i, name in enumerate(sorted(own))])}

    stages = replace(
        stages,
        weights={"like": 1.0, "retrieval": 0.5},
        evidence=lambda cosines, history, texts: evidence_of(blend, cosines, history, tf.convert_to_tensor(texts)),
        scores=tasks,
    )
    for name, plan in (("dense", None), ("ivf", Plan(BUCKETS, len(BUCKETS.items)))):
        parts = replace(blended_parts(True, plan, blend), cascade=stages)
        servable = Servable(export(parts, tmp_path / name, {}, lambda path: None))
        inputs = {"user_id": strings(["?"] * 3), "history": strings([["a", "b"], ["", "e"], ["", ""]])}
        plain = servable.run("recommend", {**inputs, "k": np.int32(4)})
        cheap = {**inputs, "k": np.int32(4), "max_price": np.float32(3)}
        answers.append((plain, servable.run("recommend_with", cheap)))
        servable.close()
    for dense, found in zip(*answers, strict=True):
        np.testing.assert_array_equal(found["item_ids"], dense["item_ids"])
        np.testing.assert_allclose(found["like"], dense["like"], rtol=1e-4, atol=1e-5)


def test_a_trained_shop_is_exported_with_an_index(shop: Shop, tmp_path: Path, capsys: Any) -> None:
    """The export itself holds the scores of all buckets to the Keras model's, and verifies in clean processes."""
    assert shop.code == 0, shop.err
    settings = ["export.index=ivf", "export.recall=0.9", f"export.folder={tmp_path}", "export.index_storage=bfloat16"]
    assert cli.main(["export", shop.config, *settings]) == 0
    printed = capsys.readouterr()
    path = Path(printed.out.strip().splitlines()[-1])
    about = read_card(path)["indexes"]
    assert {about[name]["kind"] for name in ("items", "texts")} == {"ivf"}
    assert about["items"]["recall@100"] >= 0.9 and about["items"]["nprobe"] >= 1
    assert "index of items: kind ivf" in printed.err
    servable = Servable(path)
    try:
        assert "nprobe" in servable.signatures["search"].inputs
    finally:
        servable.close()
