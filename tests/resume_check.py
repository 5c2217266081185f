"""A training to be killed: ``train FOLDER STEP`` kills itself at that step (0: never), ``compare FOLDER`` continues
it, trains once more without a break, and prints what differs as JSON. With TF_CONFIG it is one of several workers."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import world

from tfrec.config import Config
from tfrec.errors import RestartError
from tfrec.training import retrieval
from tfrec.training.cluster import joined
from tfrec.training.loop import Trainer
from tfrec.training.optimizers import Warmup

EPOCHS, STEPS = 6, 4


class Kill(keras.callbacks.Callback):
    """SIGKILL after a step, and a line on stdout for those who kill from outside."""

    def __init__(self, step: int):
        super().__init__()
        self._step = str(step)  # a string is no state

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        done = int(self.model.optimizer.iterations.numpy())
        print(done, flush=True)
        if done == int(self._step):
            os.kill(os.getpid(), signal.SIGKILL)


def settings() -> Config:
    sampled = {"loss": "sampled_softmax", "negatives": 5, "negative_sampling": "popularity", "optimizer": "lazy_adam"}
    if "TF_CONFIG" in os.environ:
        sampled |= {"strategy": "multi_worker", "peer_seconds": 60}
    return world.settings({"user_id": True}, batch=4, checkpoint_steps=1, learning_rate=0.02, **sampled)


def make(folder: Path, kill: int) -> Trainer:
    # Negatives are drawn anew at every step: after a restart they must be the same ones.
    config = settings()
    data = world.retrieval_data(config, world.checkerboard(16, 12, 2, seed=1, events=6))
    folder.mkdir(parents=True, exist_ok=True)
    monitor = {"monitor": "val_ndcg@10", "mode": "max"}
    trainer = world.make_trainer(
        config,
        data,
        folder,
        [
            Warmup(0.02, 6),
            keras.callbacks.EarlyStopping(patience=3, restore_best_weights=True, **monitor),
            keras.callbacks.ReduceLROnPlateau(patience=1, factor=0.5, min_delta=0.05, **monitor),
            keras.callbacks.CSVLogger(str(folder / "log.csv")),
            Kill(kill),
        ],
    )
    trainer.validate = retrieval._validation(config, data, trainer.model)
    return trainer


def state(folder: Path) -> tuple[dict[str, np.ndarray], list[dict[str, float]], str]:
    trainer = make(folder, 0)
    history = trainer.fit(EPOCHS)
    numbers = {f"{i} {v.name}": np.asarray(v.numpy()) for i, v in enumerate(trainer._state)}
    return numbers, history, (folder / "log.csv").read_text()


def main() -> None:
    tf.config.experimental.enable_op_determinism()
    command, folder = sys.argv[1], Path(sys.argv[2])
    try:
        with joined(settings()):
            if command == "train":
                make(folder, int(sys.argv[3])).fit(EPOCHS)
            else:
                compare(folder)
    except RestartError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)


def compare(folder: Path) -> None:
    (weights, history, csv), (weights_2, history_2, csv_2) = state(folder), state(folder.with_name("whole"))
    report = {
        "differing": [name for name, value in weights.items() if not np.array_equal(value, weights_2[name])],
        "variables": len(weights),
        "seeds": sum("seed" in name for name in weights),
        "history": history == history_2,
        "csv": csv == csv_2,
        "rates": sorted({row.split(",")[1] for row in csv.splitlines()[1:]}),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
