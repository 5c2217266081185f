"""What a step minimises is the plain definition, whatever the shapes, parts, and compiler."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import world
from tiny_encoder import tiny_encoder

from tfrec.errors import TrainingError
from tfrec.models.text import TextEncoder
from tfrec.training import retrieval
from tfrec.training.loop import Trainer

CASES: dict[str, dict[str, Any]] = {
    "softmax": {},
    "in_batch": {"loss": "in_batch"},
    "hard": {"loss": "in_batch", "hard_negatives": 3},
    "uniform": {"loss": "sampled_softmax", "negatives": 5},
    "popularity": {"loss": "sampled_softmax", "negatives": 5, "negative_sampling": "popularity"},
    "mixed": {"loss": "sampled_softmax", "negatives": 5, "negative_sampling": "mixed"},
    "gbce": {"loss": "gbce", "negatives": 5},
}
USERS, ITEMS = 18, 30  # more items than one batch and its negatives hold
# At a low temperature the plain definitions neither overflow nor underflow.
PLAIN = {"history": ["decay"], "embedding_dropout": 0.0, "dropout": 0.0, "temperature": 3.0}
EVENTS = world.checkerboard(USERS, ITEMS, 2, seed=0, events=6)
CLOCK = tf.constant([2, 3], tf.int64)


def make(folder: Path, case: str, model: dict[str, Any] | None = None, **train: Any) -> Trainer:
    config = world.settings({**PLAIN, **(model or {})}, **{"batch": 4, **CASES[case], **train})
    return world.make_trainer(config, world.retrieval_data(config, EVENTS), folder)


def first_batch(trainer: Trainer) -> dict[str, tf.Tensor]:
    return {**next(iter(trainer.batches.dataset(0))), "clock": CLOCK}


def terms(case: str, logits: tf.Tensor, target: int, wanted: list[int], drawn: list[int]) -> tf.Tensor:
    """The loss of one position from its logits [N + 1], as the papers write it."""
    counts = np.bincount(EVENTS["item"][EVENTS["split"] == 0], minlength=ITEMS + 1)
    p = counts / counts.sum()
    if case == "softmax":
        return tf.reduce_logsumexp(logits[1:]) - logits[target]
    if case == "gbce":
        alpha, logits = len(drawn) / (ITEMS - 1), logits - np.log(ITEMS - 1)
        beta = alpha * (0.75 * (1 - 1 / alpha) + 1 / alpha)
        no = [tf.math.log(1 - tf.sigmoid(logits[item])) for item in drawn if item != target]
        return -(beta * tf.math.log(tf.sigmoid(logits[target])) + sum(no)) / (len(drawn) + 1)
    q = {
        "uniform": np.ones(ITEMS + 1) / ITEMS,
        "mixed": (len(wanted) * p + len(drawn) / ITEMS) / (len(wanted) + len(drawn)),
    }.get(case, p)
    candidates = (wanted if case in ("in_batch", "hard", "mixed") else []) + drawn
    corrected = [logits[item] - np.log(q[item]) for item in candidates if item != target]
    if case == "hard":
        corrected = sorted(corrected, key=float)[-3:]
    own = logits[target] - np.log(q[target])
    return tf.reduce_logsumexp(tf.stack([own, *corrected])) - own


def plain(trainer: Trainer, case: str, batch: dict[str, tf.Tensor], drawn: list[int]) -> tuple[tf.Tensor, int]:
    model = trainer.model
    items = model.item_vectors(tf.range(ITEMS + 1))
    logits = model.temperature * tf.einsum("bld,nd->bln", model(batch), items)
    targets = batch["target"].numpy()
    wanted = [int(target) for target in targets.ravel() if target]
    places = np.argwhere(targets)
    return sum(terms(case, logits[b, i], int(targets[b, i]), wanted, drawn) for b, i in places), len(places)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The items that were drawn last."""
    found: list[int] = []
    original = retrieval.Negatives.draw

    def draw(self: Any, clock: tf.Tensor) -> tf.Tensor:
        items = original(self, clock)
        found[:] = items.numpy().tolist()
        return items

    monkeypatch.setattr(retrieval.Negatives, "draw", draw)
    return found


@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
@pytest.mark.parametrize("case", CASES)
def test_value_and_gradient_equal_the_plain_definition(
    tmp_path: Path, case: str, static: bool, drawn: list[int]
) -> None:
    trainer = make(tmp_path, case, jit=static)
    batch = first_batch(trainer)
    values = [v.value for v in trainer.model.trainable_variables]
    with tf.GradientTape(persistent=True) as tape:
        loss, weight = trainer.objective(batch)
        expected, count = plain(trainer, case, batch, drawn)
    assert float(weight) == count > 4
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    for ours, theirs in zip(tape.gradient(loss, values), tape.gradient(expected, values), strict=True):
        wanted = tf.convert_to_tensor(theirs).numpy()
        close = {"rtol": 1e-5, "atol": 1e-5 * max(np.abs(wanted).max(), 1)}
        np.testing.assert_allclose(tf.convert_to_tensor(ours), wanted, **close)


@pytest.mark.parametrize("case", CASES)
def test_every_trainable_variable_moves(tmp_path: Path, case: str) -> None:
    trainer = make(tmp_path, case, {"history": ["decay", "transformer"], "user_id": True}, optimizer="sgd", epochs=1)
    before = world.weights(trainer.model)
    trainer.fit(1)
    after = world.weights(trainer.model)
    still = [path for path in before if np.array_equal(before[path], after[path])]
    assert [path for path in still if not path.endswith(world.NO_GRADIENT)] == []


@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
@pytest.mark.parametrize("case", ["in_batch", "uniform", "popularity", "mixed", "gbce"])
def test_only_rows_of_the_batch_and_its_negatives_are_computed_and_changed(
    tmp_path: Path, case: str, static: bool, drawn: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make(tmp_path, case, jit=static, optimizer="lazy_adam", weight_decay=0.1)
    batch, table = first_batch(trainer), trainer.model.item_tower.id_embedding.embeddings
    batch = {name: column[:2] for name, column in batch.items()}
    computed: list[int] = []
    tower = trainer.model.item_vectors
    monkeypatch.setattr(
        trainer.model, "item_vectors", lambda rows, **how: computed.extend(rows.numpy()) or tower(rows, **how)
    )
    before = table.numpy()
    values = trainer.model.trainable_variables
    with tf.GradientTape() as tape:
        loss, _ = trainer.objective(batch)
    trainer.model.optimizer.apply(tape.gradient(loss, [v.value for v in values]), values)
    touched = {*drawn, *batch["history"].numpy().ravel(), *batch["target"].numpy().ravel()}
    assert len(touched) < ITEMS
    assert set(computed) == touched
    changed = np.flatnonzero((table.numpy() != before).any(axis=1))
    assert set(changed) <= touched
    assert set(drawn) <= set(changed)


@pytest.mark.parametrize("case", ["uniform", "gbce"])
def test_accumulated_parts_are_one_batch(tmp_path: Path, case: str) -> None:
    """Every part draws the negatives of its step."""
    whole, parts = (make(tmp_path / str(n), case, accumulate=n, optimizer="sgd") for n in (1, 2))
    assert whole.fit(2)[-1]["loss"] == pytest.approx(parts.fit(2)[-1]["loss"], rel=1e-5)
    assert world.largest_difference(whole.model, parts.model) < 1e-6


def compiled_difference(folder: Path, case: str, optimizer: str, model: dict[str, Any] | None = None) -> float:
    plain, compiled = (
        make(folder / str(jit), case, {"user_id": True, **(model or {})}, jit=jit, optimizer=optimizer)
        for jit in (False, True)
    )
    assert compiled.fit(1)[0]["loss"] == pytest.approx(plain.fit(1)[0]["loss"], rel=1e-5)
    assert compiled._update.function_spec.jit_compile
    return world.largest_difference(plain.model, compiled.model)


LEARN = ["lora", "full"]
OPTIMIZERS = ["adamw", "adam", "adagrad", "sgd", "sparse_adagrad", "rowwise_adagrad", "lazy_adam"]


# Compiling takes its time: all pairs are slow.
@pytest.mark.parametrize(
    ("case", "optimizer"), [("in_batch", "adam"), ("mixed", "rowwise_adagrad"), ("gbce", "lazy_adam")]
)
def test_the_step_compiles_under_xla_with_equal_weights(tmp_path: Path, case: str, optimizer: str) -> None:
    assert compiled_difference(tmp_path, case, optimizer) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("case", CASES)
def test_every_step_compiles_under_xla_with_equal_weights(tmp_path: Path, case: str, optimizer: str) -> None:
    assert compiled_difference(tmp_path, case, optimizer) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("history", ["mean", "decay", "transformer"])
def test_every_user_tower_compiles_under_xla_with_equal_weights(tmp_path: Path, history: str) -> None:
    assert compiled_difference(tmp_path, "uniform", "sparse_adagrad", {"history": [history]}) < 1e-5


@pytest.mark.parametrize(
    ("text", "case"), [("frozen", "uniform"), *(pytest.param(how, "gbce", marks=pytest.mark.slow) for how in LEARN)]
)
def test_a_transformer_over_texts_compiles_under_xla(tmp_path: Path, text: str, case: str) -> None:
    model = {"history": ["decay", "transformer"], "embedding_dropout": 0.1, "dropout": 0.1, "text": text}
    config = world.settings(model, **{**CASES[case], "jit": True, "optimizer": "lazy_adam", "clip_norm": 1.0})
    trainer = world.make_trainer(config, world.retrieval_data(config, EVENTS, **texts(tmp_path, text)), tmp_path)
    history = trainer.fit(3)
    assert history[-1]["loss"] < history[0]["loss"]


def texts(folder: Path, how: str) -> dict[str, Any]:
    random = np.random.default_rng(0)
    if how == "frozen":
        return {"item_columns": {"text": random.normal(size=(ITEMS + 1, 12)).astype("float32")}}
    tiny_encoder(folder / "encoder", ["red", "shoe"])
    encoder = TextEncoder.from_preset(str(folder / "encoder"), how, 2, precision="float32", dtype="float32")
    return {"item_columns": {"tokens": random.integers(1, 5, (ITEMS + 1, 4)).astype("int32")}, "encoder": encoder}


def test_more_gbce_negatives_than_items_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="1 to 29 negatives from a catalogue of 30; got 30"):
        make(tmp_path, "gbce", negatives=ITEMS).fit(1)
