"""A search over settings: each trial is a run; a killed search continues, and several processes share one."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import keras
from pydantic import BaseModel

from tfrec import pipeline
from tfrec.config import Config, load, validate
from tfrec.errors import ConfigError, TfrecError, TrainingError
from tfrec.pipeline import Say, say
from tfrec.runs import read_json, write_json
from tfrec.search_space import Axis
from tfrec.toml_text import toml_text

try:
    import optuna
except ImportError as error:
    raise ConfigError("tuning needs Optuna, which is not installed", advice="pip install 'tfrec[tune]'") from error

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import TrialState

# What a search sets itself, and what no validation metric depends on.
_FIXED = (
    *("run.name", "run.folder", "train.monitor", "train.refit", "model.blend", "model.blend_history"),
    *("evaluate.baselines", "evaluate.bootstrap", "evaluate.k", "export", "serve", "tune"),
)
_TRIAL = {"train.refit": False, "model.blend": [], "evaluate.baselines": False}
_POLL = 1.0  # seconds between looks at the trials of other processes


class Best(NamedTuple):
    """The best trial so far, and the settings that it leads to."""

    path: Path
    trial: int
    metric: str
    value: float


def tune(config: Config, say: Say = say) -> Best:
    """Searches ``tune.space`` for the settings with the highest validation metric and writes them to best.toml.

    A trial's value is the best epoch's metric of the two-tower cosine on validation data; test data is never read.

    Args:
        config: the settings; the search is kept in runs/NAME-tune.
        say: gets lines of progress.

    Raises:
        ConfigError: an entry of the space is no setting or has a value that the setting refuses, or the folder
            holds another search.
        TrainingError: no trial was trained to its end.
    """
    return Search(config, say).run()


class Search:
    """One search in runs/NAME-tune: journal.log of Optuna, study.json, tables/, trial-N/ and best.toml."""

    def __init__(self, config: Config, say: Say):
        self._config, self._say = config, say
        self._settings = config.tune
        self._metric = config.tune.metric or config.train.monitor
        self._axes = distributions(config)
        self._grid = list(itertools.product(*(axis.choices for axis in config.tune.space.values())))
        self.folder = Path(config.run.folder) / f"{config.run.name}-tune"

    def run(self) -> Best:
        """Works on trials until none is left, neither here nor in another process."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with _locked(self.folder / "lock"):
            _keep_settings(self.folder / "study.json", self._config)
            own = {"run.name": "tables", "run.folder": str(self.folder)}
            pipeline.prepare(_changed(self._config, own), self._say)
            study = self._study()
        ends = time.monotonic() + (self._settings.seconds or float("inf"))
        while time.monotonic() < ends:
            with self._claimed(study) as trial:
                if trial:
                    self._work(study, trial)
                    continue
            if not study.get_trials(states=(TrialState.RUNNING,)):
                break
            time.sleep(_POLL)
        return self._best(study)

    def _study(self) -> optuna.Study:
        optuna.logging.set_verbosity(optuna.logging.ERROR)  # our own lines say it
        storage = optuna.storages.JournalStorage(
            JournalFileBackend(str(self.folder / "journal.log"), _JournalLock(self.folder / "journal.lock"))
        )
        least, pruners = self._settings.prune, optuna.pruners
        pruner = pruners.MedianPruner(n_startup_trials=least) if least else pruners.NopPruner()
        name = self._config.run.name
        return optuna.create_study(
            storage=storage, study_name=name, direction="maximize", pruner=pruner, load_if_exists=True
        )

    @contextmanager
    def _claimed(self, study: optuna.Study) -> Iterator[optuna.Trial | None]:
        """A trial that no living process works on: one that was left, or a new one; None when there is none."""
        with _locked(self.folder / "lock"):
            trial, mine = self._left(study)
            if trial is None and (trial := self._new(study)):
                mine = self._own(trial.number)
        try:
            yield trial
        finally:
            if mine is not None:
                os.close(mine)

    def _left(self, study: optuna.Study) -> tuple[optuna.Trial | None, int | None]:
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if (mine := self._own(trial.number)) is not None:
                self._say(f"trial {trial.number}: continued")
                return optuna.Trial(study, trial._trial_id), mine
        return None, None

    def _own(self, number: int) -> int | None:
        """The file descriptor of a trial's lock, which ends with its process; None when another has it."""
        folder = self._trial_folder(number)
        folder.mkdir(exist_ok=True)
        return _lock(folder / "lock", fcntl.LOCK_NB)

    def _new(self, study: optuna.Study) -> optuna.Trial | None:
        trials = study.get_trials(deepcopy=False)
        waiting = [trial for trial in trials if trial.state == TrialState.WAITING]
        started, bayesian = len(trials) - len(waiting), self._settings.sampler == "bayesian"
        if started >= (self._settings.trials if bayesian else len(self._grid)):
            return None
        if not bayesian and not waiting:
            point = zip(self._axes, self._grid[started], strict=True)
            study.enqueue_trial({name: json.dumps(value) for name, value in point})
        # A seed for each trial: processes that share a search, or continue one, must not draw the same numbers.
        study.sampler = optuna.samplers.TPESampler(seed=self._config.run.seed + started)
        return study.ask(self._axes)

    def _work(self, study: optuna.Study, trial: optuna.Trial) -> None:
        point, name = _point(trial.params), f"trial {trial.number}"
        self._say(f"{name}: {', '.join(f'{key} = {_shown(value)}' for key, value in point.items())}")
        try:
            value = self._train(trial, point)
        except optuna.TrialPruned:
            study.tell(trial, state=TrialState.PRUNED)
            self._say(f"{name}: pruned after epoch {len(_reported(trial))}")
        except TfrecError as error:
            trial.set_user_attr("reason", str(error))
            study.tell(trial, state=TrialState.FAIL)
            self._say(f"{name}: failed: {error}")
        else:
            study.tell(trial, value)
            best = self._best(study)
            self._say(f"{name}: {self._metric} {value:.4f}; the best is {best.value:.4f} of trial {best.trial}")

    def _train(self, trial: optuna.Trial, point: Mapping[str, Any]) -> float:
        number = trial.number
        own = {"run.name": f"trial-{number}", "run.folder": str(self.folder), "train.monitor": self._metric}
        config = _changed(self._config, {**point, **_TRIAL, **own})
        self._share_tables(self._trial_folder(number))
        keras.utils.clear_session()
        pipeline.train(
            config, lambda line: self._say(f"trial {number}: {line}"), lambda: [_Reporter(trial, self._metric)]
        )
        # Of the storage, because a trial that was killed after its last epoch has nothing more to report.
        if not (values := _reported(trial)):
            raise TrainingError("a trial must train an epoch", config.train.epochs, "Set train.epochs")
        return max(values.values())

    def _trial_folder(self, number: int) -> Path:
        return self.folder / f"trial-{number}"

    def _share_tables(self, folder: Path) -> None:
        """Links to the prepared files; a trial of other data replaces them by its own."""
        for name in ("prepared", "features"):
            if not (folder / name).exists():
                beside = folder / f".{name}.partial"
                shutil.rmtree(beside, ignore_errors=True)
                shutil.copytree(self.folder / "tables" / name, beside, copy_function=os.link)
                beside.rename(folder / name)

    def _best(self, study: optuna.Study) -> Best:
        """Writes best.toml for the best of all trials that ended."""
        with _locked(self.folder / "lock"):
            if not study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
                reasons = [trial.user_attrs.get("reason") for trial in study.trials]
                told = next((reason for reason in reasons if reason), "none was trained in the time given")
                raise TrainingError(f"a search must train a trial to its end; {told}")
            best, value = study.best_trial, study.best_value
            own = {"run.name": f"{self._config.run.name}-best", "train.monitor": self._metric}
            config = _changed(self._config, {**_point(best.params), **own})
            path = self.folder / "best.toml"
            _write(path, config, f"{self._metric} {value:.6f} on validation data, trial {best.number}")
        return Best(path, best.number, self._metric, value)


class _Reporter(keras.callbacks.Callback):
    """Tells Optuna the metric of each epoch and ends a trial that is below the median."""

    def __init__(self, trial: optuna.Trial, metric: str):
        super().__init__()
        self._trial, self._metric = trial, metric

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        # A trial that continues may repeat its last epoch.
        if epoch not in _reported(self._trial):
            self._trial.report((logs or {})[f"val_{self._metric}"], epoch)
        if self._trial.should_prune():
            raise optuna.TrialPruned


def _reported(trial: optuna.Trial) -> dict[int, float]:
    return trial.study.get_trials(deepcopy=False)[trial.number].intermediate_values


def _point(params: Mapping[str, Any]) -> dict[str, Any]:
    """Settings and their values; choices are kept as JSON, since Optuna takes no lists."""
    return {name: json.loads(value) if isinstance(value, str) else value for name, value in params.items()}


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def distributions(config: Config) -> dict[str, BaseDistribution]:
    """Optuna's distribution of each entry of ``tune.space``.

    Raises:
        ConfigError: there is none, or one is no setting, not to be tuned, or refused by the setting.
    """
    if not config.tune.space:
        raise ConfigError("a search needs an entry in tune.space", advice="See docs/settings.md")
    return {name: _distribution(config, name, axis) for name, axis in config.tune.space.items()}


def _distribution(config: Config, name: str, axis: Axis) -> BaseDistribution:
    if name in _FIXED or name.partition(".")[0] in _FIXED:
        raise ConfigError("tune.space must hold settings that change a validation metric of one model", name)
    values = [_value(_changed(config, {name: end}), name) for end in axis.ends()]
    if any(isinstance(value, BaseModel) for value in values):
        raise ConfigError("tune.space must hold settings, not sections", name)
    if axis.choices:
        return CategoricalDistribution([json.dumps(choice) for choice in axis.choices])
    low, high = values
    return (IntDistribution if isinstance(low, int) else FloatDistribution)(low, high, axis.log)


def _value(config: Config, name: str) -> Any:
    found: Any = config
    for part in name.split("."):
        found = getattr(found, part)
    return found


def _changed(config: Config, values: Mapping[str, Any]) -> Config:
    """The settings that were given, without the search, and with other values."""
    tree = _given(config)
    for name, value in values.items():
        *sections, leaf = name.split(".")
        place = tree
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise ConfigError(f"tune.space must name settings; {section} has none below it", name)
        place[leaf] = value
    return validate(tree)


def _given(config: Config) -> dict[str, Any]:
    return config.model_dump(mode="json", exclude_unset=True, exclude_none=True, exclude={"tune"})


def _write(path: Path, config: Config, note: str) -> None:
    """Writes beside, reads it back, then renames."""
    beside = path.with_name(f".{path.name}")
    beside.write_text(f"# {note}\n#   tfrec train {path}\n\n{toml_text(_given(config))}", encoding="utf-8")
    if load(beside) != config:
        raise ConfigError("settings must be the same after a round trip through TOML", str(beside))
    beside.replace(path)


def _keep_settings(path: Path, config: Config) -> None:
    """Refuses to continue a search with other settings than it began with."""
    now = config.model_dump(
        mode="json", exclude={"export": True, "serve": True, "tune": {"trials", "seconds", "prune"}}
    )
    if not path.exists():
        write_json(path, now)
        return
    before = read_json(path)
    for section, settings in now.items():
        for key, value in settings.items():
            if (was := before.get(section, {}).get(key)) != value:
                raise ConfigError(
                    f"a search keeps the settings it began with; {section}.{key} was {was!r}",
                    value,
                    f"Set another run.name, or remove {path.parent}",
                )


def _lock(path: Path, how: int = 0) -> int | None:
    """An exclusive lock that the system ends with its process; None where another has it and ``how`` is not to wait."""
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | how)
    except BlockingIOError:
        os.close(file)
        return None
    return file


class _JournalLock(JournalFileOpenLock):
    """Ends with its process, where Optuna's own would hold up the others for half a minute after a kill."""

    def __init__(self, path: Path):
        super().__init__(str(path))
        self._path = path
        self._file: int | None = None

    def acquire(self) -> bool:
        self._file = _lock(self._path)
        return True

    def release(self) -> None:
        if self._file is not None:
            os.close(self._file)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    file = _lock(path)
    try:
        yield
    finally:
        if file is not None:
            os.close(file)
