"""CPU-seconds of one query among a million vectors of width 64: an inverted file against brute force.

Both are SavedModels of core ops in a v1 session with TensorFlow's default options, batch 1, best 100. The vectors lie
around 10,000 Gaussian centres, within which they vary as much as the centres do, of shares 1 / rank; ``--zipf`` takes
another exponent, ``--vectors`` vectors that were trained (an .npy file [N, 64], some rows of which become the queries).
``nprobe`` is chosen on other queries than those that recall is measured on. Brute force is a matrix product and top_k;
the exact scan that tfrec serves is measured beside it. ``--peer`` measures faiss or hnswlib too, as they are, in an
environment of their own that has them and numpy:

    python3 -m venv ann-env && ann-env/bin/pip install faiss-cpu hnswlib numpy
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import tensorflow as tf
from catalogue import NEAREST, Plain, clustered, mean_cost, recall, save, session
from common import Cost, alternate, arguments, report

from tfrec.artifact.buckets import build
from tfrec.artifact.ivf import IVF
from tfrec.artifact.planning import SIZE, nearest, probes_for
from tfrec.artifact.scan import Scan

QUERIES = 300
EXAMPLE = "python benchmarks/ivf_1m.py --rounds 5"


def main() -> None:
    parser = arguments(str(__doc__), EXAMPLE)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--zipf", type=float, default=1.0, help="exponent of the shares of centres")
    parser.add_argument("--vectors", type=Path, help="an .npy file of trained vectors")
    parser.add_argument("--storage", choices=["float32", "bfloat16"], default="float32", help="of vectors in buckets")
    parser.add_argument("--size", type=int, default=SIZE, help="items of a bucket, about")
    parser.add_argument("--recall", type=float, default=0.95)
    parser.add_argument("--peer", choices=["faiss", "hnswlib"], help="measure it beside ours")
    parser.add_argument("--peer-python", default="ann-env/bin/python", help="the Python of its environment")
    options = parser.parse_args()
    vectors, queries = (
        trained(options.vectors) if options.vectors else clustered(options.items, 2 * QUERIES, zipf=options.zipf)
    )
    tuning, queries = queries[:QUERIES], queries[QUERIES:]
    best = nearest(queries, vectors)
    with tempfile.TemporaryDirectory() as folder:
        if options.peer:
            measure_peer(options, Path(folder) / "data.npz", vectors, queries, best)
        index = make_index(vectors, tuning, options)
        ours = session(save(*index, Path(folder) / "ivf"))
        plain = Plain(vectors)
        brute = session(save(plain, plain.search, Path(folder) / "brute"))
        table = tf.Variable(vectors)
        scan = Scan(table, tf.Variable(np.arange(len(vectors)) > 0))
        none = lambda query: scan.search(query, tf.zeros([tf.shape(query)[0], 0], tf.int32), tf.constant(NEAREST))  # noqa: E731
        exact = session(save(scan, none, Path(folder) / "scan"))
    print(f"recall@{NEAREST}: {recall(ours, queries, best):.4f}, scan {recall(exact, queries[:20], best[:20]):.4f}")
    many, few = [query[None] for query in queries], [query[None] for query in queries[:20]]
    own, peer = alternate(lambda: mean_cost(ours, many), lambda: mean_cost(brute, few), options.rounds)
    scanned = mean_cost(exact, few)
    print(f"a query, CPU and clock: ours {show(own)}, brute force {show(peer)}, scan {show(scanned)}")
    name = "ivf_trained" if options.vectors else f"ivf_{options.items // 1000}k"
    report(
        options.results,
        name,
        peer.cpu / own.cpu,
        own.cpu,
        peer.cpu,
        "CPU-seconds",
        ["tensorflow"],
        peer.wall / own.wall,
    )


def make_index(vectors: np.ndarray, tuning: np.ndarray, options: object) -> tuple:
    """An inverted file that reaches the recall on other queries, and its search."""
    buckets = build(vectors, np.arange(1, len(vectors), dtype=np.int32), options.size)  # type: ignore[attr-defined]
    chosen = probes_for(buckets, vectors, tuning, options.recall)  # type: ignore[attr-defined]
    print(f"{len(buckets.centroids):,} buckets; on other queries {chosen}")
    index = IVF(tf.Variable(vectors, trainable=False), buckets, options.storage, chosen.reach)  # type: ignore[attr-defined]
    probes, count = tf.constant(chosen.nprobe), tf.constant(NEAREST)
    return index, lambda query: index.search(query, tf.zeros([tf.shape(query)[0], 0], tf.int32), count, probes)


def trained(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors of a file: a catalogue, and rows that are left out of it as queries."""
    rows = np.random.default_rng(0).permutation(np.load(path)).astype(np.float32)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return np.concatenate([np.zeros((1, rows.shape[1]), np.float32), rows[2 * QUERIES :]]), rows[: 2 * QUERIES]


def measure_peer(options: object, file: Path, vectors: np.ndarray, queries: np.ndarray, best: np.ndarray) -> None:
    """Prints what another library takes at the same recall, or why it was skipped."""
    python, peer = options.peer_python, options.peer  # type: ignore[attr-defined]
    has = Path(python).exists() and not subprocess.run([python, "-c", f"import {peer}"], capture_output=True).returncode
    if not has:
        print(f"skipped {peer}: --peer-python must be a Python that has it; got {python}", file=sys.stderr)
        return
    np.savez(file, vectors=vectors, queries=queries, best=best)
    command = [python, str(Path(__file__).with_name("ann_peer.py")), peer, str(file), str(options.recall)]  # type: ignore[attr-defined]
    for line in subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines():
        print(json.dumps(json.loads(line)))


def show(cost: Cost) -> str:
    return f"{cost.cpu * 1e3:.2f} / {cost.wall * 1e3:.2f} ms"


if __name__ == "__main__":
    main()
