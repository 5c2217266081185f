from __future__ import annotations

import keras
import numpy as np
import pytest
import world

from tfrec.config import Config
from tfrec.errors import TrainingError
from tfrec.models.two_tower import TwoTower
from tfrec.schema import Feature
from tfrec.training.retrieval import RetrievalData, build
from tfrec.training.validation import RetrievalScorer
from tfrec.training.warm_start import starter

OLD = {"item": ["a", "b", "c"], "user": ["u", "v"], "brand": ["x", "y"]}
NEW = {"item": ["n", "c", "a", "m", "b"], "user": ["w", "v", "u"], "brand": ["y", "z", "x"]}
BRANDS = {"a": "x", "b": "y", "c": "x", "n": "z", "m": "y"}


def config(**model: object) -> Config:
    made = world.settings({"user_id": True, **model})
    brand = Feature(name="brand", side="item", kind="categorical")
    return made.model_copy(update={"features": made.features.model_copy(update={"columns": (brand,)})})


def make(settings: Config, names: dict[str, list[str]], seed: int, old: TwoTower | None = None) -> TwoTower:
    rows = [0, *(1 + names["brand"].index(BRANDS[item]) for item in names["item"] if BRANDS[item] in names["brand"])]
    keras.utils.set_random_seed(seed)
    data = RetrievalData(
        {},
        len(names["user"]),
        len(names["item"]),
        {},
        {"brand": np.array(rows, np.int32)[:, None]},
        {"brand": 1 + len(names["brand"])},
        start=starter(old, OLD, names) if old else None,
    )
    return build(settings, data)


@pytest.fixture(scope="module")
def models() -> tuple[TwoTower, TwoTower, TwoTower]:
    old = make(config(), OLD, seed=1)
    return old, make(config(), NEW, seed=2), make(config(), NEW, seed=2, old=old)


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("item", "item_tower/id/embeddings"),
        ("user", "user_tower/id/embeddings"),
        ("brand", "item_tower/features/brand_embedding/embeddings"),
    ],
)
def test_known_rows_move_to_their_new_place_and_new_ones_are_fresh(models, kind: str, path: str) -> None:
    old, fresh, warm = (world.weights(model)[f"two_tower/{path}"] for model in models)
    for row, name in enumerate(NEW[kind], start=1):
        expected = old[1 + OLD[kind].index(name)] if name in OLD[kind] else fresh[row]
        np.testing.assert_array_equal(warm[row], expected)


def test_everything_else_is_copied(models) -> None:
    old, _, warm = map(world.weights, models)
    for path, value in old.items():
        if not path.endswith("embeddings"):
            np.testing.assert_array_equal(warm[path], value)


def test_known_users_score_known_items_as_before(models) -> None:
    old, fresh, warm = models
    histories = {"u": ["a", "b"], "v": ["c"]}

    def scores(model: TwoTower, names: dict[str, list[str]]) -> np.ndarray:
        place = {name: row for row, name in enumerate(names["item"], start=1)}
        history = np.array([[0] * (6 - len(h)) + [place[i] for i in h] for h in histories.values()], np.int32)
        user = np.array([1 + names["user"].index(u) for u in histories], np.int32)
        users = model({"history": history, "user": user}).numpy()[:, -1]
        return users @ RetrievalScorer(model).item_vectors()[[place[i] for i in "abc"]].T

    np.testing.assert_allclose(scores(warm, NEW), scores(old, OLD), atol=1e-6)
    assert np.abs(scores(fresh, NEW) - scores(old, OLD)).max() > 0.05


def test_a_part_that_the_earlier_model_lacked_is_fresh(models) -> None:
    wider = config(history=["decay", "transformer"], layers=2)
    fresh, warm = make(wider, NEW, seed=3), make(wider, NEW, seed=3, old=models[0])
    path = "two_tower/user_tower/transformer/block_1/hidden/kernel"
    np.testing.assert_array_equal(world.weights(warm)[path], world.weights(fresh)[path])


@pytest.mark.parametrize("change", [{"dimension": 4}, {"history_length": 9}, {"history": ["transformer"]}])
def test_weights_of_another_shape_are_refused(models, change: dict[str, object]) -> None:
    with pytest.raises(TrainingError, match=r"weights of the same shape; .* was \(.*got \("):
        make(config(**change), NEW, seed=1, old=models[0])
