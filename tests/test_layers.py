from __future__ import annotations

import keras
import numpy as np
import pytest

from tfrec.models.layers import CausalTransformer, DecayedMean, FeatureSum, mean_over_values
from tfrec.models.towers import ItemTower, UserTower, unit


def decayed_mean_twin(x: np.ndarray, mask: np.ndarray, decay: float) -> np.ndarray:
    out = np.zeros_like(x)
    for b, i in np.ndindex(mask.shape):
        weights = [decay ** (i - j) * mask[b, j] for j in range(i + 1)]
        if sum(weights):
            out[b, i] = sum(w * x[b, j] for j, w in enumerate(weights)) / sum(weights)
    return out


def test_mean_over_values_leaves_out_id_0() -> None:
    rows = np.array([[[2.0, 4.0], [4.0, 8.0], [9.0, 9.0]], [[5.0, 5.0]] * 3], np.float32)
    mean = mean_over_values(rows, np.array([[3, 1, 0], [0, 0, 0]]))
    np.testing.assert_allclose(mean, [[3.0, 6.0], [0.0, 0.0]])


def test_feature_sum_adds_mean_embeddings_and_scaled_numerics() -> None:
    layer = FeatureSum({"color": 3}, ["price", "age"], 2)
    layer.build()
    layer.embeddings["color"].embeddings.assign([[9, 9], [1, 2], [3, 6]])
    layer.projection.kernel.assign([[10, 0], [0, 100]])
    out = layer({"color": np.array([[1, 2], [2, 0]]), "price": np.array([0.5, 0.0]), "age": np.array([0.0, -1.0])})
    np.testing.assert_allclose(out, [[2 + 5, 4], [3, 6 - 100]])


@pytest.mark.parametrize(("decay", "learned"), [(0.5, True), (0.8, False), (1.0, False)])
def test_decayed_mean_equals_its_formula(decay: float, learned: bool) -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(4, 5, 3)).astype(np.float32)
    mask = random.random((4, 5)) < 0.6
    np.testing.assert_allclose(DecayedMean(decay, learned)(x, mask), decayed_mean_twin(x, mask, decay), atol=1e-5)


def test_decayed_mean_by_hand() -> None:
    x = np.array([[[7.0], [1.0], [4.0]]], np.float32)
    out = DecayedMean(0.5)(x, np.array([[False, True, True]]))
    np.testing.assert_allclose(out, [[[0.0], [1.0], [(0.5 * 1 + 4) / 1.5]]], atol=1e-6)


def test_a_decay_that_is_not_learned_has_no_weight() -> None:
    fixed, learned = DecayedMean(0.9, learned=False), DecayedMean(0.9)
    for layer in (fixed, learned):
        layer.build()
    assert (len(fixed.weights), len(learned.trainable_weights)) == (0, 1)


@pytest.mark.parametrize("dropout", [0.0, 0.5])  # Keras attends by another road without dropout
@pytest.mark.parametrize("layers", [1, 2])
def test_transformer_position_reads_nothing_after_it(layers: int, dropout: float) -> None:
    layer = CausalTransformer(layers, heads=2, length=5, dropout=dropout)
    mask = np.array([[False, False, True, True, True]])  # positions 0 and 1 have nothing at all to read
    x = np.random.default_rng(1).normal(size=(1, 5, 4)).astype(np.float32) * mask[..., None]
    before = np.array(layer(x, mask))
    for changed in range(2, 5):
        other = x.copy()
        other[:, changed] += [1.0, -1.0, 0.5, 2.0]  # a constant would vanish in the layer norm
        moved = np.abs(np.array(layer(other, mask)) - before).max(axis=-1)[0]
        assert moved[:changed].max() < 1e-6
        assert moved[changed:].min() > 1e-4


def test_transformer_ignores_padding_and_takes_the_last_positions() -> None:
    layer = CausalTransformer(1, heads=2, length=6, dropout=0.0)
    layer.build((None, 6, 4))
    x = np.random.default_rng(2).normal(size=(2, 6, 4)).astype(np.float32)
    mask = np.array([[False] * 3 + [True] * 3] * 2)
    padded = np.array(layer(x, mask))
    np.testing.assert_allclose(padded[:, 3:], layer(x[:, 3:], mask[:, 3:]), atol=1e-5)


def test_transformer_refuses_a_width_that_heads_do_not_divide() -> None:
    with pytest.raises(ValueError, match="0"):
        CausalTransformer(1, heads=8, length=4).build((None, 4, 4))


def test_unit_has_length_one_and_a_finite_gradient_at_zero() -> None:
    import tensorflow as tf

    x = tf.Variable([[3.0, 4.0], [0.0, 0.0]])
    with tf.GradientTape() as tape:
        y = unit(x)
        loss = tf.reduce_sum(y)
    np.testing.assert_allclose(y, [[0.6, 0.8], [0.0, 0.0]], atol=1e-6)
    assert np.isfinite(tape.gradient(loss, x)).all()


def item_tower(**more: object) -> ItemTower:
    return ItemTower(4, **{"items": 5, "text_width": 0, "vocabularies": {}, "numeric": (), **more})


def user_tower(**more: object) -> UserTower:
    plain = {"history": ("mean",), "length": 3, "layers": 1, "heads": 2, "dropout": 0.0, "embedding_dropout": 0.0}
    return UserTower(4, **{**plain, "users": 3, "vocabularies": {}, "numeric": (), **more})


def test_item_tower_equals_its_formula() -> None:
    tower = item_tower(text_width=2, numeric=("price",))
    tower.build()
    text = np.array([[0.6, 0.8], [1.0, 0.0]], np.float32)
    got = tower({"item": np.array([2, 0]), "text": text, "price": np.array([0.5, -1.0], np.float32)})
    ids = tower.id_embedding.embeddings.numpy()[[2, 0]] * [[1], [0]]
    total = ids + text * 2**0.5 @ tower.text_projection.kernel.numpy()
    total = total + np.array([[0.5], [-1.0]]) @ tower.features.projection.kernel.numpy()
    np.testing.assert_allclose(got, total / np.linalg.norm(total, axis=1, keepdims=True), atol=1e-5)


def test_user_tower_adds_the_id_of_a_known_user_only() -> None:
    tower = user_tower()
    tower.build()
    items = np.array([[[0, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0]]] * 2, np.float32)
    mask = np.array([[False, True, True]] * 2)
    got = np.array(tower(items, mask, {"user": np.array([2, 0])}))
    mean = np.array([1, 1, 0, 0]) / 2 * 4**0.5  # item vectors are scaled by √d
    known = mean + tower.id_embedding.embeddings.numpy()[2]
    np.testing.assert_allclose(got[0, -1], known / np.linalg.norm(known), atol=1e-5)
    np.testing.assert_allclose(got[1, -1], mean / np.linalg.norm(mean), atol=1e-5)


def test_a_user_tower_may_have_no_history() -> None:
    tower = user_tower(history=())
    vectors = tower(np.zeros((2, 3, 4), np.float32), np.zeros((2, 3), bool), {"user": np.array([1, 2])})
    assert [w.path.split("/")[-2] for w in tower.trainable_weights] == ["id"]
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=-1), 1.0, atol=1e-5)


@pytest.mark.parametrize(
    "layer",
    [
        FeatureSum({"color": 3}, ["price"], 2, name="sum"),
        DecayedMean(0.7, learned=False),
        CausalTransformer(2, 2, 5, 0.1),
        item_tower(vocabularies={"color": 3}),
        user_tower(history=("decay", "transformer")),
    ],
)
def test_layers_come_back_from_their_config(layer: keras.layers.Layer) -> None:
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert copy.get_config() == layer.get_config()


@pytest.fixture(scope="module")
def own_model() -> keras.Model:
    """A functional model of a user who takes our layers and nothing else."""
    item = keras.Input((), dtype="int32", name="item")
    price = keras.Input((), name="price")
    history = keras.Input((3, 4), name="history")
    mask = keras.Input((3,), dtype="bool", name="mask")
    user = keras.Input((), dtype="int32", name="user")
    items = item_tower(numeric=("price",), name="items")({"item": item, "price": price})
    users = user_tower(history=("decay", "transformer"), name="users")(history, mask, {"user": user})
    means = DecayedMean(name="means")(history, mask)
    joined = keras.layers.Concatenate()([items, users[:, -1], means[:, -1]])
    score = keras.layers.Dense(1, activation="sigmoid", name="score")(joined)
    model = keras.Model({"item": item, "price": price, "history": history, "mask": mask, "user": user}, score)
    model.compile("adam", "binary_crossentropy")
    return model


def own_rows() -> tuple[dict[str, np.ndarray], np.ndarray]:
    random = np.random.default_rng(0)
    rows = {
        "item": random.integers(1, 6, 64).astype(np.int32),
        "price": random.normal(size=64).astype(np.float32),
        "history": random.normal(size=(64, 3, 4)).astype(np.float32),
        "mask": random.random((64, 3)) < 0.7,
        "user": random.integers(0, 4, 64).astype(np.int32),
    }
    return rows, (rows["item"] % 2).astype(np.float32)


def test_layers_learn_and_save_in_a_functional_model(own_model: keras.Model, tmp_path) -> None:
    rows, liked = own_rows()
    before = {w.path: w.numpy() for w in own_model.trainable_weights}
    losses = own_model.fit(rows, liked, epochs=3, batch_size=16, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    # A key's bias shifts every attention logit of a row alike: softmax does not see it.
    still = [w.path for w in own_model.trainable_weights if np.array_equal(w, before[w.path])]
    assert [path for path in still if not path.endswith("key/bias")] == []
    own_model.save(tmp_path / "own.keras")
    again = keras.saving.load_model(tmp_path / "own.keras")
    np.testing.assert_array_equal(again.predict(rows, verbose=0), own_model.predict(rows, verbose=0))
