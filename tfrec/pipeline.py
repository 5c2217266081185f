"""The road: prepare → train → evaluate → export → verify → serve, each stage on a run's folder."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfrec import cascade, cascade_serving, earlier, publishing, ranking, serving
from tfrec.artifact import export as artifacts
from tfrec.artifact import gate
from tfrec.artifact import verify as verification
from tfrec.artifact.golden import write_golden
from tfrec.cascade import holdout_of
from tfrec.config import Config
from tfrec.data import prepare as tables
from tfrec.data.tokens import warn_unknown
from tfrec.errors import ArtifactError, ConfigError
from tfrec.evaluation import baselines, bootstrap, metrics, ragged, slices
from tfrec.evaluation.holdouts import baskets, last_items
from tfrec.evaluation.ranks import Holdout, Scorer, rank
from tfrec.models.blend import Blend
from tfrec.runs import Run, read_json, write_arrays, write_json
from tfrec.training import blending, memory, retrieval, warm_start
from tfrec.training.peers import Peers
from tfrec.training.validation import RetrievalScorer

Say = Callable[[str], None]
MODEL_SERVER = "tensorflow_model_server"


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
        if (run.folder / "checkpoints").exists():
            raise ConfigError(
                "a trained run keeps its tables; they have changed since", str(run.folder), "Set another run.name"
            )
        run.statistics_path.unlink(missing_ok=True)  # it marks features as whole
        tables.prepare(config, run.folder / "prepared")
        run = Run(config)  # the check above may have read the tables that were just replaced
        report = run.prepared.report
        for note in report["notes"]:
            say(note)
        for problem, count in report["problems"].items():
            say(f"{problem}: {count:,}")
        run.make_features()
        say(f"prepared {report['users']:,} users, {report['items']:,} items, {report['events']:,} events")
        _report_text(run, say)
    return run


def _is_prepared(run: Run) -> bool:
    if not run.statistics_path.exists() or not (run.folder / "prepared").exists():
        return False
    if run.reads_text and "tokens" not in run.features("item"):
        return False  # prepared for a model without text
    return run.prepared.report["settings"] == tables.settings(run.config)


def _refuse_other_settings(run: Run) -> None:
    """A trained run keeps its settings; what only evaluation, export and serving read may change."""
    path = run.folder / "config.json"
    if not path.exists() or not (run.folder / "checkpoints").exists():
        return
    before, now = read_json(path), run.config.model_dump(mode="json")
    # The seed and what is a repeat decide which events are prepared.
    kept = {"run": ("seed",), "evaluate": ("repeats", "holdout")}
    sections = ["run", "data", "features", "model", "train", "evaluate"]
    # A ranker may be added to what retrieves already.
    if run.config.model.kind != "two_tower" or (run.folder / "checkpoints" / "cascade").exists():
        sections += ["ranker", "cascade"]
    for section in sections:
        keys = kept.get(section, now[section])
        differing = [key for key in keys if before.get(section, {}).get(key, now[section][key]) != now[section][key]]
        if differing:
            raise ConfigError(
                f"a run keeps the settings it was trained with; {section}.{differing[0]} was "
                f"{before.get(section, {}).get(differing[0])!r}",
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
    config: Config,
    say: Say = say,
    callbacks: Callable[[], Sequence[keras.callbacks.Callback]] = list,
    peers: Peers | None = None,
) -> Run:
    """Prepares what is lacking and trains; a killed training continues.

    Args:
        config: the settings.
        say: gets lines of progress.
        callbacks: makes Keras callbacks for each training (the choice of epochs, and the refit).
        peers: the processes that train together, of which the first prepares and writes.

    Raises:
        ConfigError: a process sees other settings or data than the first.
        RestartError: SIGTERM came, or a process is gone.
    """
    run = prepare(config, say) if peers is None or peers.leads else Run(config, writes=False)
    if peers and config.train.strategy == "multi_worker":
        run.agree(peers)
    if config.model.kind != "two_tower":
        ranking.train(run, lambda: [_Progress(say), *callbacks()])
        return run
    say(_where_events_are(run))
    data = run.retrieval_data()
    if config.train.init_from:
        known = Run.open(config.train.init_from)
        data = run.retrieval_data(start=warm_start.starter(known.model(), known.row_names(), run.row_names()))
    say(memory.check(memory.tables(config, data), memory.available()))
    fitted = retrieval.fit(config, data, run.folder / "checkpoints", lambda: [_Progress(say), *callbacks()])
    run.save_model(fitted.selected, "selected")
    run.save_model(fitted.final, "final")
    make_blend = _choose_blend(run, fitted, say) if config.model.blend and run.writes else None
    if config.cascade.candidates:
        if config.cascade.positions > 1:
            say("retrieval one position earlier, for the ranker")
            earlier.train(run, data, make_blend, lambda: [_Progress(say), *callbacks()])
        cascade.train(run, say, lambda: [_Progress(say), *callbacks()])
    return run


def _where_events_are(run: Run) -> str:
    prepared = run.prepared
    size = f"{prepared.groups.events:,} events take {prepared.groups.bytes() / 2**30:.3g} GiB"
    if prepared.fits:
        return f"{size}: in memory"
    sampled = len(np.unique(prepared.events["user"]))
    return (
        f"{size}, more than train.memory, {run.config.train.memory:g}: training reads them from Parquet; "
        f"the blend, baselines, metrics and stored histories are of {sampled:,} of {len(prepared.user_ids):,} users"
    )


def _choose_blend(run: Run, fitted: retrieval.Fitted, say: Say) -> Callable[[Run], Blend]:
    """Weights chosen with the model that has not seen valid; fitted again for the one that has.

    Returns:
        what fits a blend of the same settings on the train events of a run.
    """
    config = run.config
    texts = run.item_text_vectors() if "text" in config.model.blend else None
    # What a mask forbids is not worth counting.
    wanted = [name for name in config.model.blend if name != "frequency" or config.evaluate.repeats == "keep"]
    sources = blending.Sources(wanted, len(run.prepared.item_ids), texts, config.model.blend_history)
    valid, train_lists = holdout_of(run, 1), _lists(run, (0,))
    cosines = RetrievalScorer(fitted.selected).scorer(valid)
    chosen = blending.choose(cosines, valid, _read(run, valid), train_lists, sources)
    say(f"blend: {chosen}")
    run.save_blend(sources.make(chosen, train_lists), "selected")
    seen = _lists(run, (0, 1)) if config.train.refit else train_lists
    run.save_blend(sources.make(chosen, seen), "final")
    return lambda past: sources.make(chosen, _lists(past, (0,)))


def _lists(run: Run, splits: tuple[int, ...]) -> blending.Lists:
    prepared = run.prepared
    return blending.Lists(prepared.ragged(splits), baskets(prepared.events, splits, run.config.evaluate.holdout))


def _read(run: Run, holdout: Holdout) -> np.ndarray:
    """What the blend reads of each history, int32 [Q, L]."""
    longest = int(ragged.lengths(holdout.history).max(initial=0))
    return last_items(holdout.history, min(run.config.model.blend_history, longest))


def _scorer(run: Run, which: str, holdout: Holdout) -> Scorer:
    """What the served graph would answer: the blend, and popularity where nothing is known of a user."""
    score, blend = RetrievalScorer(run.model(which)).scorer(holdout), run.blend(which)
    read = _read(run, holdout)
    if blend:
        score = blending.blended(score, blend, read)
    if serving.knows_users(run):
        return score
    seen = (0, 1) if which == "final" else (0,)
    popular = serving.popularity(run.prepared.events, len(run.prepared.item_ids), seen)
    known = np.any(read > 0, axis=1, keepdims=True)
    return lambda rows: np.where(known[rows], score(rows), popular)


class _Progress(keras.callbacks.Callback):
    def __init__(self, say: Say):
        super().__init__()
        self._say = say

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        numbers = " ".join(f"{name} {value:.4g}" for name, value in (logs or {}).items() if "map" not in name)
        self._say(f"epoch {epoch + 1}/{self.params['epochs']} {numbers}")


def evaluate(config: Config, say: Say = say) -> dict[str, Any]:
    """Metrics of the model on valid and test beside baselines, written to metrics.json.

    per_query.npz keeps the monitored metric of every test query, ours and the baselines', in the order of "users".
    """
    run, settings = Run(config), config.evaluate
    _refuse_other_settings(run)
    if config.model.kind != "two_tower":
        alone = ranking.evaluate(run)
        write_json(run.folder / "metrics.json", alone)
        return alone
    holdouts = {name: holdout_of(run, split) for name, split in (("valid", 1), ("test", 2))}
    report: dict[str, Any] = {"queries": {name: len(holdout) for name, holdout in holdouts.items()}}
    stages = {"valid": "selected", "test": "final"}
    judged = {name: cascade.judge(run, which) for name, which in stages.items()} if config.cascade.candidates else {}
    for name, which in stages.items():
        scorer = _scorer(run, which, holdouts[name])
        scorer = cascade.reranked(scorer, judged[name]) if judged else scorer
        ranks = rank(scorer, holdouts[name], len(run.prepared.item_ids), top=max(settings.k))
        report[name] = metrics.summarize(ranks, settings.k, _counts(run))
    report["slices"] = slices.slices(ranks, holdouts["test"], _counts(run), settings.k)
    ours = metrics.per_query(ranks, settings.k)
    if settings.bootstrap:
        seed = config.run.seed
        report["intervals"] = {
            name: bootstrap.interval(values, settings.bootstrap, seed=seed)._asdict() for name, values in ours.items()
        }
    metric = config.train.monitor if config.train.monitor in ours else next(iter(ours))
    per_query = {"users": holdouts["test"].users, "tfrec": ours[metric]}
    if settings.baselines:
        say("fitting baselines")
        more, theirs = _baselines(run, holdouts, metric, ours[metric])
        report, per_query = report | more, per_query | theirs
    if judged:
        say("measuring the SavedModel through its own signature")
        report["cascade"] = cascade.report(run, judged) | {"artefact": cascade_serving.measure(run)}
    write_arrays(run.folder / "per_query.npz", per_query)
    write_json(run.folder / "metrics.json", report)
    return report


def _baselines(
    run: Run, holdouts: Mapping[str, Holdout], metric: str, ours: np.ndarray
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The report on baselines, and their metric of each test query."""
    settings = run.config.evaluate
    train = run.prepared.ragged((0,))
    text = run.item_text_vectors()
    items = len(run.prepared.item_ids)
    table = baselines.table(train, holdouts["valid"], holdouts["test"], items, text, settings.repeats, settings.k)
    fitted = {name: row for name, row in table.items() if "test" in row}
    report: dict[str, Any] = {
        "baselines": {name: row["test"] | {"chosen": row["chosen"]} for name, row in fitted.items()},
        "baselines_valid": {name: row["valid"] for name, row in fitted.items()},
        "skipped": {name: row["skipped"] for name, row in table.items() if "skipped" in row},
    }
    theirs = {name: row["per_query"][metric] for name, row in fitted.items()}
    if settings.bootstrap:
        best = max(fitted, key=lambda name: fitted[name]["valid"][metric])
        difference = bootstrap.paired(ours, theirs[best], settings.bootstrap, seed=run.config.run.seed)
        report["against_best_baseline"] = {"baseline": best, "metric": metric, **difference._asdict()}
    return report, theirs


def _counts(run: Run) -> np.ndarray:
    """Train events per item [N+1]."""
    return np.concatenate([[0], run.prepared.items["count"].to_numpy()])


def results_table(report: Mapping[str, Any]) -> str:
    """Our model beside the baselines on test, as text."""
    if "rows" in report:
        return ranking.results_table(report)
    rows = {"tfrec": report["test"], **report.get("baselines", {})}
    names = [name for name in report["test"] if name.partition("@")[0] in ("hr", "ndcg")]
    width = max(len(name) for name in rows)
    lines = [" ".join([f"{'test':<{width}}", *(f"{name:>8}" for name in names)])]
    lines += [
        " ".join([f"{row:<{width}}", *(f"{values[name]:8.4f}" for name in names)]) for row, values in rows.items()
    ]
    if "cascade" in report:
        lines.append(cascade.results_table(report["cascade"]))
    against = report.get("against_best_baseline")
    if against:
        lines.append(
            f"against {against['baseline']} (best on valid): {against['metric']} {against['mean']:+.4f} "
            f"[{against['low']:+.4f}, {against['high']:+.4f}]"
        )
    return "\n".join(lines)


def export(config: Config, say: Say = say, force: bool = False) -> Path:
    """Writes, verifies and publishes exports/NAME/VERSION, and returns it.

    Args:
        config: the settings.
        say: gets lines of progress.
        force: publish although the test metric falls below the bound.

    Raises:
        ArtifactError: it cannot be written, fails verification or the gate, or differs from the Keras model.
    """
    run, target = Run(config), Path(config.export.folder) / config.run.name
    _refuse_other_settings(run)
    about = publishing.card(run)
    about["gate"] = gate.decide(publishing.compare_versions(config, target, about), force)
    say(about["gate"]["reason"])
    made = publishing.make(run, about, say)

    def finish(folder: Path) -> None:
        say("verifying in a clean process")
        write_golden(folder, made.requests, config.run.name)
        report = verification.verify(folder, config.export.tf_serving)
        if not report.ok:
            raise ArtifactError("an artefact must pass verification; nothing was published", advice=str(report))
        publishing.compare_scores(folder, made)

    return artifacts.export(made.parts, target, about, finish)


def serve(config: Config, say: Say = say) -> int:
    """Serves exports/NAME until interrupted; returns an exit code.

    TensorFlow Serving's own server takes the process over when it is on PATH.

    Raises:
        ArtifactError: nothing was exported.
        ConfigError: a port that the server cannot take.
    """
    from tfrec.server import grpc_server

    folder = Path(config.export.folder) / config.run.name
    if not artifacts.versions(folder):
        raise ArtifactError("serving needs an exported version", str(folder), "Run tfrec train first")
    arguments = _serve_flags(config, folder)
    real = shutil.which(MODEL_SERVER)
    if real is None:
        say(f"{MODEL_SERVER} is not on PATH: starting the embedded server")
        return grpc_server.main([f"--host={config.serve.host}", *arguments])
    if not config.serve.port:
        raise ConfigError(f"{MODEL_SERVER} must get a port; 0 turns its gRPC off", 0, "Set serve.port")
    say(f"starting {real}; it listens on every interface, whatever serve.host says")
    sys.stdout.flush()
    os.execv(real, [real, *arguments])


def _serve_flags(config: Config, folder: Path) -> list[str]:
    """In the form --name=value, the only one that TensorFlow Serving reads; its base paths are absolute."""
    settings = config.serve
    return [
        *(f"--port={settings.port}", f"--rest_api_port={settings.rest_port}"),
        *(f"--grpc_max_threads={settings.threads}", f"--rest_api_num_threads={settings.threads}"),
        *(f"--model_name={config.run.name}", f"--model_base_path={folder.resolve()}"),
    ]
