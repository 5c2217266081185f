"""Tables with fewer rows than ids: their formulas, their gradients, and towers that learn, save and load with them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import world
from hypothesis import given, settings
from hypothesis import strategies as st

from tfrec.config import validate
from tfrec.errors import ConfigError
from tfrec.id_table import IdTable
from tfrec.models.id_tables import CompositionalEmbedding, FrequentEmbedding, HashedEmbedding, id_embedding
from tfrec.training import retrieval

PRIME = 2**31 - 1
KINDS: list[dict[str, Any]] = [
    {"kind": "hashed", "rows": 5, "hashes": 2},
    {"kind": "compositional", "rows": 4},
    {"min_count": 3},
]


def built(layer: Any) -> Any:
    layer.build()
    return layer


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 50), st.integers(1, 4), st.lists(st.integers(0, 2**31 - 2), min_size=1, max_size=5))
def test_hashed_is_the_sum_of_the_rows_that_python_picks(rows: int, hashes: int, ids: list[int]) -> None:
    layer = built(HashedEmbedding(rows, hashes, 3, 1.0))
    table = layer.shared.embeddings.numpy()
    pairs = list(zip(layer._factor.tolist(), layer._shift.tolist(), strict=True))
    expected = [sum(table[(a * i + b) % PRIME % rows] for a, b in pairs) for i in ids]
    np.testing.assert_allclose(layer(np.array(ids, np.int32)), expected, rtol=1e-5, atol=1e-6)


def test_two_hashes_tell_apart_what_one_confuses() -> None:
    ids = np.arange(1, 2_001)
    one, two = (built(HashedEmbedding(500, hashes, 4, 1.0))(ids).numpy().round(5) for hashes in (1, 2))
    shared_by_one, shared_by_two = (2_000 - len(np.unique(vectors, axis=0)) for vectors in (one, two))
    assert shared_by_one > 1_400
    assert shared_by_two < 40


def test_hashes_spread_ids_evenly() -> None:
    layer = built(HashedEmbedding(64, 1, 1, 1.0))
    layer.shared.embeddings.assign(np.arange(64.0)[:, None])
    counts = Counter(layer(np.arange(64_000)).numpy()[:, 0].tolist())
    assert len(counts) == 64
    assert max(counts.values()) < 1.5 * min(counts.values())


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 200), st.integers(1, 40))
def test_compositional_is_the_product_of_quotient_and_remainder(ids: int, rows: int) -> None:
    layer = built(CompositionalEmbedding(ids, rows, 2, 0.3))
    quotient, remainder = layer.quotient.embeddings.numpy(), layer.remainder.embeddings.numpy()
    assert len(quotient) == -(-(ids + 1) // rows)
    wanted = np.arange(ids + 1)
    np.testing.assert_allclose(layer(wanted), quotient[wanted // rows] * remainder[wanted % rows], rtol=1e-6)
    assert len(np.unique(layer(wanted).numpy(), axis=0)) == ids + 1


def test_rare_ids_share_a_row() -> None:
    layer = built(FrequentEmbedding(5, 2, 1, 1.0))
    layer.fill(np.array([False, True, False, False, True, False]))
    layer.frequent.embeddings.assign([[10.0], [11.0], [12.0]])
    assert layer(np.arange(6)).numpy()[:, 0].tolist() == [10, 11, 10, 10, 12, 10]


@pytest.mark.parametrize("kind", ["full", "frequent", "hashed", "compositional"])
def test_vectors_start_with_one_spread_and_learn_by_rows(kind: str) -> None:
    keras.utils.set_random_seed(1)
    # Few rows of quotients would leave the spread to few draws.
    table = {"kind": kind, "rows": 50 if kind == "compositional" else 800, "hashes": 3}
    layer = built(id_embedding(2_000, 8, table, keras.initializers.RandomNormal(stddev=0.3), 0.3))
    if kind == "frequent":
        layer.fill(np.arange(2_001) > 1_200)
    assert 0.25 < np.std(layer(np.arange(1_201, 2_001))) < 0.35
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(tf.constant([1_500, 1_501])))
    gradients = tape.gradient(loss, [v.value for v in layer.trainable_variables])
    assert gradients
    assert all(isinstance(gradient, tf.IndexedSlices) for gradient in gradients)
    again = type(layer).from_config(layer.get_config())
    assert [v.shape for v in built(again).variables] == [v.shape for v in layer.variables]


@pytest.mark.parametrize("table", KINDS, ids=["hashed", "compositional", "frequent"])
@pytest.mark.parametrize("jit", [False, True])
def test_towers_learn_save_and_load_with_it(tmp_path: Path, table: dict[str, Any], jit: bool) -> None:
    events = world.checkerboard(12, 10, blocks=2, seed=0, events=5)
    config = world.settings(
        {"item_table": table, "user_table": table, "user_id": True, "history": ["decay"]},
        loss="sampled_softmax", negatives=4, optimizer="lazy_adam", jit=jit, epochs=2,
    )  # fmt: skip
    counts = {"item": np.bincount(events["item"], minlength=11), "user": np.r_[0, [5] * 6, [2] * 6]}
    data = world.retrieval_data(config, events, counts=counts)
    trainer = world.make_trainer(config, data, tmp_path / "checkpoints")
    before = world.weights(trainer.model)
    history = trainer.fit(2)
    changed = {path for path, value in world.weights(trainer.model).items() if not np.array_equal(value, before[path])}
    assert {path for path in before if "/id/" in path} <= changed
    assert history[1]["loss"] < history[0]["loss"]
    trainer.model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    inputs = {"history": np.array([[0, 1, 2, 3, 4, 5]], np.int32), "user": np.array([8], np.int32)}
    np.testing.assert_array_equal(again(inputs), trainer.model(inputs))


def test_frequent_ids_are_those_with_enough_train_events() -> None:
    config = world.settings({"item_table": {"min_count": 2}})
    counts = {"item": np.array([9, 1, 2, 3]), "user": np.array([0, 1])}
    assert {k: v.tolist() for k, v in retrieval.frequent_ids(config.model, counts).items()} == {
        "item": [False, False, True, True]
    }


def test_tables_that_contradict_themselves_are_refused() -> None:
    for table, message in [
        ({"kind": "hashed"}, "rows goes with kind"),
        ({"rows": 5}, "rows goes with kind"),
        ({"kind": "compositional", "rows": 5, "min_count": 2}, 'min_count goes with kind = "full"'),
    ]:
        tree = {"run": {"name": "x"}, "data": {"source": "ml-100k"}, "model": {"text": "none", "item_table": table}}
        with pytest.raises(ConfigError, match=message):
            validate(tree)
    assert IdTable(kind="hashed", rows=3).hashes == 2
