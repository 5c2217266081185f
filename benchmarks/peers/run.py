"""Trains recommenders of other packages on a run's splits and measures them as ``tfrec evaluate`` does.

    tfrec prepare configs/ml100k.toml && make peers CONFIG=configs/ml100k.toml

Writes into the run's folder peers.json, {peer: {"test": metrics, "chosen": settings, "cpu_seconds", "versions"}}, and
peers.npz, ndcg@10 of each test query by peer, in the order of the users, which "users" holds. Peers that are not asked
for keep what they had.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from protocol import AT, Prepared

from tfrec import config as settings
from tfrec.errors import TfrecError

PEERS = {  # module and packages
    "als": ("factors", ("implicit",)),
    "bpr": ("factors", ("implicit",)),
    "sasrec": ("sequences", ("recbole", "torch")),
    "bert4rec": ("sequences", ("recbole", "torch")),
}


def main() -> int:
    options = _arguments()
    try:
        config = settings.load(options.config, options.overrides)
        prepared = Prepared.read(config.run_folder / "prepared")
    except TfrecError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    ks = tuple(sorted({*config.evaluate.k, AT}))
    for name in options.peers:
        entry, per_query = measure(name, prepared, ks, options.threads, options.seconds)
        save(config.run_folder, name, entry, {"users": prepared.holdout(2).users, name: per_query})
        print(f"{name:<9} hr@10 {entry['test']['hr@10']:.4f} ndcg@10 {entry['test']['ndcg@10']:.4f}", flush=True)
    return 0


def measure(
    name: str, prepared: Prepared, ks: tuple[int, ...], threads: int, seconds: float
) -> tuple[dict[str, Any], np.ndarray]:
    """A peer's entry of peers.json, and its ndcg@10 of each test query."""
    module, packages = PEERS[name]
    fit = getattr(importlib.import_module(module), name)
    started = time.process_time()
    peer = fit(prepared, threads, seconds)
    means, per_query = prepared.test(peer.recommender, ks)
    took = round(time.process_time() - started, 1)
    versions = {package: importlib.metadata.version(package) for package in (*packages, "numpy")}
    entry = {"test": means, "chosen": peer.chosen, "cpu_seconds": took, "threads": threads, "versions": versions}
    return entry, per_query


def save(folder: Path, name: str, entry: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Adds a peer to the files; a reader finds them as they were or as they are to be."""
    table, queries = folder / "peers.json", folder / "peers.npz"
    known = json.loads(table.read_text(encoding="utf-8")) if table.exists() else {}
    if queries.exists():
        with np.load(queries) as stored:
            same = np.array_equal(stored["users"], arrays["users"])  # else the splits are others than they were
            known, arrays = (known, {**stored, **arrays}) if same else ({}, arrays)
    beside = folder / ".peers.npz"
    np.savez(beside, **arrays)
    os.replace(beside, queries)
    beside = folder / ".peers.json"
    beside.write_text(json.dumps({**known, name: entry}, indent=1), encoding="utf-8")
    os.replace(beside, table)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="TOML file, whose run is prepared")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS), help="which to train")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of a training")
    parser.add_argument(
        "--seconds", type=float, default=300, help="bound in CPU-seconds of the choice of SASRec's or BERT4Rec's epochs"
    )
    return parser.parse_intermixed_args()


if __name__ == "__main__":
    sys.exit(main())
