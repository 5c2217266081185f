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
from copied import copied
from parts import ITEM_VECTORS, ITEMS, POPULARITY, USERS, make_parts
from saved_models import strings

from tfrec import cli
from tfrec.artifact import reindex as module
from tfrec.artifact.buckets import build
from tfrec.artifact.export import export, read_card
from tfrec.artifact.golden import write_golden
from tfrec.artifact.indexed import Plan
from tfrec.artifact.recommender import Parts
from tfrec.artifact.reindex import reindex
from tfrec.artifact.verify import Report
from tfrec.evaluation.whitening import whiten
from tfrec.models.blend import COMPONENTS, LINEAR, Blend
from tfrec.models.ranking.signals import evidence_of
from tfrec.server.servable import Servable
from tfrec.serving import ServedBlend

VECTORS = ITEM_VECTORS.astype(np.float32)
BUCKETS = build(VECTORS, np.arange(1, len(ITEMS) + 1, dtype=np.int32), 2)
BOUNDS = {"least_golden_overlap": 0.0, "tf_serving": "2.18"}
WEIGHTS = {"model": 0.4, "neighbours": 0.3, "transitions": 0.2, "text": 0.3, "popularity": 0.1, "frequency": 0.2}


TEXTS = {
    "texts of the catalogue": VECTORS,
    "whitened texts": whiten(VECTORS),
    "texts of its own": np.random.default_rng(1).normal(size=(len(ITEMS) + 1, 3)).astype(np.float32),
}
QUICK = "whitened texts"


def make_blend(texts: np.ndarray, new: int = 0) -> Blend:
    """Every part of a blend over the plane's items, with further ones that have no neighbours and no events."""
    random, more = np.random.default_rng(0), (0, new)
    linear = random.normal(size=(2, len(ITEMS) + 1, len(ITEMS) + 1)).astype(np.float32)
    linear[:, 0] = linear[:, :, 0] = 0
    linear = np.pad(linear, [(0, 0), more, more])
    blend = Blend(WEIGHTS, dict.fromkeys(COMPONENTS, 0.8), len(ITEMS) + new, len(ITEMS) + 1 + new, texts.shape[1])
    blend.build()
    blend.fill(dict(zip(LINEAR, linear, strict=True)), texts, np.pad(POPULARITY, more))
    return blend


def blended_parts(blend: Blend, plan: Plan | None) -> Parts:
    parts = make_parts(drop_history=False)
    served = ServedBlend(blend, parts.text_vectors)
    return replace(
        parts,
        blend=served,
        blend_at=served.at_items(),
        blend_texts=served.texts,
        whitening=served.whitening,
        variables=[*parts.variables, *served.variables()],
        item_plan=plan,
        text_plan=plan,
    )


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=() if name == QUICK else pytest.mark.slow) for name in TEXTS]
)
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
            parts = blended_parts(make_blend(TEXTS[request.param]), plan)
            made[0].append(Servable(export(parts, folder, {}, lambda path: write_golden(path, asked))))
            made[1].append(Servable(reindex(folder, new, ["d"], BOUNDS)))
    yield made
    for servable in (each for pair in made for each in pair):
        servable.close()


def test_no_table_is_copied_with_each_request(pairs: list[list[Servable]]) -> None:
    assert [copied(servable.path) for servable in pairs[0]] == [[], []]


@pytest.mark.parametrize("version", [0, 1])
def test_all_buckets_give_the_blend_of_all_items(pairs: list[list[Servable]], version: int) -> None:
    dense, found = pairs[version]
    users = [*USERS, "?", "?", "?"]
    histories = [[""] * 4, ["a", "b", "a", ""], [""] * 4, ["", "f", "e", "c"], [""] * 4, ["d", "ü", "g", "g"]]
    inputs = {"user_id": strings(users), "history": strings(histories), "exclude": strings([["b"]]), "k": np.int32(12)}
    wanted = dense.run("recommend", inputs)
    got = found.run("recommend_nprobe", {**inputs, "nprobe": np.int32(99)})
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


def test_a_reindexed_version_equals_an_export_of_all_items(tmp_path: Path) -> None:
    """Of a blend of whitened texts, by the whitening that the first export learnt."""
    asked = [("similar", {"item_id": strings(["a"]), "exclude": np.empty((1, 0), object), "k": np.int32(2)})]
    new = {
        "item_id": strings(["f", "g", "c"]),
        "title": strings(["up", "right", "none"]),
        "price": np.ones(3, np.float32),
    }
    first = blended_parts(make_blend(TEXTS["whitened texts"]), None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.verify, "verify", lambda path, tf_serving: Report(path, tf_serving, {}, 0, ()))
        export(first, tmp_path / "shop", {}, lambda path: write_golden(path, asked))
        grown = Servable(reindex(tmp_path / "shop", new, [], BOUNDS))
    vectors = np.concatenate([VECTORS, [[0, 1], [1, 0]]]).astype(np.float32)
    vectors[1 + ITEMS.index("c")] = 0
    assert first.whitening is not None
    texts = first.whitening(vectors)
    assert not texts[1 + ITEMS.index("c")].any()
    parts = replace(
        blended_parts(make_blend(texts, 2), None),
        item_ids=[*ITEMS, "f", "g"],
        item_vectors=vectors,
        text_vectors=vectors,
        blend_texts=texts,
        popularity=np.pad(POPULARITY, (0, 2)),
    )
    whole = Servable(export(parts, tmp_path / "whole", {}, lambda path: None))
    history = strings([["a", "b", "a", ""], ["", "f", "e", "c"], ["d", "ü", "g", "g"]])
    asked_of = {"user_id": strings(["?"] * 3), "history": history, "k": np.int32(12)}
    wanted, got = (servable.run("recommend", asked_of) for servable in (whole, grown))
    np.testing.assert_array_equal(got["item_ids"], wanted["item_ids"])
    np.testing.assert_allclose(got["scores"], wanted["scores"], rtol=1e-5, atol=1e-5)
    for servable in (whole, grown):
        servable.close()


@pytest.mark.slow
def test_a_cascade_reads_of_an_index_what_it_reads_of_all_scores(tmp_path: Path) -> None:
    blend, answers = make_blend(VECTORS), []
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
    many = {"nprobe": np.array(len(BUCKETS.items), np.int32)}
    for name, plan, told, more in (("dense", None, "", {}), ("ivf", Plan(BUCKETS, 1), "_nprobe", many)):
        parts = replace(blended_parts(blend, plan), cascade=stages)
        servable = Servable(export(parts, tmp_path / name, {}, lambda path: None))
        inputs = {"user_id": strings(["?"] * 3), "history": strings([["a", "b"], ["", "e"], ["", ""]])}
        plain = servable.run("recommend" + told, {**inputs, **more, "k": np.int32(4)})
        cheap = {**inputs, **more, "k": np.int32(4), "max_price": np.float32(3)}
        answers.append((plain, servable.run("recommend_with" + told, cheap)))
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
        assert "nprobe" in servable.signatures["search_nprobe"].inputs
    finally:
        servable.close()
