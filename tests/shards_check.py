"""One of several workers: ``shards_check.py EVENTS`` trains with the others on its own row groups of a Parquet file,
then, as the first, alone on the batches of all of them, and prints what differs as JSON."""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mirrored_check
import numpy as np
import tensorflow as tf
import world

from tfrec.data.groups import EventGroups
from tfrec.data.parquet_batches import ParquetBatches
from tfrec.training.cluster import joined
from tfrec.training.loop import Trainer

HOW = {"optimizer": "sgd", "loss": "in_batch", "clip_norm": 0.5, "batch": 4, "peer_seconds": 60}


class Whole:
    """Global batches, put together from the parts of all workers."""

    def __init__(self, shards: list[ParquetBatches]):
        self.shards, self.steps = shards, shards[0].steps

    def dataset(self, epoch: int, first_step: int = 0) -> tf.data.Dataset:
        def join() -> Iterator[dict[str, np.ndarray]]:
            for parts in zip(*(shard.arrays(epoch, first_step) for shard in self.shards), strict=True):
                yield {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

        spec = {
            name: tf.TensorSpec([4, *one.shape[1:]], one.dtype)
            for name, one in self.shards[0].dataset(0).element_spec.items()
        }
        return tf.data.Dataset.from_generator(join, output_signature=spec)


def trained(strategy: str, events: EventGroups) -> Trainer:
    config = world.settings(mirrored_check.PLAIN, strategy=strategy, **HOW)
    data = world.retrieval_data(config, events.whole(), groups=events)
    trainer = world.make_trainer(config, data, Path(tempfile.mkdtemp()))
    if strategy == "none":
        shards = [dataclasses.replace(trainer.batches, shard=i, shards=2) for i in range(2)]
        trainer.batches = Whole(shards)
    trainer.fit(2)
    return trainer


def main() -> None:
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", "__array__ implementation doesn't accept a copy keyword", DeprecationWarning)
    tf.config.experimental.enable_op_determinism()
    events = EventGroups((Path(sys.argv[1]),))
    with joined(world.settings(strategy="multi_worker", batch=4, peer_seconds=60)) as peers:
        ours = trained("multi_worker", events)
        users = {int(user) for batch in ours.batches.arrays(0) for user in batch["user"]}
        report: dict[str, Any] = {"users": sorted(users), "steps": int(ours.model.optimizer.iterations.numpy())}
        if peers.leads:
            report["weights"] = world.largest_difference(ours.model, trained("none", events).model)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
