"""Trains on one device and on two logical ones, and prints what differs as JSON; its own process, because
logical devices must exist before TensorFlow starts."""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
import world

PLAIN = {"history": ["decay"], "user_id": True, "embedding_dropout": 0.0, "dropout": 0.0}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "sgd softmax": (PLAIN, {"optimizer": "sgd"}),
    "adam softmax clip accumulate": (
        PLAIN,
        {"optimizer": "adam", "learning_rate": 1e-3, "clip_norm": 0.5, "accumulate": 2},
    ),
    "sgd in_batch clip": (PLAIN, {"optimizer": "sgd", "loss": "in_batch", "clip_norm": 0.5}),
    "sparse_adagrad in_batch clip": (
        PLAIN,
        {"optimizer": "sparse_adagrad", "loss": "in_batch", "clip_norm": 0.5},
    ),
    "lazy_adam in_batch": (PLAIN, {"optimizer": "lazy_adam", "learning_rate": 1e-3, "loss": "in_batch"}),
    "sgd sampled accumulate clip": (
        PLAIN,
        {
            "optimizer": "sgd",
            "learning_rate": 0.1,
            "loss": "sampled_softmax",
            "negatives": 12,
            "accumulate": 2,
            "clip_norm": 1.0,
        },
    ),
    "lazy_adam mixed": (
        PLAIN,
        {
            "optimizer": "lazy_adam",
            "learning_rate": 1e-3,
            "loss": "sampled_softmax",
            "negatives": 6,
            "negative_sampling": "mixed",
        },
    ),
    "sparse_adagrad gbce": (PLAIN, {"optimizer": "sparse_adagrad", "loss": "gbce", "negatives": 6}),
    "rowwise softmax accumulate": (PLAIN, {"optimizer": "rowwise_adagrad", "accumulate": 2}),
    "adam in_batch": (PLAIN, {"optimizer": "adam", "learning_rate": 1e-3, "loss": "in_batch"}),
    "adamw transformer": ({**PLAIN, "history": ["transformer"]}, {"optimizer": "adamw", "learning_rate": 1e-3}),
    "float16 clip": (PLAIN, {"optimizer": "sgd", "precision": "mixed_float16", "clip_norm": 0.5}),
}
EVENTS = world.checkerboard(users=18, items=12, blocks=2, seed=0, events=6)  # 5 batches of 4, the last filled up


def train(model: dict[str, Any], settings: dict[str, Any], epochs: int = 4, **how: Any) -> Any:
    config = world.settings(model, **{"batch": 4, **settings})
    folder = how.pop("folder", None) or Path(tempfile.mkdtemp())
    trainer = world.make_trainer(config, world.retrieval_data(config, EVENTS), folder, **how)
    return trainer, trainer.fit(epochs)


class Stop(keras.callbacks.Callback):
    """Breaks off in the middle of the second epoch, after its checkpoint."""

    armed = True

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if self.armed and self.model.optimizer.iterations.numpy() == 9:
            raise KeyboardInterrupt


def resumed(folder: Path) -> float:
    """Broken off and continued with dropout on, against never broken off."""
    model, two = {"history": ["decay"]}, {"strategy": "mirrored", "devices": 2, "checkpoint_steps": 3}
    whole, _ = train(model, two, 2)
    try:
        train(model, two, 2, folder=folder, callbacks=[Stop()])
    except KeyboardInterrupt:
        Stop.armed = False
    continued, _ = train(model, two, 2, folder=folder, callbacks=[Stop()])
    return world.largest_difference(whole.model, continued.model)


def main() -> None:
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", "__array__ implementation doesn't accept a copy keyword", DeprecationWarning)
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    tf.config.experimental.enable_op_determinism()
    report: dict[str, Any] = {}
    for name in sys.argv[1:] or CASES:
        model, settings = CASES[name]
        print(name, file=sys.stderr)
        one, losses = train(model, settings)
        two, their_losses = train(model, {**settings, "strategy": "mirrored", "devices": 2})
        report[name] = {
            "replicas": two.strategy.num_replicas_in_sync,
            "steps": [int(trainer.model.optimizer.iterations.numpy()) for trainer in (one, two)],
            "weights": world.largest_difference(one.model, two.model),
            "losses": max(abs(a["loss"] - b["loss"]) for a, b in zip(losses, their_losses, strict=True)),
            "falls": losses[0]["loss"] - losses[-1]["loss"],
        }
    report["resumed"] = resumed(Path(tempfile.mkdtemp()))
    print(json.dumps(report))


if __name__ == "__main__":
    main()
