from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import world
from tiny_encoder import HIDDEN, tiny_encoder

from tfrec.config import Config
from tfrec.models.text import TextEncoder
from tfrec.models.two_tower import TwoTower
from tfrec.schema import Feature, Schema
from tfrec.training.retrieval import RetrievalData, build

USERS, ITEMS, WORDS = 8, 12, [f"w{i}" for i in range(20)]
EVENTS = world.checkerboard(USERS, ITEMS, blocks=2, seed=0, events=6)
FEATURES = (
    Feature(name="brand", side="item", kind="categorical"),
    Feature(name="tags", side="item", kind="categorical", separator="|", max_values=2),
    Feature(name="price", side="item", kind="numeric"),
    Feature(name="city", side="user", kind="categorical"),
    Feature(name="age", side="user", kind="numeric"),
)


def with_features(config: Config, data: RetrievalData) -> tuple[Config, RetrievalData]:
    random = np.random.default_rng(0)
    sections = config.features.model_copy(update={"columns": FEATURES})
    item = {
        "brand": random.integers(0, 4, (ITEMS + 1, 1)).astype(np.int32),
        "tags": random.integers(0, 5, (ITEMS + 1, 2)).astype(np.int32),
        "price": random.normal(size=ITEMS + 1).astype(np.float32),
    }
    user = {
        "city": random.integers(0, 3, (USERS + 1, 1)).astype(np.int32),
        "age": random.normal(size=USERS + 1).astype(np.float32),
    }
    vocabularies = {"brand": 4, "tags": 5, "city": 3}
    columns = {"item_columns": {**data.item_columns, **item}, "user_columns": user, "vocabularies": vocabularies}
    return config.model_copy(update={"features": sections}), dataclasses.replace(data, **columns)


def text_columns(how: str, folder: Path) -> dict[str, Any]:
    random = np.random.default_rng(1)
    if how == "none":
        return {}
    if how == "frozen":
        vectors = random.normal(size=(ITEMS + 1, HIDDEN)).astype(np.float32)
        return {"item_columns": {"text": vectors / np.linalg.norm(vectors, axis=1, keepdims=True)}}
    tokens = random.integers(5, 25, (ITEMS + 1, 6)).astype(np.int32)
    tokens[:, 4:] = 0
    encoder = TextEncoder.from_preset(tiny_encoder(folder, WORDS), how, dtype="float32")
    return {"item_columns": {"tokens": tokens}, "encoder": encoder}


def make(folder: Path, features: bool, **model: Any) -> tuple[Config, RetrievalData]:
    how = model.get("text", "none")
    config = world.settings(model, batch=4, loss="in_batch" if how in ("lora", "full") else "softmax")
    data = world.retrieval_data(config, EVENTS, **text_columns(how, folder))
    return with_features(config, data) if features else (config, data)


SHIPPED = [
    (True, {"text": "none", "history": ["mean"], "user_id": True}),
    (False, {"text": "none", "history": [], "user_id": True}),
    (False, {"text": "frozen", "history": ["decay"], "item_id": False}),
    (True, {"text": "lora", "history": ["transformer"], "item_id": False}),
    (False, {"text": "full", "history": ["mean", "decay", "transformer"], "user_id": True}),
]


@pytest.mark.filterwarnings("ignore:Even though the `tf.config.experimental_run_functions_eagerly`")
@pytest.mark.parametrize(("features", "model"), SHIPPED)
def test_every_trainable_variable_moves(tmp_path: Path, features: bool, model: dict[str, Any]) -> None:
    config, data = make(tmp_path / "bert", features, **model)
    trainer = world.make_trainer(config, data, tmp_path / "run")
    before = world.weights(trainer.model)
    tf.config.run_functions_eagerly(True)  # a few steps are quicker than a trace
    try:
        trainer.fit(1)
    finally:
        tf.config.run_functions_eagerly(False)
    still = [path for path, value in world.weights(trainer.model).items() if np.array_equal(value, before[path])]
    assert [path for path in still if not path.endswith(world.NO_GRADIENT)] == []
    learns = any("text_encoder" in path or "lora" in path for path in before)
    assert learns == (model["text"] in ("lora", "full"))


@pytest.mark.parametrize(("features", "model"), SHIPPED)
def test_keras_files_give_the_same_vectors(tmp_path: Path, features: bool, model: dict[str, Any]) -> None:
    config, data = make(tmp_path / "bert", features, **model)
    ours = build(config, data)
    history = np.array([[0, 0, 0, 1, 2, 3], [0, 0, 0, 0, 0, 0]], np.int32)
    inputs = {"history": history, "user": np.array([1, 0], np.int32)}
    ours.save(tmp_path / "model.keras")
    copies = [keras.saving.load_model(tmp_path / "model.keras")]
    ours.save_weights(tmp_path / "model.weights.h5")
    copies.append(TwoTower.from_config(ours.get_config()))
    copies[1].build()
    copies[1].load_weights(tmp_path / "model.weights.h5")
    items = np.arange(ITEMS + 1, dtype=np.int32)
    for copy in copies:
        assert copy.get_config() == ours.get_config()
        np.testing.assert_allclose(copy.item_vectors(items), ours.item_vectors(items), atol=1e-6)
        np.testing.assert_allclose(copy(inputs), ours(inputs), atol=1e-6)


@pytest.fixture(scope="module")
def small() -> TwoTower:
    config = world.settings({"user_id": True, "temperature": 5.0})
    keras.utils.set_random_seed(1)
    return build(config, world.retrieval_data(config, EVENTS))


def test_vectors_have_unit_length_and_item_0_is_zero(small: TwoTower) -> None:
    lengths = np.linalg.norm(small.item_vectors(np.arange(ITEMS + 1)), axis=1)
    np.testing.assert_allclose(lengths, [0] + [1] * ITEMS, atol=1e-5)
    vectors = small({"history": np.array([[0, 0, 0, 0, 1, 2]]), "user": np.array([3])})
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=-1), 1, atol=1e-5)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_no_position_sees_the_future(dropout: float) -> None:
    everything = {"history": ["mean", "decay", "transformer"], "user_id": True, "dropout": dropout}
    config = world.settings(everything)
    model = build(config, world.retrieval_data(config, EVENTS))
    one = np.array([[0, 0, 5, 6, 7, 8]], np.int32)
    user = np.array([1], np.int32)
    before = model({"history": one, "user": user}).numpy()
    for place in range(2, 6):
        other = one.copy()
        other[0, place] = 1
        moved = np.abs(model({"history": other, "user": user}).numpy() - before).max(axis=-1)[0]
        assert moved[:place].max() < 1e-6 < 1e-4 < moved[place]


def test_temperature_is_learned_and_bounded(small: TwoTower) -> None:
    assert float(small.temperature) == pytest.approx(5.0)
    start = small.log_temperature.numpy()
    small.log_temperature.assign(50.0)
    assert float(small.temperature) == pytest.approx(100.0)
    small.log_temperature.assign(start)


def test_tables_are_looked_up_and_not_trained(tmp_path: Path) -> None:
    config, data = make(tmp_path, True, user_id=True)
    model = build(config, data)
    rows = model.item_table(np.array([3, 0]))
    for name, column in data.item_columns.items():
        np.testing.assert_array_equal(rows[name], column[[3, 0]])
    assert not any("table" in v.path for v in model.trainable_variables)


def test_a_column_of_another_shape_is_refused(tmp_path: Path) -> None:
    config, data = make(tmp_path, True, user_id=True)
    short = dataclasses.replace(data, item_columns={**data.item_columns, "price": np.zeros(3, np.float32)})
    with pytest.raises(ValueError, match="shape"):
        build(config, short)


def test_a_feature_without_a_vocabulary_is_refused() -> None:
    sizes = {"items": 3, "users": 3, "text_width": 0, "tokens": 0, "vocabularies": {}}
    with pytest.raises(KeyError, match="brand"):
        TwoTower(Schema(features=FEATURES), world.settings().model, sizes)
