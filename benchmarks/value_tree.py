"""The peer of value.py: a Tweedie gradient-boosted tree, in an environment of its own.

python -m venv .venv-value && .venv-value/bin/pip install lightgbm==4.7.0 numpy pyarrow
.venv-value/bin/python benchmarks/value_tree.py OUT.npy DATA WINDOW SEED...
"""

from __future__ import annotations

import itertools
import sys

import lightgbm as lgb
import numpy as np
import value_data


def ranks(values: np.ndarray) -> np.ndarray:
    """Average ranks."""
    _, block, rows = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(rows) - (rows - 1) / 2)[block]


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.corrcoef(ranks(first), ranks(second))[0, 1])


def predict(x: np.ndarray, y: np.ndarray, part: np.ndarray, seed: int) -> tuple[float, np.ndarray]:
    """Spearman on valid of the best setting, and its predictions of the test rows."""
    data = [lgb.Dataset(x[part == p], y[part == p], free_raw_data=False) for p in (0, 1)]
    best = (-1.0, np.zeros(0))
    for power, leaves in itertools.product((1.1, 1.3, 1.5, 1.7), (7, 15, 31)):
        settings = {
            "objective": "tweedie",
            "tweedie_variance_power": power,
            "num_leaves": leaves,
            "learning_rate": 0.03,
            "min_data_in_leaf": 50,
            "feature_fraction": 0.8,
            "bagging_fraction": 0.8,
            "bagging_freq": 1,
            "seed": seed,
            "num_threads": 1,
            "verbose": -1,
        }
        model = lgb.train(settings, data[0], 1000, [data[1]], callbacks=[lgb.early_stopping(50, verbose=False)])
        found = spearman(y[part == 1], model.predict(x[part == 1]))
        if found > best[0]:
            best = found, model.predict(x[part == 2])
    return best


def main(out: str, data: str, window: str, *seeds: str) -> None:
    columns, y = value_data.customers(data, window)
    x = np.stack(list(columns.values()), axis=1)
    predictions = np.zeros((len(seeds), len(y)))
    for row, seed in enumerate(seeds):
        for fold in range(value_data.FOLDS):
            part = value_data.parts(len(y), fold)
            valid, predictions[row, part == 2] = predict(x, y, part, int(seed))
            print(f"tree, seed {seed}, fold {fold}: valid Spearman {valid:.4f}", file=sys.stderr)
    np.save(out, predictions)


if __name__ == "__main__":
    main(*sys.argv[1:])
