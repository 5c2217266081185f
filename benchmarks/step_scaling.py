"""Seconds of a training step at 1,000,000 items over those at 10,000, with sampled negatives.

The step is what ``tfrec train`` runs: histories of 20 items summed up with decay, 512 drawn negatives, LazyAdam on the
tables of ids, width 64, batches of 128. Users and events are the same in number; only the catalogue grows. Each side
is a process of its own; the batches come from memory and count, checkpoints and the look for infinities do not.
``--table`` measures the same with ids in other tables.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from common import Cost, Measure, Worker, alternate, answer, arguments, report

SMALL, LARGE, USERS, EVENTS = 10_000, 1_000_000, 10_000, 22
EXAMPLE = "python benchmarks/step_scaling.py --rounds 5"
GOAL = 1.3
TABLES: dict[str, dict[str, object]] = {
    "full": {},
    "hashed": {"kind": "hashed", "rows": 5_000},
    "compositional": {"kind": "compositional", "rows": 5_000},
}


def main() -> None:
    parser = arguments(str(__doc__), EXAMPLE)
    parser.add_argument("--items", type=int, help="be one side of the comparison")
    parser.add_argument("--table", choices=TABLES, default="full")
    options = parser.parse_args()
    if options.items:
        answer(steps(options.items, options.table))
        return
    command = [sys.executable, __file__, "--table", options.table, "--items"]
    with (
        tempfile.TemporaryDirectory() as folder,
        Worker([*command, str(LARGE)], TMPDIR=folder) as large,
        Worker([*command, str(SMALL)], TMPDIR=folder) as small,
    ):
        own, base = alternate(large, small, options.rounds)
    ratio, name = own.cpu / base.cpu, "step_scaling" + ("" if options.table == "full" else f"_{options.table}")
    unit = f"CPU-seconds a step, at {LARGE:,} and at {SMALL:,} items"
    report(options.results, name, ratio, own.cpu, base.cpu, unit, ["tensorflow", "keras"], own.wall / base.wall)
    if ratio > GOAL:
        print(f"a step must not depend on the catalogue: at most {GOAL}; got {ratio:.3g}", file=sys.stderr)


def steps(items: int, table: str) -> Measure:
    """Measures the steps of one more epoch at each call."""
    import tensorflow as tf

    from tfrec.config import validate
    from tfrec.training import retrieval
    from tfrec.training.loop import Trainer
    from tfrec.training.optimizers import make_optimizer

    config = validate(settings(TABLES[table]))
    random = np.random.default_rng(0)
    events = {
        "user": np.repeat(np.arange(1, USERS + 1, dtype=np.int32), EVENTS),
        "item": random.integers(1, items + 1, USERS * EVENTS, dtype=np.int32),
        "split": np.zeros(USERS * EVENTS, np.int8),
    }
    data = retrieval.RetrievalData(events, USERS, items, {}, {}, {})
    model = retrieval.build(config, data)
    model.compile(optimizer=make_optimizer(config.train))
    model.optimizer.build(model.trainable_variables)
    batches = retrieval._batches(config, data, (0,))
    objective = retrieval._objective(config, data, model, batches)
    trainer = Trainer(model, objective, batches, tf.distribute.get_strategy(), Path(tempfile.mkdtemp()))
    return clocked(trainer, batches.steps)


def clocked(trainer: Any, count: int) -> Measure:
    """From the beginning of an epoch's first step to the end of its last."""
    import keras
    from train_two_tower import cost_of_process

    marks: list[Cost] = []
    clock = keras.callbacks.Callback()
    clock.on_train_batch_begin = lambda step, logs=None: None if step else marks.append(cost_of_process())
    clock.on_train_batch_end = lambda step, logs=None: marks.append(cost_of_process()) if step == count - 1 else None
    trainer.callbacks = [clock]
    epochs = iter(range(1, 10**9))

    def measure() -> Cost:
        trainer.fit(next(epochs))
        begin, end = marks[-2:]
        return Cost((end.cpu - begin.cpu) / count, (end.wall - begin.wall) / count)

    return measure


def settings(table: dict[str, object]) -> dict[str, Any]:
    model = {"dimension": 64, "text": "none", "history": ["decay"], "history_length": 20, "item_table": table}
    train = {"loss": "sampled_softmax", "negatives": 512, "optimizer": "lazy_adam", "batch": 128, "windows": 1}
    return {"run": {"name": "benchmark"}, "data": {"source": "ml-100k"}, "model": model, "train": train}


if __name__ == "__main__":
    main()
