"""Peak memory of the in-batch softmax at batch 16,384: closed form in blocks against autodiff of the whole matrix.

Each side is a process of its own that reports by how much one value and gradient raise its largest resident size.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable

from common import arguments, cost_of, report

BATCH, WIDTH = 16_384, 32
EXAMPLE = "python benchmarks/train_memory.py"


def main() -> None:
    parser = arguments(str(__doc__), EXAMPLE)
    parser.add_argument("--side", choices=["blocked", "autodiff"], help="be one side of the comparison")
    options = parser.parse_args()
    if options.side:
        print(json.dumps(peak_of(options.side)))
        return
    pairs = [(child("blocked"), child("autodiff")) for _ in range(options.rounds)]
    (own, own_wall), (peer, peer_wall) = (
        (statistics.median(p[side][0] for p in pairs), statistics.median(p[side][1] for p in pairs)) for side in (0, 1)
    )
    report(
        options.results,
        "train_memory",
        own / peer,
        own,
        peer,
        "bytes above start",
        ["tensorflow"],
        own_wall / peer_wall,
    )


def child(side: str) -> tuple[float, float]:
    done = subprocess.run([sys.executable, __file__, "--side", side], check=True, stdout=subprocess.PIPE, text=True)
    size, wall = json.loads(done.stdout)
    return size, wall


def peak_of(side: str) -> tuple[float, float]:
    """Bytes by which a step raises the peak of this process, and its seconds."""
    import tensorflow as tf

    from tfrec.models.blocked_softmax import Softmax

    def autodiff(users: tf.Tensor, items: tf.Tensor) -> tf.Tensor:
        logits = tf.matmul(users, items, transpose_b=True)
        return tf.reduce_sum(tf.nn.sparse_softmax_cross_entropy_with_logits(tf.range(logits.shape[0]), logits))

    def blocked(users: tf.Tensor, items: tf.Tensor) -> tf.Tensor:
        return Softmax(users, items, tf.range(users.shape[0])).weighted_sum(tf.ones(users.shape[0]))

    loss = {"blocked": blocked, "autodiff": autodiff}[side]
    step = tf.function(lambda users, items: gradient(loss, users, items))
    inputs = [tf.random.stateless_normal([BATCH, WIDTH], [seed, 0]) for seed in (1, 2)]
    step(*(x[:64] for x in inputs))  # what TensorFlow sets up once is no part of a step
    before = peak()
    wall = cost_of(lambda: [x.numpy() for x in step(*inputs)]).wall
    return peak() - before, wall


def gradient(loss: Callable, *inputs: object) -> list:
    import tensorflow as tf

    with tf.GradientTape() as tape:
        tape.watch(inputs)
        value = loss(*inputs)
    return [value, *tape.gradient(value, inputs)]


def peak() -> int:
    """Largest resident size of this process so far, in bytes."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else size * 1024


if __name__ == "__main__":
    main()
