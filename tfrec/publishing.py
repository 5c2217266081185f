"""What a run hands over to be published: parts, golden requests, a card, and what they are compared with."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tfrec import __version__, cascade, cascade_serving, rank_serving, serving
from tfrec.artifact import export as artifacts
from tfrec.artifact import gate
from tfrec.artifact.indexed import PROBING
from tfrec.artifact.options import WITH
from tfrec.artifact.ranker import RankerParts
from tfrec.artifact.recommender import Parts
from tfrec.config import Config
from tfrec.errors import ArtifactError
from tfrec.runs import Run
from tfrec.server.servable import Servable

TOLERANCE = 1e-5


class Made(NamedTuple):
    """Parts of an artefact, its golden requests, and the Keras model's own scores for the first of them."""

    parts: Parts | RankerParts
    requests: artifacts.Requests
    expected: Callable[[], np.ndarray]


def card(run: Run) -> dict[str, Any]:
    """What an artefact says about itself."""
    path = run.folder / "metrics.json"
    measured = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return {
        "tfrec": __version__,
        "model": run.config.run.name,
        "settings": run.config.model_dump(mode="json"),
        "data": {name: run.prepared.report[name] for name in ("users", "items", "events", "hashes")},
        "metrics": {name: measured[name] for name in ("valid", "test") if name in measured},
    }


def compare_versions(config: Config, target: Path, about: Mapping[str, Any]) -> gate.Verdict:
    """How the metric of a new card compares with that of the newest published version."""
    newest = artifacts.newest(target)
    before = artifacts.read_card(newest) if newest else None
    return gate.compare_metric(
        before, about["metrics"].get("test", {}), config.train.monitor, config.export.largest_metric_loss
    )


def make(run: Run, about: dict[str, Any], say: Callable[[str], None]) -> Made:
    """What is exported of a run; adds to the card what only the parts know."""
    if run.config.model.kind != "two_tower":
        alone = rank_serving.make_parts(run)
        return Made(alone, rank_serving.golden_requests(run), lambda: rank_serving.reference_scores(run, alone))
    model = run.model()
    parts = serving.make_parts(run, model)
    about["blend_keeps_texts"] = isinstance(parts.blend, serving.ServedBlend) and parts.blend.keeps_texts
    size = sum(array.nbytes for array in parts.stored_history)
    say(f"stored histories: {len(run.prepared.user_ids):,} users, {size / 2**20:.1f} MiB")
    parts, indexes = serving.plan_indexes(run, model, parts)
    for name, plan in indexes.items():
        say(f"index of {name}: " + ", ".join(f"{key} {value}" for key, value in plan.items()))
    about["indexes"] = indexes
    if run.config.cascade.candidates:
        parts = cascade_serving.make_parts(run, parts)
        about["categories"] = cascade.columns_of(run).names
        requests = probing_requests(cascade_serving.golden_requests(run, parts), parts)
        return Made(parts, requests, lambda: cascade_serving.reference_scores(run, serving.GOLDEN_USERS, 10))
    requests = probing_requests(serving.golden_requests(run, parts), parts)
    return Made(parts, requests, lambda: serving.reference_scores(run, model, serving.GOLDEN_USERS, 10))


def probing_requests(requests: artifacts.Requests, parts: Parts) -> artifacts.Requests:
    """The requests, and one of each signature that is told how many buckets to look into: twice as many as planned."""
    first = dict(reversed(list(requests)))
    found = list(requests)
    for plan, names in ((parts.item_plan, ("recommend", "similar")), (parts.text_plan, ("search",))):
        if plan and plan.approximate:
            more = {"nprobe": np.array(2 * plan.nprobe, np.int32)}
            asked = [name for name in first if name.removesuffix(WITH) in names]
            found += [(name + PROBING, {**first[name], **more}) for name in asked]
    return found


def compare_scores(folder: Path, made: Made) -> None:
    """Asks an artefact for what the Keras model has answered.

    Raises:
        ArtifactError: the scores differ by more than TOLERANCE.
    """
    (name, request), expected = made.requests[0], made.expected()
    servable = Servable(folder)
    try:
        if name + PROBING in servable.signatures:
            name, request = name + PROBING, {**request, "nprobe": np.array(np.iinfo(np.int32).max, np.int32)}
        served = servable.run(name, request)["scores"]
    finally:
        servable.close()
    worst = float(np.max(np.abs(served[:, : expected.shape[1]] - expected[:, : served.shape[1]])))
    if not worst <= TOLERANCE:
        raise ArtifactError(f"served scores must equal the Keras model's to {TOLERANCE}", f"a difference of {worst}")
