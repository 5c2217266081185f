"""Examples per CPU-second of training two towers of ids on MovieLens 100K: tfrec against TFRS's fit.

Both learn user id x item id by in-batch softmax at batch 4096, width 32, with Adagrad. Ours is what ``tfrec train``
runs: ``HistoryBatches``, ``next_item_in_batch`` and ``Trainer`` with ``SparseAdagrad``, which also normalises both
vectors, learns a temperature, corrects by log q and removes accidental hits. The peer is the TFRS tutorial's model
and pipeline without metrics: ``shuffle().batch().cache()``, ``tasks.Retrieval``, the sparse Adagrad of tf_keras.
An epoch counts from its first batch to its last weight; checkpoints do not.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from common import Cost, Measure, Worker, alternate, answer, arguments, report

BATCH, WIDTH, RATE = 4096, 32, 0.1
EXAMPLE = "TFREC_DATA=folder python benchmarks/train_two_tower.py"
Events = dict[str, np.ndarray]


def main() -> None:
    parser = arguments(str(__doc__), EXAMPLE)
    parser.add_argument("--side", choices=["ours", "tfrs"], help="be one side of the comparison")
    options = parser.parse_args()
    if options.side:
        answer({"ours": ours, "tfrs": tfrs}[options.side]())
        return
    command = [sys.executable, __file__, "--side"]
    with (
        tempfile.TemporaryDirectory() as folder,
        Worker([*command, "ours"], TMPDIR=folder) as our_side,
        Worker([*command, "tfrs"], TMPDIR=folder, TF_USE_LEGACY_KERAS="1") as peer_side,
    ):
        own, peer = alternate(our_side, peer_side, options.rounds)
    packages = ["tensorflow", "keras", "tensorflow-recommenders", "tf_keras"]
    compare(options.results, "train_two_tower", own, peer, packages)


def compare(results: Path, name: str, own: Cost, peer: Cost, packages: list[str]) -> None:
    """Reports costs per example as examples per CPU-second."""
    unit = "examples per CPU-second"
    report(results, name, peer.cpu / own.cpu, 1 / own.cpu, 1 / peer.cpu, unit, packages, peer.wall / own.wall)


def ours() -> Measure:
    """Measures an epoch of the trainer."""
    import keras
    import tensorflow as tf

    from tfrec.data.batches import HistoryBatches
    from tfrec.training import retrieval
    from tfrec.training.loop import Trainer
    from tfrec.training.objectives import next_item_in_batch
    from tfrec.training.sparse import SparseAdagrad

    events = movielens()
    users, items = int(events["user"].max()), int(events["item"].max())
    model = retrieval.build(settings(), retrieval.RetrievalData(events, users, items, {}, {}, {}))
    model.compile(optimizer=SparseAdagrad(RATE))
    model.optimizer.build(model.trainable_variables)
    counts = np.bincount(events["user"], minlength=users + 1)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    batches = HistoryBatches(events["item"], offsets, 1, BATCH, seed=1, targets="last", first_event=True)
    objective = next_item_in_batch(model, np.bincount(events["item"], minlength=items + 1))
    folder = Path(tempfile.mkdtemp(prefix="tfrec-benchmark-"))
    clock = keras.callbacks.Callback()
    trainer = Trainer(model, objective, batches, tf.distribute.get_strategy(), folder, callbacks=[clock])
    return epochs(clock, lambda total: trainer.fit(total), batches.steps * BATCH)


def tfrs() -> Measure:
    """Measures an epoch of TFRS's fit."""
    import tensorflow as tf
    import tensorflow_recommenders
    import tf_keras

    class TwoTowers(tensorflow_recommenders.Model):
        def __init__(self, users: int, items: int):
            super().__init__()
            self.users, self.items = tf_keras.layers.Embedding(users, WIDTH), tf_keras.layers.Embedding(items, WIDTH)
            self.task = tensorflow_recommenders.tasks.Retrieval()

        def compute_loss(self, inputs: dict[str, Any], training: bool = False) -> Any:
            return self.task(self.users(inputs["user"]), self.items(inputs["item"]), compute_metrics=False)

    events = movielens()
    model = TwoTowers(events["user"].max() + 1, events["item"].max() + 1)
    model.compile(optimizer=tf_keras.optimizers.Adagrad(RATE))
    rows = tf.data.Dataset.from_tensor_slices({"user": events["user"], "item": events["item"]})
    batches = rows.shuffle(100_000).batch(BATCH, drop_remainder=True).cache()
    clock = tf_keras.callbacks.Callback()
    start = iter(range(10**9))
    fit = lambda total: model.fit(batches, epochs=total, initial_epoch=next(start), verbose=0, callbacks=[clock])  # noqa: E731
    return epochs(clock, fit, len(events["user"]) // BATCH * BATCH)


def epochs(clock: Any, fit: Any, examples: int) -> Measure:
    """Cost per example of one more epoch at each call.

    Args:
        clock: a callback of the training.
        fit: trains until this many epochs are done.
        examples: of an epoch.
    """
    marks: list[Cost] = []
    mark = lambda *_: marks.append(cost_of_process())  # noqa: E731
    clock.on_epoch_begin = clock.on_epoch_end = mark

    def measure() -> Cost:
        done = len(marks) // 2
        fit(done + 1)
        begin, end = marks[-2:]
        return Cost((end.cpu - begin.cpu) / examples, (end.wall - begin.wall) / examples)

    return measure


def cost_of_process() -> Cost:
    import time

    return Cost(time.process_time(), time.perf_counter())


def movielens() -> Events:
    """All events of MovieLens 100K, sorted by user and time."""
    from tfrec.data.prepare import prepare

    with tempfile.TemporaryDirectory() as folder:
        return prepare(settings(), Path(folder) / "prepared").events


def settings() -> Any:
    from tfrec.config import validate

    model = {"dimension": WIDTH, "text": "none", "user_id": True, "history": [], "history_length": 1}
    return validate({"run": {"name": "benchmark"}, "data": {"source": "ml-100k"}, "model": model})


if __name__ == "__main__":
    main()
