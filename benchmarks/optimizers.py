"""Seconds of an optimizer step on an embedding table: by its size, and against Keras' Adam.

The gradient is that of a lookup of 512 distinct random rows, others at each step. ``optimizer_scaling`` divides the
step of LazyAdam at 1,000,000 x 64 by its step at 1,000 x 64, where everything fits into a processor's cache;
``optimizer_vs_keras`` divides the step of ``keras.optimizers.Adam``, which makes the gradient dense and updates every
row, by that of LazyAdam, both at 1,000,000 x 64. Compiled, in one process, in turn.
"""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf
from common import Cost, Measure, alternate, arguments, cost_of, report

from tfrec.training.sparse import LazyAdam

SMALL, LARGE, WIDTH, READ = 1_000, 1_000_000, 64, 512
EXAMPLE = "python benchmarks/optimizers.py --rounds 7"
PACKAGES = ["tensorflow", "keras"]


def main() -> None:
    options = arguments(str(__doc__), EXAMPLE, rounds=7).parse_args()
    small, large = step_cost(LazyAdam, SMALL, steps=200), step_cost(LazyAdam, LARGE, steps=200)
    own, base = alternate(large, small, options.rounds)
    ratio, wall = own.cpu / base.cpu, own.wall / base.wall
    unit = "CPU-seconds a step, at 1M rows and at 1k rows"
    report(options.results, "optimizer_scaling", ratio, own.cpu, base.cpu, unit, PACKAGES, wall)
    own, peer = alternate(large, step_cost(keras.optimizers.Adam, LARGE, steps=2), options.rounds)
    ratio, wall = peer.cpu / own.cpu, peer.wall / own.wall
    report(options.results, "optimizer_vs_keras", ratio, own.cpu, peer.cpu, "CPU-seconds a step", PACKAGES, wall)


def step_cost(make: Callable[..., keras.optimizers.Optimizer], rows: int, steps: int) -> Measure:
    """Measures the mean cost of a step of this optimizer on a table of so many rows."""
    random = np.random.default_rng(0)
    table = keras.Variable(np.zeros((rows, WIDTH), "float32"), name="table")
    optimizer = make(0.01)
    optimizer.build([table])
    values = tf.constant(random.normal(size=(READ, WIDTH)), tf.float32)
    batches = [tf.constant(random.choice(rows, READ, replace=False), tf.int32) for _ in range(steps)]

    @tf.function
    def step(ids: tf.Tensor) -> None:
        optimizer.apply([tf.IndexedSlices(values, ids, tf.constant([rows, WIDTH]))], [table])

    def measure() -> Cost:
        cost = cost_of(lambda: [step(ids) for ids in batches])
        return Cost(cost.cpu / steps, cost.wall / steps)

    return measure


if __name__ == "__main__":
    main()
