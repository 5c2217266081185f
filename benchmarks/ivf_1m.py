"""CPU-seconds of one query among a million vectors of width 64: an inverted file against brute force.

Both are SavedModels of core ops, batch 1, best 100, each in a process of its own that loads it as tfrec's server does:
a request runs in its caller's thread, and ``--threads`` of them compute an op. The vectors lie around 10,000 Gaussian
centres, within which they vary as much as the centres do, of shares 1 / rank; ``--zipf`` takes another exponent,
``--vectors`` what ``train_million.py`` has trained, with its users as queries. ``nprobe`` is chosen on other queries
than those that recall is measured on. Brute force is a matrix product and top_k; the exact scan that tfrec serves is
measured beside it. ``--peer`` measures faiss or hnswlib too, as they are, in an environment of their own that has them
and numpy:

    python3 -m venv ann-env && ann-env/bin/pip install faiss-cpu hnswlib numpy
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import tensorflow as tf
from catalogue import NEAREST, Plain, Search, clustered, mean_cost, recall, save
from common import Cost, Worker, alternate, answer, arguments, report

from tfrec.artifact.indexed import Found, Plan, make_index, search
from tfrec.artifact.ivf import IVF
from tfrec.artifact.planning import Wish, make_plan, nearest
from tfrec.artifact.scan import Scan
from tfrec.server.servable import DEFAULT_SIGNATURE, Servable
from tfrec.server.session import Threads

QUERIES, FEW = 1000, 20
EXAMPLE = "python benchmarks/ivf_1m.py --rounds 5"


def main() -> None:
    options = parse()
    if options.side:
        batches = np.load(options.side.parent / "queries.npy")[: options.queries, None]
        served = opened(options.side, options.threads)
        answer(lambda: mean_cost(served, batches))
        return
    made_up = options.vectors is None
    vectors, queries = clustered(options.items, 2 * QUERIES, zipf=options.zipf) if made_up else trained(options.vectors)
    tuning, queries = queries[:QUERIES], queries[QUERIES:]
    best = nearest(queries, vectors)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.save(folder / "queries.npy", queries)
        if options.peer:
            measure_peer(options, folder / "data.npz", vectors, queries, best)
        write(vectors, tuning, options, folder)
        found = recall(opened(folder / "ivf", options.threads), queries, best)
        print(
            f"recall@{NEAREST}: {found:.4f}, scan {recall(opened(folder / 'scan', 1), queries[:FEW], best[:FEW]):.4f}"
        )
        sides = [side(folder / "ivf", QUERIES, options), side(folder / "brute", FEW, options)]
        with sides[0] as ours, sides[1] as brute:
            own, peer = alternate(ours, brute, options.rounds)
        with side(folder / "scan", FEW, options) as scan:
            print(f"a query, CPU and clock: ours {show(own)}, brute force {show(peer)}, scan {show(scan())}")
    name, wall = f"ivf_{options.items // 1000}k" if made_up else "ivf_trained", peer.wall / own.wall
    report(options.results, name, peer.cpu / own.cpu, own.cpu, peer.cpu, "CPU-seconds", ["tensorflow"], wall)


def parse() -> argparse.Namespace:
    parser = arguments(str(__doc__), EXAMPLE)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--zipf", type=float, default=1.0, help="exponent of the shares of centres")
    parser.add_argument("--vectors", type=Path, help="an .npz file of items [N, 64] and queries [2000, 64]")
    parser.add_argument("--storage", choices=["packed", "float32", "bfloat16"], default="packed")
    parser.add_argument("--recall", type=float, default=0.953, help="on tuning queries; others may find a little less")
    parser.add_argument("--threads", type=int, default=1, help="of an op; 0 = as many as processors")
    parser.add_argument("--peer", choices=["faiss", "hnswlib"], help="measure it beside ours")
    parser.add_argument("--peer-python", default="ann-env/bin/python", help="the Python of its environment")
    parser.add_argument("--side", type=Path, help="be the process that serves this SavedModel")
    parser.add_argument("--queries", type=int, default=QUERIES, help="of such a process")
    return parser.parse_args()


def opened(path: Path, threads: int) -> Search:
    """The items that a SavedModel answers."""
    servable = Servable(path, Threads(threads))
    return lambda query: servable.run(DEFAULT_SIGNATURE, {"query": query}, ["items"])["items"]


def side(path: Path, queries: int, options: argparse.Namespace) -> Worker:
    command = [sys.executable, __file__, "--side", str(path), "--queries", str(queries)]
    return Worker([*command, "--threads", str(options.threads)])


def write(vectors: np.ndarray, tuning: np.ndarray, options: argparse.Namespace, folder: Path) -> None:
    """SavedModels of an inverted file that reaches the recall on other queries, brute force and the exact scan."""
    plan, about = make_plan(vectors, tuning, Wish("ivf", options.recall, options.storage))
    print(about)
    table, available = tf.Variable(vectors, trainable=False), tf.Variable(np.arange(len(vectors)) > 0, trainable=False)
    for name, how in (("ivf", plan), ("scan", Plan())):
        index = make_index(how, table, available)
        save(index, lambda query, index=index: asked(index, query), folder / name)
    plain = Plain(vectors)
    save(plain, plain.search, folder / "brute")


def asked(index: IVF | Scan, query: tf.Tensor) -> Found:
    nothing = tf.zeros([tf.shape(query)[0], 0], tf.int32)
    return search(index, query, nothing, tf.constant(NEAREST), None)


def trained(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of items, behind a row of zeros, and of queries that :mod:`train_million` has written."""
    with np.load(path) as file:
        return np.pad(file["items"], [(1, 0), (0, 0)]), file["queries"]


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
