from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

sys.path.insert(0, str(Path(__file__).parents[1]))
import world

pytestmark = pytest.mark.skipif(not tf.config.list_physical_devices("GPU"), reason="needs a GPU that TensorFlow sees")


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("loss", ["softmax", "in_batch"])
def test_a_model_learns_on_the_gpu(tmp_path: Path, precision: str, loss: str) -> None:
    config = world.settings(precision=precision, loss=loss, learning_rate=0.02, clip_norm=1.0)
    data = world.retrieval_data(config, world.checkerboard(32, 16, 2, seed=0))
    trainer = world.make_trainer(config, data, tmp_path)
    history = trainer.fit(8)
    assert "GPU" in trainer.model.trainable_variables[0].value.device
    assert history[-1]["loss"] < history[0]["loss"]
    assert all(np.isfinite(value).all() for value in world.weights(trainer.model).values())


def test_every_gpu_takes_part(tmp_path: Path) -> None:
    gpus = len(tf.config.list_logical_devices("GPU"))
    config = world.settings(strategy="mirrored", batch=8 * gpus, learning_rate=0.02)
    data = world.retrieval_data(config, world.checkerboard(32, 16, 2, seed=0))
    trainer = world.make_trainer(config, data, tmp_path)
    assert trainer.strategy.num_replicas_in_sync == gpus
    history = trainer.fit(8)
    assert history[-1]["loss"] < history[0]["loss"]
