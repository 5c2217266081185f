"""The road: prepare → train → evaluate → export → verify → serve, each stage on a run's folder."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfrec import __version__
from tfrec.artifact import verify as verification
from tfrec.artifact.export import Requests, export, versions
from tfrec.artifact.recommender import Parts
from tfrec.config import Config
from tfrec.data import prepare as tables
from tfrec.data.tokens import warn_unknown
from tfrec.errors import ArtifactError, ConfigError
from tfrec.evaluation import baselines, bootstrap, metrics, slices
from tfrec.evaluation.ranks import Holdout, rank
from tfrec.models.two_tower import TwoTower
from tfrec.runs import Run, write_json
from tfrec.training import retrieval, warm_start
from tfrec.training.validation import RetrievalScorer, make_holdout

Say = Callable[[str], None]
GOLDEN_USERS = 16


def say(line: str) -> None:
    """Progress goes to stderr; stdout is for results."""
    print(line, file=sys.stderr, flush=True)


def prepare(config: Config, say: Say = say) -> Run:
    """Tables, vocabularies, features; skipped when the folder holds what the settings ask for.

    Raises:
        ConfigError: the run was trained with other settings.
    """
    run = Run(config)
    _refuse_other_settings(run)
    run.save_config()
    if not _is_prepared(run):
        prepared = tables.prepare(config, run.folder / "prepared")
        report = prepared.report
        for note in report["notes"]:
            say(note)
        for problem, count in report["problems"].items():
            say(f"{problem}: {count:,}")
        run.make_features()
        say(f"prepared {report['users']:,} users, {report['items']:,} items, {report['events']:,} events")
        _report_text(run, say)
    return run


def _is_prepared(run: Run) -> bool:
    if not (run.features_folder / "statistics.json").exists() or not (run.folder / "prepared").exists():
        return False
    return run.prepared.report["settings"] == tables._settings(run.config)


def _refuse_other_settings(run: Run) -> None:
    """A trained run keeps its settings; evaluation, export and serving may change."""
    path = run.folder / "config.json"
    if not path.exists() or not (run.folder / "checkpoints").exists():
        return
    before, now = json.loads(path.read_text(encoding="utf-8")), run.config.model_dump(mode="json")
    for section in ("data", "features", "model", "train"):
        differing = [key for key, value in now[section].items() if before[section].get(key) != value]
        if differing:
            raise ConfigError(
                f"a run keeps the settings it was trained with; {section}.{differing[0]} was "
                f"{before[section].get(differing[0])!r}",
                now[section][differing[0]],
                f"Set another run.name, or remove {run.folder}",
            )


def _report_text(run: Run, say: Say) -> None:
    if run.tokenizer is None:
        return
    texts = run.preprocessor.text(run.raw("item")).numpy()
    statistics = run.tokenizer.statistics([text.decode() for text in texts])
    say(f"texts: {statistics.unknown:.1%} unknown tokens, {statistics.truncated:.1%} truncated")
    warn_unknown(statistics.unknown, run.config.features.text.encoder)


def train(
    config: Config, say: Say = say, callbacks: Callable[[], Sequence[keras.callbacks.Callback]] = list
) -> Run:
    """Prepares what is lacking and trains; a killed training continues.

    Args:
        config: the settings.
        say: gets lines of progress.
        callbacks: makes Keras callbacks for each training (the choice of epochs, and the refit).
    """
    run = prepare(config, say)
    data = run.retrieval_data()
    if config.train.init_from:
        data = run.retrieval_data(start=warm_start.starter(Run.open(config.train.init_from), run))
    fitted = retrieval.fit(config, data, run.folder / "checkpoints", lambda: [_Progress(say), *callbacks()])
    run.save_model(fitted.selected, "selected")
    run.save_model(fitted.final, "final")
    return run


class _Progress(keras.callbacks.Callback):
    def __init__(self, say: Say):
        super().__init__()
        self._say = say

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        numbers = " ".join(f"{name} {value:.4g}" for name, value in (logs or {}).items() if "map" not in name)
        self._say(f"epoch {epoch + 1}/{self.params['epochs']} {numbers}")


def evaluate(config: Config, say: Say = say) -> dict[str, Any]:
    """Metrics of the model on valid and test beside baselines, written to metrics.json."""
    run, settings = Run(config), config.evaluate
    holdouts = {name: _holdout(run, split) for name, split in (("valid", 1), ("test", 2))}
    report: dict[str, Any] = {}
    for name, which in (("valid", "selected"), ("test", "final")):
        model = run.model(which)
        ranks = rank(RetrievalScorer(model).scorer(holdouts[name]), holdouts[name], model.sizes["items"], top=max(settings.k))
        report[name] = metrics.summarize(ranks, settings.k, _counts(run))
    ours = metrics.per_query(ranks, settings.k)
    report["queries"] = {name: len(holdout) for name, holdout in holdouts.items()}
    if settings.bootstrap:
        report["interval"] = {
            name: bootstrap.interval(ours[name], settings.bootstrap, seed=config.run.seed)
            for name in ("hr@10", "ndcg@10")
            if name in ours
        }
    report["slices"] = slices.summarize(ranks, holdouts["test"], _counts(run), settings.k)
    if settings.baselines:
        report |= _baselines(run, holdouts, ours)
    write_json(run.folder / "metrics.json", report)
    return report


def _baselines(run: Run, holdouts: Mapping[str, Holdout], ours: Mapping[str, np.ndarray]) -> dict[str, Any]:
    raise NotImplementedError


def _holdout(run: Run, split: int) -> Holdout:
    return make_holdout(run.prepared.events, len(run.prepared.user_ids), split, run.config.evaluate.repeats)


def _counts(run: Run) -> np.ndarray:
    """Train events per item [N+1]."""
    return np.concatenate([[0], run.prepared.items["count"].to_numpy()])
