"""Examples per CPU-second of Parquet → training batches with a global shuffle: tfrec against TFRecord parse_example.

An example is a user, the last items before an event and that event. Ours are cut from prepared events by
``ParquetBatches``: row groups in random order, a buffer of them shuffled, batches through ``tf.data``. The peer reads
the same examples, written out in random order (which spares it the shuffle), from TFRecord files by
``batch`` + ``tf.io.parse_example``, its fast form. One process, in turn, an epoch each.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import tensorflow as tf
from common import Cost, Measure, alternate, arguments, cost_of, report

from tfrec.data import groups
from tfrec.data.groups import EventGroups
from tfrec.data.parquet_batches import ParquetBatches

EVENTS_A_USER, LENGTH, BATCH, ITEMS = 20, 10, 4096, 1_000_000
GOAL = 500_000
EXAMPLE = "python benchmarks/batches.py --rounds 3, or in seconds: --events 400000"


def main() -> None:
    parser = arguments(str(__doc__), EXAMPLE, rounds=3)
    parser.add_argument("--events", type=int, default=4_000_000, help="of ours; the peer has a tenth, all as examples")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tfrec-benchmark-") as folder:
        batches = parquet(Path(folder), options.events)
        ours = epochs(lambda epoch: batches.dataset(epoch), batches.steps)
        steps = max(batches.steps // 10, 1)
        pattern = tfrecord(Path(folder), batches, steps)
        own, peer = alternate(ours, epochs(lambda _: parsed(pattern), steps), options.rounds)
    unit, packages = "examples per CPU-second", ["tensorflow", "pyarrow", "numpy"]
    report(
        options.results, "batches", peer.cpu / own.cpu, 1 / own.cpu, 1 / peer.cpu, unit, packages, peer.wall / own.wall
    )
    if 1 / own.cpu < GOAL:
        print(f"batches must be made at {GOAL:,} examples per CPU-second; got {1 / own.cpu:,.0f}")


def parquet(folder: Path, events: int) -> ParquetBatches:
    """Batches of so many random events."""
    random = np.random.default_rng(0)
    user = np.repeat(np.arange(1, events // EVENTS_A_USER + 1, dtype=np.int32), EVENTS_A_USER)
    item = random.integers(1, ITEMS, len(user), dtype=np.int32)
    table = pa.table({"user": user, "item": item, "split": np.zeros(len(user), np.int8)})
    groups.write(folder / "events.parquet", table.schema, table.to_batches(max_chunksize=groups.GROUP))
    found = EventGroups((folder / "events.parquet",))
    return ParquetBatches(found, (0,), LENGTH, BATCH, seed=1, targets="last")


def tfrecord(folder: Path, batches: ParquetBatches, steps: int) -> str:
    """Writes the first batches of an epoch as one record an example."""
    for step, batch in zip(range(steps), batches.arrays(0), strict=False):
        with tf.io.TFRecordWriter(str(folder / f"{step:05d}.tfrecord")) as writer:
            for user, history, target in zip(*(batch[k] for k in ("user", "history", "target")), strict=True):
                columns = {"user": [user], "history": history, "target": target}
                ints = {k: tf.train.Feature(int64_list=tf.train.Int64List(value=v)) for k, v in columns.items()}
                writer.write(tf.train.Example(features=tf.train.Features(feature=ints)).SerializeToString())
    return str(folder / "*.tfrecord")


def parsed(pattern: str) -> tf.data.Dataset:
    shapes = {"user": [], "history": [LENGTH], "target": [1]}
    features = {name: tf.io.FixedLenFeature(shape, tf.int64) for name, shape in shapes.items()}
    records = tf.data.Dataset.list_files(pattern).interleave(tf.data.TFRecordDataset, num_parallel_calls=2)
    parse = lambda rows: tf.io.parse_example(rows, features)  # noqa: E731
    return records.batch(BATCH).map(parse, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def epochs(dataset, steps: int) -> Measure:  # type: ignore[no-untyped-def]
    """Cost of an example in one more epoch at each call."""
    count = iter(range(10**9))

    def measure() -> Cost:
        cost = cost_of(lambda: [None for _ in dataset(next(count))])
        return Cost(cost.cpu / (steps * BATCH), cost.wall / (steps * BATCH))

    return measure


if __name__ == "__main__":
    main()
