"""Trains item vectors of a large catalogue for ``ivf_1m.py --vectors``: python train_million.py item_vectors.npy.

Users read items of a few of 10,000 groups, whose shares are 1 / rank, and items that belong to none; the two-tower
model of ``step_scaling.py`` learns ids alone, with sampled negatives. Prints how often an item's nearest neighbour is
of its own group, and by chance.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import tensorflow as tf
from step_scaling import settings

from tfrec.config import validate
from tfrec.training import retrieval
from tfrec.training.loop import Trainer
from tfrec.training.optimizers import make_optimizer

GROUPS, OWN, EVENTS = 10_000, 4, 40  # groups of a user, events of a user
EXAMPLE = "python benchmarks/train_million.py item_vectors.npy --epochs 6"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=f"example: {EXAMPLE}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, help="to write, .npy, float32 [N, 64]")
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--users", type=int, default=200_000)
    parser.add_argument("--epochs", type=int, default=6)
    options = parser.parse_args()
    group = make_groups(options.items)
    vectors = train(make_events(group, options.users), options.items, options.users, options.epochs)
    np.save(options.file, vectors)
    tell(vectors, group)


def make_groups(items: int) -> np.ndarray:
    """The group of each item, int [N]."""
    share = 1 / np.arange(1, GROUPS + 1)
    return np.random.default_rng(0).choice(GROUPS, items, p=share / share.sum())


def make_events(group: np.ndarray, users: int) -> dict[str, np.ndarray]:
    """Each user's events: of a tenth the item is any, of the others one of a few groups."""
    random = np.random.default_rng(1)
    order = np.argsort(group, kind="stable")
    starts = np.searchsorted(group[order], np.arange(GROUPS + 1))
    own = group[random.integers(0, len(group), (users, OWN))]
    chosen = np.take_along_axis(own, random.integers(0, OWN, (users, EVENTS)), axis=1)
    place = starts[chosen] + (random.random(chosen.shape) * (starts[chosen + 1] - starts[chosen])).astype(np.int64)
    item = np.where(random.random(chosen.shape) < 0.1, random.integers(0, len(group), chosen.shape), order[place])
    user = np.repeat(np.arange(1, users + 1, dtype=np.int32), EVENTS)
    return {"user": user, "item": (item + 1).reshape(-1).astype(np.int32), "split": np.zeros(len(user), np.int8)}


def train(events: dict[str, np.ndarray], items: int, users: int, epochs: int) -> np.ndarray:
    """Unit vectors of the items, float32 [N, 64]."""
    config = validate(settings({}))
    data = retrieval.RetrievalData(events, users, items, {}, {}, {})
    model = retrieval.build(config, data)
    model.compile(optimizer=make_optimizer(config.train))
    model.optimizer.build(model.trainable_variables)
    batches = retrieval._batches(config, data, (0,))
    objective = retrieval._objective(config, data, model, batches)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(model, objective, batches, tf.distribute.get_strategy(), Path(folder))
        trainer.fit(epochs)
    blocks = np.array_split(np.arange(1, items + 1, dtype=np.int32), max(items // 100_000, 1))
    return np.concatenate([np.asarray(model.item_vectors(tf.constant(block))) for block in blocks])


def tell(vectors: np.ndarray, group: np.ndarray) -> None:
    """How often the nearest of an item is of its group."""
    some = np.random.default_rng(2).choice(len(vectors), 300, replace=False)
    scores = vectors[some] @ vectors.T
    scores[np.arange(len(some)), some] = -2
    same = np.mean(group[scores.argmax(axis=1)] == group[some])
    chance = np.mean([np.mean(group == group[item]) for item in some[:50]])
    print(f"the nearest item is of the same group: {same:.3f}, by chance {chance:.3f}")


if __name__ == "__main__":
    main()
