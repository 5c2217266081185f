"""Vectors of a large catalogue and of its users, trained for ``ivf_1m.py --vectors``, about 4 minutes on two cores.

Users look at items of a few of 10,000 groups, whose shares are 1 / rank, and now and then at any item; the two-tower
model of ``step_scaling.py`` sees ids, and the group as the category that a shop knows of an item. Prints which share of
a user's 100 nearest items is of the user's groups, and which by chance.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from step_scaling import settings

from tfrec.config import validate
from tfrec.models.two_tower import TwoTower
from tfrec.training import retrieval

GROUPS, OWN, EVENTS = 10_000, 4, 40  # groups of a user, events of a user
QUERIES, NEAREST = 2_000, 100
EXAMPLE = "python benchmarks/train_million.py vectors.npz && python benchmarks/ivf_1m.py --vectors vectors.npz"


class World(NamedTuple):
    """A group of each item int [N], groups of each user int [U, 4], and items of each user int [U, 40]."""

    group: np.ndarray
    own: np.ndarray
    seen: np.ndarray


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=f"example: {EXAMPLE}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, help="to write, .npz: items float32 [N, 64], queries float32 [2000, 64]")
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--users", type=int, default=200_000)
    parser.add_argument("--epochs", type=int, default=3)
    options = parser.parse_args()
    world = make_world(options.items, options.users)
    model = train(world, options.epochs)
    items, queries = item_vectors(model, options.items), user_vectors(model, world.seen[:QUERIES])
    np.savez(options.file, items=items, queries=queries)
    tell(items, queries, world)


def make_world(items: int, users: int) -> World:
    """Of a tenth of a user's events the item is any, of the others one of the user's groups."""
    random = np.random.default_rng(0)
    share = 1 / np.arange(1, GROUPS + 1)
    group = random.choice(GROUPS, items, p=share / share.sum())
    order = np.argsort(group, kind="stable")
    starts = np.searchsorted(group[order], np.arange(GROUPS + 1))
    own = group[random.integers(0, items, (users, OWN))]
    chosen = np.take_along_axis(own, random.integers(0, OWN, (users, EVENTS)), axis=1)
    place = starts[chosen] + (random.random(chosen.shape) * (starts[chosen + 1] - starts[chosen])).astype(np.int64)
    seen = np.where(random.random(chosen.shape) < 0.1, random.integers(0, items, chosen.shape), order[place])
    return World(group, own, seen + 1)


def train(world: World, epochs: int) -> TwoTower:
    users, items = len(world.seen), len(world.group)
    category = {"name": "category", "side": "item", "kind": "categorical"}
    config = validate(settings({}) | {"features": {"columns": [category]}})
    columns = {"category": np.append(0, world.group + 1).astype(np.int32)[:, None]}
    user, item = np.repeat(np.arange(1, users + 1, dtype=np.int32), EVENTS), world.seen.reshape(-1).astype(np.int32)
    events = {"user": user, "item": item, "split": np.zeros(len(item), np.int8)}
    data = retrieval.RetrievalData(events, users, items, {}, columns, {"category": GROUPS + 1})
    with tempfile.TemporaryDirectory() as folder:
        return retrieval._train(config, data, (0, 1), epochs, Path(folder), ())[0]


def item_vectors(model: TwoTower, items: int) -> np.ndarray:
    """Unit vectors float32 [N, 64]."""
    blocks = np.array_split(np.arange(1, items + 1, dtype=np.int32), max(items // 100_000, 1))
    return np.concatenate([np.asarray(model.item_vectors(tf.constant(block))) for block in blocks])


def user_vectors(model: TwoTower, seen: np.ndarray) -> np.ndarray:
    """Unit vectors float32 [Q, 64] of what users looked at last."""
    user = np.arange(1, len(seen) + 1, dtype=np.int32)
    history = tf.constant(seen[:, -model.settings.history_length :], tf.int32)
    return np.asarray(model({"history": history, "user": tf.constant(user)}))[:, -1]


def tell(items: np.ndarray, queries: np.ndarray, world: World) -> None:
    """How much of what is near to users is of their groups."""
    some, shares = range(0, len(queries), 10), []
    for user in some:
        near = np.argpartition(-(items @ queries[user]), NEAREST)[:NEAREST]
        shares.append(np.isin(world.group[near], world.own[user]).mean())
    chance = np.mean([np.isin(world.group, world.own[user]).mean() for user in some])
    print(
        f"of a user's {NEAREST} nearest items are of the user's groups: {np.mean(shares):.3f}, by chance {chance:.3f}"
    )


if __name__ == "__main__":
    main()
