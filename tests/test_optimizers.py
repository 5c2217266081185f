from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
import world

from tfrec.training.optimizers import Warmup, inner, make_optimizer


@pytest.mark.parametrize("name", ["adamw", "adam", "adagrad", "sgd"])
def test_the_named_optimizer_with_its_rate(name: str) -> None:
    optimizer = make_optimizer(world.settings(optimizer=name, learning_rate=0.25).train)
    assert type(optimizer).__name__.lower() == name
    assert float(optimizer.learning_rate.numpy()) == 0.25


def test_weight_decay_is_adamw_s_alone() -> None:
    decays = {
        name: make_optimizer(world.settings(optimizer=name, weight_decay=0.3).train).weight_decay
        for name in ("adamw", "adam", "sgd")
    }
    assert decays == {"adamw": 0.3, "adam": None, "sgd": None}


def test_float16_scales_the_loss_and_nothing_else_does() -> None:
    kinds = {p: make_optimizer(world.settings(precision=p).train) for p in ("mixed_float16", "mixed_bfloat16")}
    assert isinstance(kinds["mixed_float16"], keras.optimizers.LossScaleOptimizer)
    assert isinstance(inner(kinds["mixed_float16"]), keras.optimizers.AdamW)
    assert inner(kinds["mixed_bfloat16"]) is kinds["mixed_bfloat16"]


@pytest.mark.parametrize("precision", ["float32", "mixed_float16"])
def test_warm_up_by_hand(precision: str) -> None:
    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile(make_optimizer(world.settings(learning_rate=0.8, precision=precision).train))
    warmup = Warmup(0.8, 4)
    warmup.set_model(model)
    rates = []
    for step in range(6):
        warmup.on_train_batch_begin(step)
        rates.append(float(inner(model.optimizer).learning_rate.numpy()))
        if step == 4:
            model.optimizer.learning_rate = 0.1  # after the warm-up a rate stays as others set it
    np.testing.assert_allclose(rates, [0.2, 0.4, 0.6, 0.8, 0.8, 0.1], rtol=1e-6)


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_learns_in_float32_variables(tmp_path: Path, precision: str) -> None:
    config = world.settings({"embedding_dropout": 0.0, "dropout": 0.0}, precision=precision, learning_rate=0.02)
    data = world.retrieval_data(config, world.checkerboard(16, 12, 2, seed=0))
    trainer = world.make_trainer(config, data, tmp_path)
    assert {w.dtype for w in trainer.model.trainable_weights} == {"float32"}
    assert trainer.model.user_tower.compute_dtype == precision.removeprefix("mixed_")
    history = trainer.fit(8)
    assert history[-1]["loss"] < 0.8 * history[0]["loss"]
    assert isinstance(trainer.model.optimizer, keras.optimizers.LossScaleOptimizer) == (precision == "mixed_float16")
