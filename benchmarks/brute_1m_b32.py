"""CPU-seconds of the exact best 100 of a million vectors of width 64 for 32 queries: tfrec against TFRS's BruteForce.

Ours is the scan of an exported SavedModel in a v1 session with TensorFlow's default options. The peer is
``tfrs.layers.factorized_top_k.BruteForce`` in a ``tf.function``, in a process of its own, as it needs Keras 2.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import tensorflow as tf
from catalogue import NEAREST, clustered, mean_cost, save, session
from common import Measure, Worker, alternate, answer, arguments, report

ITEMS, BATCH, TIMES = 1_000_000, 32, 5
EXAMPLE = "python benchmarks/brute_1m_b32.py --rounds 5"


def main() -> None:
    parser = arguments(str(__doc__), EXAMPLE)
    parser.add_argument("--side", choices=["tfrs"], help="be the peer's side")
    options = parser.parse_args()
    if options.side:
        answer(tfrs())
        return
    with Worker([sys.executable, __file__, "--side", "tfrs"], TF_USE_LEGACY_KERAS="1") as peer_side:
        own, peer = alternate(ours(), peer_side, options.rounds)
    packages = ["tensorflow", "tensorflow-recommenders"]
    wall = peer.wall / own.wall
    report(options.results, "brute_1m_b32", peer.cpu / own.cpu, own.cpu, peer.cpu, "CPU-seconds", packages, wall)


def ours() -> Measure:
    """Measures a batch of our scan, whose answers are those of a matrix product."""
    from tfrec.artifact.scan import Scan

    vectors, queries = clustered(ITEMS, BATCH)
    scan = Scan(tf.Variable(vectors, trainable=False), tf.Variable(np.arange(ITEMS + 1) > 0, trainable=False))
    nothing = lambda query: tf.zeros([tf.shape(query)[0], 0], tf.int32)  # noqa: E731
    with tempfile.TemporaryDirectory() as folder:
        path = save(scan, lambda query: scan.search(query, nothing(query), tf.constant(NEAREST)), Path(folder) / "scan")
        search = session(path)
    found = np.asarray(search(queries)).reshape(BATCH, NEAREST)
    for query, items in zip(queries, found, strict=True):
        scores = vectors[1:] @ query
        np.testing.assert_allclose(np.sort(scores[items - 1]), np.sort(scores)[-NEAREST:], rtol=1e-5)
    return lambda: mean_cost(search, [queries] * TIMES)


def tfrs() -> Measure:
    """Measures a batch of TFRS's layer."""
    import tensorflow_recommenders as tfrs

    vectors, queries = clustered(ITEMS, BATCH)
    layer = tfrs.layers.factorized_top_k.BruteForce(k=NEAREST).index(tf.constant(vectors[1:]))
    call = tf.function(lambda query: layer(query), input_signature=[tf.TensorSpec([None, vectors.shape[1]])])
    return lambda: mean_cost(lambda batch: call(tf.constant(batch))[1].numpy(), [queries] * TIMES)


if __name__ == "__main__":
    main()
