"""What a training costs, as formulas, beside what it costs on this machine: python tools/cost_model.py [--measure].

The model is a two-tower of ids with a transformer over histories, sampled softmax and rowwise Adagrad.
docs/cost_model.md explains the formulas. ``--network`` counts the bytes of the loopback device, and needs its own:

    unshare -rn sh -c 'ip link set lo up; python tools/cost_model.py --network'
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

WORD = 4  # bytes of a float32 or an int32


class Shape(NamedTuple):
    """Of a training.

    Args:
        items, users: N and U; users 0 = no user ids.
        width: d.
        layers: of the transformer.
        length: L.
        batch: B, histories of a step over all replicas.
        negatives: K.
    """

    items: int
    users: int
    width: int
    layers: int
    length: int
    batch: int
    negatives: int

    @property
    def positions(self) -> int:
        return self.batch * self.length


class Machine(NamedTuple):
    """A cluster.

    Args:
        name: of it.
        replicas: n.
        flops: of a replica at its best, in 1/s.
        share: of these that a step reaches.
        memory: bytes of a replica.
        link: bytes/s that a replica sends.
        dollars: an hour, all replicas.
    """

    name: str
    replicas: int
    flops: float
    share: float
    memory: float
    link: float
    dollars: float


def dense_weights(s: Shape) -> int:
    """Of the transformer: 12 d² + 13 d a layer, L d positions, the last norm."""
    return s.layers * (12 * s.width**2 + 13 * s.width) + s.length * s.width + 2 * s.width


def state_bytes(s: Shape) -> float:
    """Weights, and with rowwise Adagrad one number a row: 4 (d + 1)(N + U + 2) + 8 P."""
    rows = s.items + 1 + (s.users + 1 if s.users else 0)
    return WORD * (s.width + 1) * rows + 2 * WORD * dense_weights(s)


def step_flops(s: Shape) -> float:
    """Forward and twice as much backward: 3 B L (layers (24 d² + 4 L d) + 2 L d + 2 K d)."""
    d = s.width
    layer = 24 * d**2 + 4 * s.length * d
    return 3.0 * s.positions * (s.layers * layer + 2 * s.length * d + 2 * s.negatives * d)


def touched_rows(s: Shape, replicas: int) -> float:
    """Item rows of a replica's part: N (1 − (1 − 1/N)^(B L / n + K)), at most so many, as ids come from a long tail."""
    draws = s.positions / replicas + s.negatives
    return s.items * (1 - (1 - 1 / s.items) ** draws)


def network_bytes(s: Shape, replicas: int) -> float:
    """That a replica sends a step: its rows to all others, and twice its share of the dense gradient in a ring."""
    if replicas == 1:
        return 0.0
    users = s.batch / replicas if s.users else 0
    rows = (replicas - 1) * (touched_rows(s, replicas) + users) * (WORD * s.width + WORD)
    return rows + 2 * (replicas - 1) / replicas * WORD * dense_weights(s)


def predict(s: Shape, m: Machine, events: float) -> dict[str, float]:
    """Of one epoch over events."""
    part = s._replace(batch=s.batch // m.replicas)
    compute = step_flops(part) / (m.flops * m.share)
    network = network_bytes(s, m.replicas) / m.link
    step = max(compute, network)
    hours = events / s.positions * step / 3600
    return {
        "GB a replica": state_bytes(s) / 1e9,
        "fits": float(state_bytes(s) < 0.8 * m.memory),
        "ms compute": 1e3 * compute,
        "ms network": 1e3 * network,
        "M examples/s": s.positions / step / 1e6,
        "hours an epoch": hours,
        "$ / M examples": hours * m.dollars / events * 1e6,
    }


LARGE = Shape(items=10**7, users=10**8, width=64, layers=2, length=50, batch=8192, negatives=8192)
# Peak dense bf16 rates and links of the data sheets; list prices are assumptions, to be replaced by yours.
MACHINES = [
    Machine("8 × A100 80 GB, NVLink", 8, 312e12, 0.10, 80e9, 300e9, 32.0),
    Machine("8 × A100, 8 machines, 100 Gbit/s", 8, 312e12, 0.10, 80e9, 12.5e9, 32.0),
    Machine("TPU v4-64 slice, 32 chips", 32, 275e12, 0.10, 32e9, 100e9, 103.0),
]


def table(rows: list[dict[str, Any]]) -> str:
    """Rows of equal keys in Markdown."""
    head = list(rows[0])
    cells = [[f"{row[k]:.3g}" if isinstance(row[k], float) else str(row[k]) for k in head] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *cells])


def _trainer(s: Shape, strategy: str, folder: str, steps: int) -> Any:
    """The trainer of the settings on random histories, without dropout."""
    import keras
    import numpy as np

    from tfrec.config import validate
    from tfrec.training import retrieval
    from tfrec.training.loop import Trainer
    from tfrec.training.optimizers import make_optimizer
    from tfrec.training.strategies import make_strategy

    config = validate(settings(s, strategy))
    random = np.random.default_rng(0)
    users = s.batch * steps
    count = s.length + 1
    events = {
        "user": np.repeat(np.arange(1, users + 1), count).astype(np.int32),
        "item": random.integers(1, s.items + 1, users * count).astype(np.int32),
        "split": np.zeros(users * count, np.int8),
    }
    data = retrieval.RetrievalData(events, users, s.items, {}, {}, {})
    keras.utils.set_random_seed(1)
    strategy_ = make_strategy(config.train)
    with strategy_.scope():
        model = retrieval.build(config, data)
        model.compile(optimizer=make_optimizer(config.train))
        model.optimizer.build(model.trainable_variables)
    batches = retrieval._batches(config, data, (0,))
    return Trainer(model, retrieval._objective(config, data, model, batches), batches, strategy_, Path(folder))


def settings(s: Shape, strategy: str) -> dict[str, Any]:
    """Of the measured model."""
    train = {"strategy": strategy, "loss": "sampled_softmax", "negatives": s.negatives, "batch": s.batch}
    shape = {"dimension": s.width, "layers": s.layers, "history_length": s.length, "history": ["decay", "transformer"]}
    return {
        "run": {"name": "cost"},
        "data": {"source": "tables", "interactions": "none.csv"},
        "model": shape | {"text": "none", "embedding_dropout": 0.0, "dropout": 0.0},
        "train": train | {"optimizer": "rowwise_adagrad", "windows": 1, "warmup_steps": 0, "peer_seconds": 120},
    }


def measure() -> None:
    """State and time of a step at three sizes; the share of the matrix rate that they reach should be alike."""
    import tensorflow as tf

    rate = _matrix_rate()
    rows = []
    for width, items in ((32, 10_000), (64, 100_000), (128, 1_000_000)):
        s = Shape(items, 0, width, 2, 50, 64, 512)
        with tempfile.TemporaryDirectory() as folder:
            trainer = _trainer(s, "none", folder, steps=8)
            variables = [*trainer.model.trainable_variables, *trainer.model.optimizer.variables]
            state = sum(v.numpy().nbytes for v in variables)
            batches = list(trainer.batches.dataset(0))
            seconds = []
            for i, batch in enumerate(batches):
                start = time.process_time()
                trainer._update(batch, tf.constant([0, i], tf.int64)).numpy()
                seconds.append(time.process_time() - start)
        step = sorted(seconds[2:])[len(seconds[2:]) // 2]
        rows.append(
            {
                "d": s.width,
                "N": s.items,
                "MB, formula": state_bytes(s) / 1e6,
                "MB, measured": state / 1e6,
                "GFLOP, formula": step_flops(s) / 1e9,
                "CPU-s a step": step,
                "GFLOP per CPU-s": step_flops(s) / step / 1e9,
                "share of matrix rate": step_flops(s) / step / rate,
            }
        )
    print(f"matrix rate {rate / 1e9:.1f} GFLOP per CPU-s\n\n{table(rows)}")


def _matrix_rate() -> float:
    import tensorflow as tf

    a = tf.random.normal([1024, 1024])
    tf.matmul(a, a)
    start = time.process_time()
    for _ in range(8):
        tf.matmul(a, a).numpy()
    return 8 * 2 * 1024**3 / (time.process_time() - start)


def network() -> None:
    """Bytes a step over the loopback device, between two workers."""
    from train_cluster import local_configs

    rows = []
    for width, batch in ((32, 32), (64, 64), (128, 64)):
        s = Shape(20_000, 0, width, 1, 20, batch, 256)
        commands = [sys.executable, __file__, "--worker", json.dumps(s)]
        children = [
            subprocess.Popen(commands, env={**os.environ, "TF_CONFIG": config}, stdout=subprocess.PIPE, text=True)
            for config in local_configs({"worker": 2})
        ]
        first, _ = (child.communicate(timeout=600)[0] for child in children)
        sent = float(first.split()[-1]) / 2
        formula = network_bytes(s, 2)
        rows.append({"d": width, "B": batch, "kB sent, formula": formula / 1e3, "kB sent, measured": sent / 1e3})
    print(table(rows))


def worker(s: Shape) -> None:
    """One of the two: prints what the loopback device carried a step."""
    import tensorflow as tf

    from tfrec.config import validate
    from tfrec.training.cluster import joined

    with joined(validate(settings(s, "multi_worker"))) as peers, tempfile.TemporaryDirectory() as folder:
        trainer = _trainer(s, "multi_worker", folder, steps=12)
        dataset = trainer.strategy.experimental_distribute_dataset(trainer.batches.dataset(0))
        for i, batch in enumerate(dataset):
            if i == 2:
                peers.wait()
                before = _loopback()
            trainer._update(batch, tf.constant([0, i], tf.int64)).numpy()
        peers.wait()
        print((_loopback() - before) / (i - 1))


def _loopback() -> int:
    lines = Path("/proc/net/dev").read_text(encoding="utf-8").splitlines()
    return next(int(line.split(":")[1].split()[0]) for line in lines if line.strip().startswith("lo:"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="memory and time here, at three sizes")
    parser.add_argument("--network", action="store_true", help="bytes between two workers, at three sizes")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(Shape(*json.loads(options.worker)))
    elif options.network:
        network()
    elif options.measure:
        measure()
    else:
        events = 1e10
        print(table([{"machines": m.name} | predict(LARGE, m, events) for m in MACHINES]))


if __name__ == "__main__":
    main()
