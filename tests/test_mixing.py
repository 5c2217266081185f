"""Weights of a mixture: a known best one, brute force on a grid, and what is left out."""

from __future__ import annotations

import numpy as np
import pytest

from tfrec.evaluation.ranks import Holdout
from tfrec.training.mixing import POWER, mix

QUERIES, ITEMS = 60, 12


def holdout(targets: list[list[int]], masked: list[list[int]] | None = None) -> Holdout:
    lists = [_ragged(rows) for rows in ([[]] * len(targets), targets, masked or [[]] * len(targets))]
    return Holdout(np.zeros(len(targets), np.int32), *lists)


def _ragged(rows: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    values = np.array([item for row in rows for item in row], np.int32)
    return values, np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)


def objective(weights: list[float], parts: list[np.ndarray], asked: Holdout) -> float:
    """The definition, query by query."""
    total = 0.0
    for query in range(len(asked)):
        logits = sum(weight * part[query].astype(float) for weight, part in zip(weights, parts, strict=True))
        targets = asked.targets[0][asked.targets[1][query] : asked.targets[1][query + 1]]
        masked = set(asked.mask[0][asked.mask[1][query] : asked.mask[1][query + 1]]) - set(targets)
        allowed = [item for item in range(1, ITEMS + 1) if item not in masked]
        chances = np.exp(logits[allowed] - max(logits[allowed]))
        total += sum(chances[allowed.index(t)] for t in targets) ** POWER / chances.sum() ** POWER
    return total / len(asked)


@pytest.fixture(scope="module")
def world() -> tuple[dict[str, np.ndarray], Holdout]:
    random = np.random.default_rng(3)
    good, weak, noise = random.normal(size=(3, QUERIES, ITEMS + 1)).astype(np.float32)
    wanted = good + 0.5 * weak + 0.7 * random.normal(size=good.shape)
    order = np.argsort(-wanted[:, 1:], axis=1) + 1
    targets = [sorted(row[: 1 + query % 3].tolist()) for query, row in enumerate(order)]
    masked = [row[-2:].tolist() + row[:1].tolist() for row in order]  # a target is never masked
    return {"good": good, "weak": weak, "noise": noise}, holdout(targets, masked)


def test_the_value_is_the_definition_and_no_neighbour_is_better(world: tuple[dict[str, np.ndarray], Holdout]) -> None:
    scores, asked = world
    found = mix(scores, asked)
    weights = [found.weights.get(name, 0.0) for name in scores]
    parts = list(scores.values())
    assert found.value == pytest.approx(objective(weights, parts, asked), abs=1e-5)
    for i in range(len(parts)):
        for factor in (0.8, 1.25):
            other = [w * factor if j == i else w for j, w in enumerate(weights)]
            assert objective(other, parts, asked) < found.value + 1e-4


def test_what_tells_weighs_most(world: tuple[dict[str, np.ndarray], Holdout]) -> None:
    weights = mix(*world).weights
    assert weights["good"] > weights["weak"] > weights.get("noise", 0.0)


def test_a_part_that_points_the_wrong_way_is_left_out(world: tuple[dict[str, np.ndarray], Holdout]) -> None:
    scores, asked = world
    found = mix({"good": scores["good"], "against": -scores["good"] - scores["weak"]}, asked)
    assert found.weights.keys() == {"good"}
    assert mix({"against": -scores["good"]}, asked).weights == {}


def test_parts_that_are_equal_or_say_nothing_do_no_harm(world: tuple[dict[str, np.ndarray], Holdout]) -> None:
    scores, asked = world
    twice = mix({"a": scores["good"], "b": scores["good"].copy(), "zero": np.zeros_like(scores["good"])}, asked)
    once = mix({"a": scores["good"]}, asked)
    assert twice.value == pytest.approx(once.value, abs=1e-3)
    assert sum(twice.weights.values()) == pytest.approx(once.weights["a"], rel=0.1)


def test_scores_far_apart_stay_finite() -> None:
    asked = holdout([[1], [2]])
    part = np.array([[0, 1e4, -1e4, 0], [0, 1e4, -1e4, 0]], np.float32)
    found = mix({"wild": part}, asked)
    assert np.isfinite(found.value) and all(np.isfinite(list(found.weights.values())))
