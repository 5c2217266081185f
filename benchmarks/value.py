"""A ZILN head against a Tweedie gradient-boosted tree on the next 39 weeks of CDNOW's customers.

Five folds of customers; each side chooses on its valid fold, without a refit. The same features for both.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

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


def settings(folder: Path, columns: value_data.Columns, fold: int) -> Config:
    """A wide & deep ranker of one item, the shop, with a value as its only task."""
    features = [{"name": n, "side": "context", "kind": "numeric", "log": n != "active_share"} for n in columns]
    return validate(
        {
            "run": {"name": f"fold{fold}", "folder": str(folder / "runs")},
            "data": {
                "source": "tables",
                "interactions": str(folder / f"fold{fold}.parquet"),
                "split": {"kind": "given"},
            },
            "features": {"columns": features},
            "model": {"kind": "wide_deep", "text": "none"},
            "ranker": {
                "user_id": False,
                "item_id": False,
                "embedding": 4,
                "hidden": [32, 16],
                "dropout": 0.1,
                "tasks": [{"name": "spent", "column": "value", "kind": "value"}],
                "monitor": "spearman",
            },
            "train": {"epochs": 60, "batch": 1024, "learning_rate": 4e-3, "patience": 8, "refit": False},
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


def ours(folder: Path, columns: value_data.Columns, target: np.ndarray) -> np.ndarray:
    """Expected dollars of every customer, from the fold in which it is test."""
    predictions = np.zeros(len(target))
    for fold in range(value_data.FOLDS):
        part = value_data.parts(len(target), fold)
        write(folder / f"fold{fold}.parquet", columns, target, part)
        config = settings(folder, columns, fold)
        run = pipeline.train(config, lambda line: None)
        data = ranking.ranking_data(run)
        rows = data.held_out(2)
        scored = RankScorer(run.model()).score(config, data, rows)
        names = Run(config).prepared.user_ids[rows.columns["user"] - 1]
        predictions[[int(name[1:]) for name in names]] = scored.predictions[:, 0]
    return predictions


def tree(python: str, folder: Path) -> np.ndarray:
    script = Path(__file__).with_name("value_tree.py")
    subprocess.run([python, str(script), str(folder / "tree.npy")], check=True)
    return np.load(folder / "tree.npy")


def compare(target: np.ndarray, ours: np.ndarray, tree: np.ndarray, resamples: int) -> dict[str, object]:
    """Metrics of both, and the difference with its interval over resampled customers."""
    report: dict[str, object] = {
        name: ranking_metrics.summarize_value(target, values) for name, values in (("ziln", ours), ("tree", tree))
    }
    random, rows = np.random.default_rng(0), len(target)
    for name, metric in (("spearman", ranking_metrics.spearman), ("top_decile", ranking_metrics.top_capture)):
        drawn = []
        for _ in range(resamples):
            pick = random.integers(0, rows, rows)
            drawn.append(metric(target[pick], ours[pick]) - metric(target[pick], tree[pick]))
        low, high = np.quantile(drawn, [0.025, 0.975])
        mean = metric(target, ours) - metric(target, tree)
        report[f"{name}_difference"] = bootstrap.Interval(mean, float(low), float(high))._asdict()
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, epilog=f"example: {EXAMPLE}")
    parser.add_argument("--tree", required=True, help="a Python that has lightgbm")
    parser.add_argument("--resamples", type=int, default=500)
    options = parser.parse_args()
    columns, target = value_data.customers()
    with tempfile.TemporaryDirectory() as folder:
        result = compare(
            target, ours(Path(folder), columns, target), tree(options.tree, Path(folder)), options.resamples
        )
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
