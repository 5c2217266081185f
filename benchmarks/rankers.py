"""Every ranker on one split, with the settings of one config: parameters, CPU time of an epoch, AUC and logloss.

Epochs are chosen on valid; "test" is the model refitted on train + valid, "train only" the one chosen on valid.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfrec import config as settings
from tfrec import pipeline, ranking
from tfrec.runs import Run
from tfrec.training.ranking import RankScorer, measure

EXAMPLE = "python benchmarks/rankers.py configs/ml100k_ctr.toml --kinds logistic fm din --seeds 1 2 3"
# What differs from the config's own settings, which were chosen for its own kind.
OVERRIDES = {
    "logistic": ["train.learning_rate=3e-3"],
    "fm": ["ranker.history=true"],
    "wide_deep": ["ranker.history=true"],
    "deepfm": ["ranker.history=true"],
    "dcn": ["ranker.history=true"],
    "dcn_mixture": ["model.kind=dcn", "ranker.history=true", "ranker.cross_rank=16", "ranker.cross_experts=4"],
    "dlrm": ["ranker.history=true"],
    "din": [],
    "transformer": [],
}


class EpochTimes(keras.callbacks.Callback):
    """CPU seconds of this process between the begin and the end of each epoch, validation included."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []
        self._start = 0.0

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._start = time.process_time()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self.seconds.append(time.process_time() - self._start)


def run_one(config: str, kind: str, seed: int, folder: str) -> dict[str, Any]:
    """Trains and measures one kind with one seed."""
    overrides = [f"model.kind={kind}", *OVERRIDES[kind], f"run.name={kind}_{seed}", f"run.seed={seed}"]
    loaded = settings.load(config, [*overrides, f"run.folder={folder}", "evaluate.baselines=false"])
    times = EpochTimes()
    run = pipeline.train(loaded, callbacks=lambda: [times])
    report = pipeline.evaluate(loaded)
    chosen = train_only(run)
    row = {"kind": kind, "seed": seed, "parameters": report["parameters"]}
    row |= {"cpu_seconds_an_epoch": float(np.median(times.seconds)) if times.seconds else None}
    row |= {f"test_{name}": report["test"][name] for name in ("auc", "logloss", "gauc", "ece")}
    return row | {f"train_only_{name}": chosen[name] for name in ("auc", "logloss")} | {"command": " ".join(overrides)}


def train_only(run: Run) -> dict[str, float]:
    """Test metrics of the model that has not seen valid."""
    data = ranking.ranking_data(run)
    scored = RankScorer(run.model("selected")).score(run.config, data, data.held_out(2))
    return measure(run.config.ranker.tasks, scored)[run.config.ranker.tasks[0].name]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=f"example: {EXAMPLE}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="a TOML file whose model.kind is a ranker")
    parser.add_argument("--kinds", nargs="+", choices=list(OVERRIDES), default=list(OVERRIDES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1])
    parser.add_argument("--folder", default="runs", help="where runs are kept")
    parser.add_argument("--out", type=Path, help="a file that gets one JSON line a run")
    options = parser.parse_args()
    for kind in options.kinds:
        for seed in options.seeds:
            line = json.dumps(run_one(options.config, kind, seed, options.folder))
            print(line, flush=True)
            if options.out:
                with options.out.open("a", encoding="utf-8") as file:
                    file.write(line + "\n")


if __name__ == "__main__":
    main()
