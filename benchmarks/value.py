"""A ZILN head against a Tweedie gradient-boosted tree on the dollars that a shop's customers will spend.

Five folds of customers, the same features for both, no refit on valid: there the tree chooses among 12 settings and
stops; the head learns for as many epochs as were chosen, with all its settings, on the window "early", which the future
of "full" has no part in (on Online Retail the epochs alone, the rest is as on CDNOW).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import value_data

from tfrec import pipeline, ranking
from tfrec.config import Config, validate
from tfrec.evaluation import bootstrap, ranking_metrics
from tfrec.runs import Run
from tfrec.training.ranking import RankScorer

NAMES = np.array(["train", "valid", "test"], object)
EXAMPLE = "python benchmarks/value.py --tree .venv-value/bin/python"
METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "spearman": ranking_metrics.spearman,
    "top_decile": ranking_metrics.top_capture,
}
RANKER: dict[str, Any] = {
    "user_id": False,
    "item_id": False,
    "embedding": 2,
    "hidden": [32, 16],
    "dropout": 0.3,
    "members": 4,
    "tasks": [{"name": "spent", "column": "value", "kind": "value"}],
    "monitor": "gini",
}
# The best epoch of a valid fold is luck: a few big spenders decide. All folds take as many as suit the early window.
EPOCHS = {"cdnow": 20, "online-retail": 40}
TRAIN: dict[str, Any] = {
    "batch": 1024,
    "learning_rate": 1e-3,
    "patience": 0,
    "keep": "last",
    "refit": False,
}


def settings(table: Path, columns: value_data.Columns, epochs: int, seed: int) -> Config:
    """A wide & deep ranker of one item, the shop, with a value as its only task."""
    features = [{"name": n, "side": "context", "kind": "numeric", "log": n != "active_share"} for n in columns]
    return validate(
        {
            "run": {"name": f"{table.stem}_{seed}", "folder": str(table.parent / "runs"), "seed": seed},
            "data": {"source": "tables", "interactions": str(table), "split": {"kind": "given"}},
            "features": {"columns": features},
            "model": {"kind": "wide_deep", "text": "none"},
            "ranker": RANKER,
            "train": TRAIN | {"epochs": epochs},
            "evaluate": {"repeats": "keep", "baselines": False, "bootstrap": 0},
        }
    )


def write(path: Path, columns: value_data.Columns, target: np.ndarray, part: np.ndarray) -> None:
    table = {
        "user_id": [f"c{i}" for i in range(len(target))],
        "item_id": ["shop"] * len(target),
        "value": target,
        "split": NAMES[part],
        **columns,
    }
    pq.write_table(pa.table(table), path)


def ours(folder: Path, columns: value_data.Columns, target: np.ndarray, epochs: int, seed: int) -> np.ndarray:
    """Expected dollars of every customer, from the fold in which it is test."""
    predictions = np.zeros(len(target))
    for fold in range(value_data.FOLDS):
        table = folder / f"fold{fold}.parquet"
        write(table, columns, target, value_data.parts(len(target), fold))
        config = settings(table, columns, epochs, seed)
        run = pipeline.train(config, lambda line: None)
        data = ranking.ranking_data(run)
        rows = data.held_out(2)
        scored = RankScorer(run.model()).score(config, data, rows)
        names = Run(config).prepared.user_ids[rows.columns["user"] - 1]
        predictions[[int(name[1:]) for name in names]] = scored.predictions[:, 0]
    return predictions


def compare(target: np.ndarray, ours: np.ndarray, tree: np.ndarray, resamples: int) -> dict[str, object]:
    """Medians over seeds of the metrics of both, and of their difference, with its interval over resampled customers.

    Args:
        target: [C].
        ours, tree: predictions of every seed, [S, C].
        resamples: of customers, the same for both and for every seed.
    """
    report: dict[str, object] = {
        name: _median([ranking_metrics.summarize_value(target, values) for values in seeds])
        for name, seeds in (("ziln", ours), ("tree", tree))
    }
    random, every = np.random.default_rng(0), np.arange(len(target))
    draws = [random.integers(0, len(target), len(target)) for _ in range(resamples)]

    def difference(metric: Callable[[np.ndarray, np.ndarray], float], rows: np.ndarray) -> float:
        pairs = zip(ours, tree, strict=True)
        return float(np.median([metric(target[rows], a[rows]) - metric(target[rows], b[rows]) for a, b in pairs]))

    for name, metric in METRICS.items():
        low, high = np.quantile([difference(metric, rows) for rows in draws], [0.025, 0.975])
        interval = bootstrap.Interval(difference(metric, every), float(low), float(high))
        report[f"{name}_difference"] = interval._asdict()
        report[f"{name}_of_seeds"] = [[metric(target, values) for values in seeds] for seeds in (ours, tree)]
    return report


def _median(found: list[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.median([one[name] for one in found])) for name in found[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, epilog=f"example: {EXAMPLE}")
    parser.add_argument("--tree", required=True, help="a Python that has lightgbm")
    parser.add_argument("--data", choices=list(value_data.WINDOWS), default="cdnow")
    parser.add_argument("--window", choices=["early", "full"], default="full")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3, 4, 5])
    parser.add_argument("--resamples", type=int, default=300)
    options = parser.parse_args()
    columns, target = value_data.customers(options.data, options.window)
    script, seeds = Path(__file__).with_name("value_tree.py"), [str(seed) for seed in options.seeds]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [options.tree, str(script), str(folder / "tree.npy"), options.data, options.window, *seeds]
        with subprocess.Popen(command) as tree:
            found = np.stack([ours(folder, columns, target, EPOCHS[options.data], seed) for seed in options.seeds])
        if tree.returncode:
            raise SystemExit(f"the tree ended with {tree.returncode}")
        print(json.dumps(compare(target, found, np.load(folder / "tree.npy"), options.resamples), indent=2))


if __name__ == "__main__":
    main()
