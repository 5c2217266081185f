"""Prints the table of docs/quality.md for runs of one configuration with other seeds.

    tfrec train configs/ml100k_best.toml                              # seed 1, with baselines
    tfrec train configs/ml100k_best.toml run.seed=2 run.name=second evaluate.baselines=false
    python tools/quality.py runs/ml100k_best runs/second

tfrec's row is the mean over the runs; its metric of a query is averaged over them before the bootstrap over users,
paired where it is compared. Baselines and peers are those of the first run that has them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tfrec.evaluation import bootstrap

METRIC, SHOWN = "ndcg@10", ("hr@10", "ndcg@10")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders, one a seed")
    runs = parser.parse_args().runs
    reports = [json.loads((run / "metrics.json").read_text(encoding="utf-8")) for run in runs]
    ours = np.mean([np.load(run / "per_query.npz")["tfrec"] for run in runs], axis=0)
    means = {name: np.mean([report["test"][name] for report in reports]) for name in SHOWN}
    low, high = bootstrap.interval(ours, 2000)[1:3]
    spread = ", ".join(f"{report['test'][METRIC]:.4f}" for report in reports)
    print("| test | HR@10 | NDCG@10 | NDCG@10 of tfrec against it, 95 % interval |\n|---|---|---|---|")
    found = f"**{means['hr@10']:.4f}** | **{means[METRIC]:.4f}** [{low:.4f}, {high:.4f}]"
    print(f"| **tfrec**, {len(runs)} seeds | {found} | |")
    for name, metrics, theirs in sorted(others(runs, reports), key=lambda row: -row[1][METRIC]):
        mean, low, high = bootstrap.paired(ours, theirs, 2000)[:3]
        print(f"| {name} | {metrics['hr@10']:.4f} | {metrics[METRIC]:.4f} | {mean:+.4f} [{low:+.4f}, {high:+.4f}] |")
    print(f"\nNDCG@10 by seed: {spread}; queries: {len(ours):,}.")


def others(runs: list[Path], reports: list[dict]) -> Iterator[tuple[str, dict[str, float], np.ndarray]]:
    """Name, test metrics and the metric of each query, of every baseline and peer."""
    seen: set[str] = set()
    for run, report in zip(runs, reports, strict=True):
        peers = run / "peers.json"
        found = {name: (row, "per_query.npz") for name, row in report.get("baselines", {}).items()}
        if peers.exists():
            rows = json.loads(peers.read_text(encoding="utf-8"))
            found |= {name: (row["test"], "peers.npz") for name, row in rows.items()}
        for name, (metrics, file) in found.items():
            if name not in seen:
                seen.add(name)
                yield name, metrics, np.load(run / file)[name]


if __name__ == "__main__":
    main()
