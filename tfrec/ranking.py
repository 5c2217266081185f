"""The ranker's stretch of the road: a prepared run → rows, training, and metrics beside logistic regression."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from tfrec.config import Config
from tfrec.data import impressions, sampling
from tfrec.data.folds import rolling
from tfrec.data.preprocess import AGE_ROWS
from tfrec.errors import ConfigError, DataError
from tfrec.evaluation import ranking_metrics
from tfrec.evaluation.holdouts import make_holdout
from tfrec.models.ranking.body import Sizes
from tfrec.models.ranking.fields import Field, text_fields
from tfrec.models.ranking.ranker import Ranker
from tfrec.runs import Run, read_json, write_json
from tfrec.schema import Feature
from tfrec.training import ranking
from tfrec.training.ranking import RankingData, Scored
from tfrec.training.validation import RetrievalScorer

BASELINE = "logistic"
_MOST_KINDS = 100
_FOLDS = "folds.json"


def ranking_data(run: Run, split: np.ndarray | None = None) -> RankingData:
    """What a ranker reads of a prepared run.

    Args:
        run: prepared.
        split: int8 [E] in the place of the events' own.

    Raises:
        DataError: labels or events break a rule, or there are no times and a setting needs them.
    """
    settings, events = run.config.ranker, run.prepared.events
    if split is not None:
        events = {**events, "split": split}
    if settings.history_age and "timestamp" not in events:
        raise DataError("ranker.history_age needs a column timestamp in the interactions", sorted(events))
    kinds = event_kinds(run)
    weights = impressions.row_weights(events, kinds.names, settings.event_weights, settings.half_life_days)
    texts = {name: scaled(vectors) for name, vectors in run.context_text_vectors().items()}
    log = impressions.EventLog(events, run.features("context"), _labels(run), weights, kinds.rows, texts)
    items = run.features("item")
    items.pop("tokens", None)
    if run.reads_text:
        vectors = run.item_text_vectors()
        assert vectors is not None
        items["text"] = scaled(vectors)
    return RankingData(
        _sizes(run, items, len(kinds.known) + 1 if kinds.known else 0),
        run.features("user"),
        items,
        log.training_rows,
        log.held_out_rows,
        _sampler(run, events) if settings.negatives else None,
    )


def scaled(vectors: Any) -> Any:
    """Unit vectors at the scale of standardised numbers, of length √t."""
    return vectors * vectors.shape[1] ** 0.5


def _labels(run: Run) -> np.ndarray:
    events, settings = run.prepared.events, run.config.ranker
    if settings.negatives:
        return np.ones((len(events["user"]), 1), np.float32)
    return impressions.make_labels(events, settings.tasks)


class EventKinds(NamedTuple):
    """Kinds that ranker.history_event tells apart.

    Args:
        rows: kind of every event, int32 [E]; 0 = unknown.
        names: of every event [E]; None when all are alike.
        known: name of kind i + 1 at place i.
    """

    rows: np.ndarray
    names: np.ndarray | None
    known: list[str]


def event_kinds(run: Run) -> EventKinds:
    """Kinds of the events of a prepared run; those that train lacks are unknown.

    Raises:
        ConfigError: there are too many to be kinds.
    """
    events, column = run.prepared.events, run.config.ranker.history_event
    if not column:
        return EventKinds(np.zeros(len(events["user"]), np.int32), None, [])
    names = impressions.event_names(events[column])
    known = sorted({name for name in names[events["split"] == 0] if name})
    if len(known) > _MOST_KINDS:
        raise ConfigError(f"ranker.history_event must tell at most {_MOST_KINDS} kinds apart", len(known))
    place = {name: row for row, name in enumerate(known, start=1)}
    return EventKinds(np.array([place.get(name, 0) for name in names], np.int32), names, known)


def _sizes(run: Run, items: dict[str, np.ndarray], events: int) -> Sizes:
    config, prepared = run.config, run.prepared
    settings, schema, rows = config.ranker, config.features.schema_, run.preprocessor.rows()
    fields = [Field("user", "user", "index", len(prepared.user_ids) + 1)] if settings.user_id else []
    fields += [Field("item", "item", "index", len(prepared.item_ids) + 1)] if settings.item_id else []
    plain = (f for f in schema.features if f.name != settings.position and f.kind != "text")
    fields += [field_of(feature, rows) for feature in plain]
    if "text" in items:
        fields += text_fields(schema.texts(), items["text"].shape[1])
    history = settings.history_fields
    reads = config.model.kind in ("din", "transformer") or (settings.history and config.model.kind != BASELINE)
    length = config.model.history_length if reads else 0
    positions = rows[settings.position] if settings.position else 0
    ages = AGE_ROWS if settings.history_age and length else 0
    return Sizes(tuple(fields), history, events if length else 0, length, positions, ages)


def field_of(feature: Feature, rows: dict[str, int]) -> Field:
    """A feature as a ranker's input; ``rows`` of the embeddings."""
    if feature.indexed:
        return Field(feature.name, feature.side, "index", rows[feature.name])
    return Field(feature.name, feature.side, "vector" if feature.kind == "vector" else "number", feature.width or 1)


def _sampler(run: Run, events: Mapping[str, np.ndarray]) -> Callable[[tuple[int, ...]], sampling.Sampler]:
    """Negatives of rows; training must not know what held-out rows liked, so it may draw that too."""
    settings, items = run.config.ranker, len(run.prepared.item_ids)
    candidates = _retrieved(run) if settings.negatives_from == "retrieval" else None
    power = 0.0 if settings.negatives_from == "uniform" else 0.75
    weights = sampling.popularity_weights(events["item"][events["split"] == 0], items, power)

    def of_splits(splits: tuple[int, ...]) -> sampling.Sampler:
        known = np.isin(events["split"], splits)
        had = sampling.pairs(events["user"][known], events["item"][known], items)
        return sampling.Sampler(settings.negatives, weights, had, items, candidates)

    return of_splits


def _retrieved(run: Run) -> np.ndarray:
    """What the retriever gives each user with a validation event, int32 [U + 1, C] in this run's indices, or 0."""
    settings = run.config.ranker
    assert settings.retriever
    other = Run.open(settings.retriever)
    holdout = make_holdout(other.prepared.events, len(other.prepared.user_ids), 1, "mask")
    score = RetrievalScorer(other.model("selected")).scorer(holdout)
    ours = np.concatenate([[0], _places(other.prepared.item_ids, run.prepared.item_ids)]).astype(np.int32)
    users = _places(other.prepared.user_ids, run.prepared.user_ids)
    out = np.zeros((len(run.prepared.user_ids) + 1, settings.retrieved), np.int32)
    for first in range(0, len(holdout), 256):
        rows = np.arange(first, min(first + 256, len(holdout)))
        scores = score(rows)
        scores[:, 0] = -np.inf
        best = np.argsort(-scores, axis=1, kind="stable")[:, : settings.retrieved]
        out[users[holdout.users[rows] - 1], : best.shape[1]] = ours[best]
    out[0] = 0
    return out


def _places(ids: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Indices of ids among others, from 1; 0 for those that are not there."""
    place = {name: index for index, name in enumerate(among, start=1)}
    return np.array([place.get(name, 0) for name in ids], np.int64)


def train(run: Run, callbacks: Callable[[], Sequence[keras.callbacks.Callback]]) -> None:
    """Trains the ranker and, where baselines are wanted, logistic regression on the same rows."""
    fitted = ranking.fit(run.config, ranking_data(run), run.folder / "checkpoints", callbacks)
    run.save_model(fitted.selected, "selected")
    run.save_model(fitted.final, "final")
    if _wants_baseline(run.config):
        plain = baseline(run)
        fitted = ranking.fit(plain.config, ranking_data(plain), run.folder / "checkpoints" / BASELINE, callbacks)
        run.save_model(fitted.final, BASELINE)
    if run.config.evaluate.folds:
        cross_validate(run, callbacks)


def cross_validate(run: Run, callbacks: Callable[[], Sequence[keras.callbacks.Callback]]) -> None:
    """Fits the ranker on every fold in time and writes folds.json: metrics of the first task, and their mean."""
    changes = {"refit": False}
    config = run.config.model_copy(update={"train": run.config.train.model_copy(update=changes)})
    found = []
    for number, split in enumerate(rolling(run.prepared.events, config.evaluate.folds), start=1):
        data = ranking_data(run, split)
        fitted = ranking.fit(config, data, run.folder / "checkpoints" / f"fold_{number}", callbacks)
        scored = ranking.RankScorer(fitted.selected).score(config, data, data.held_out(1))
        found.append(next(iter(ranking.measure(config.ranker.tasks, scored).values())))
    shared = set.intersection(*(set(metrics) for metrics in found))
    mean = {name: float(np.mean([metrics[name] for metrics in found])) for name in sorted(shared)}
    if run.writes:
        write_json(run.folder / _FOLDS, {"folds": found, "mean": mean})


def _wants_baseline(config: Config) -> bool:
    task = config.ranker.tasks[0]
    return config.evaluate.baselines and config.model.kind != BASELINE and task.kind == "binary"


def baseline(run: Run) -> Run:
    """The same run with logistic regression in the place of its ranker, for the first task."""
    config = run.config
    task = config.ranker.tasks[0]
    task = task.model_copy(update={} if task.loss not in ("bpr", "listwise") else {"loss": "bce"})
    changes = {"tasks": (task,), "head": "shared", "weighting": "fixed", "tower": (), "members": 1}
    updated = {
        "model": config.model.model_copy(update={"kind": BASELINE}),
        "ranker": config.ranker.model_copy(update=changes),
    }
    return run.with_config(config.model_copy(update=updated))


def evaluate(run: Run) -> dict[str, Any]:
    """Metrics of every task on valid and test; logistic regression beside the first on test."""
    config, data = run.config, ranking_data(run)
    scored = {
        name: ranking.RankScorer(_ranker(run, which)).score(config, data, data.held_out(split))
        for name, which, split in (("valid", "selected", 1), ("test", "final", 2))
    }
    tasks = config.ranker.tasks
    found = {name: ranking.measure(tasks, rows, config.evaluate.k) for name, rows in scored.items()}
    report: dict[str, Any] = {"rows": {name: len(rows.labels) for name, rows in scored.items()}}
    for name, metrics in found.items():
        report[name] = metrics[tasks[0].name] | {task.name: metrics[task.name] for task in tasks[1:]}
    report["parameters"] = _ranker(run, "final").count_trainable()
    if (run.folder / _FOLDS).exists():
        report["cross_validation"] = read_json(run.folder / _FOLDS)
    if tasks[0].kind == "binary":
        report["reliability"] = _reliability(scored["test"])
    return report | (_beside_baseline(run, scored["test"]) if _wants_baseline(config) else {})


def _ranker(run: Run, which: str) -> Ranker:
    return run.model(which)


def _reliability(scored: Scored) -> dict[str, list[float]]:
    given = np.isfinite(scored.labels[:, 0])
    curve = ranking_metrics.reliability(scored.labels[given, 0], scored.predictions[given, 0])
    return {name: values.tolist() for name, values in curve._asdict().items()}


def _beside_baseline(run: Run, ours: Scored) -> dict[str, Any]:
    plain = baseline(run)
    data = ranking_data(plain)
    theirs = ranking.RankScorer(_ranker(run, BASELINE)).score(plain.config, data, data.held_out(2))
    metrics = ranking.measure(plain.config.ranker.tasks, theirs, run.config.evaluate.k)
    report: dict[str, Any] = {"baselines": {BASELINE: next(iter(metrics.values()))}}
    given = np.isfinite(ours.labels[:, 0])
    labels = ours.labels[given, 0]
    if run.config.evaluate.bootstrap and 0 < labels.mean() < 1:
        rows = (ours.predictions[given, 0], theirs.predictions[given, 0])
        resamples, seed = run.config.evaluate.bootstrap, run.config.run.seed
        report["against_logistic"] = ranking_metrics.paired_bootstrap(labels, *rows, resamples, seed)
    return report


def results_table(report: Mapping[str, Any]) -> str:
    """Our ranker beside logistic regression on test, as text."""
    rows = {"tfrec": report["test"], **report.get("baselines", {})}
    names = [name for name, value in report["test"].items() if isinstance(value, float)]
    width = max(len(name) for name in rows)
    lines = [" ".join([f"{'test':<{width}}", *(f"{name:>{max(len(name), 7)}}" for name in names)])]
    for row, values in rows.items():
        numbers = (f"{values[name]:{max(len(name), 7)}.4f}" if name in values else " " * 7 for name in names)
        lines.append(" ".join([f"{row:<{width}}", *numbers]))
    lines += [
        f"against logistic regression: {name} {d['mean']:+.4f} [{d['low']:+.4f}, {d['high']:+.4f}]"
        for name, d in report.get("against_logistic", {}).items()
    ]
    return "\n".join(lines)
