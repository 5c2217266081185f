"""Epochs chosen on validation data, then a refit on train + valid: the same for every kind of model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import keras

from tfrec.config import Config
from tfrec.data.parquet_batches import ParquetBatches
from tfrec.training.loop import Batches, Trainer
from tfrec.training.objectives import Objective
from tfrec.training.optimizers import Warmup, inner, make_optimizer
from tfrec.training.strategies import make_strategy

M = TypeVar("M", bound=keras.Model)
Trained = TypeVar("Trained", bound=keras.Model, covariant=True)
Logs = list[dict[str, float]]
Callbacks = Sequence[keras.callbacks.Callback]


@dataclass(frozen=True)
class Fitted(Generic[M]):
    """The model chosen on validation data, the final one, and the logs of the choice."""

    selected: M
    final: M
    history: Logs


class Training(Protocol[Trained]):
    """Trains on some splits for some epochs, and keeps checkpoints in a folder."""

    def __call__(
        self, splits: tuple[int, ...], epochs: int, folder: Path, callbacks: Callbacks
    ) -> tuple[Trained, Logs]: ...


def choose_and_refit(
    config: Config,
    training: Training[M],
    monitor: str,
    mode: str,
    folder: Path,
    callbacks: Callable[[], Callbacks] = list,
) -> Fitted[M]:
    """Trains on train with early stopping on valid; with ``train.refit`` once more on train + valid.

    Of the epochs, ``train.keep`` takes the best or the last.

    Args:
        config: the settings.
        training: trains once.
        monitor: validation metric that stops.
        mode: "max" or "min".
        folder: of checkpoints and logs; a killed fit continues from it.
        callbacks: makes further Keras callbacks, anew for each of the two trainings.
    """
    settings = config.train
    stopper = keras.callbacks.EarlyStopping(
        monitor=f"val_{monitor}",
        mode=mode,
        patience=settings.patience or settings.epochs,
        restore_best_weights=settings.keep == "best",
    )
    selected, history = training((0,), settings.epochs, folder / "select", [stopper, *callbacks()])
    if not settings.refit or not settings.epochs:
        return Fitted(selected, selected, history)
    kept = history[: stopper.best_epoch + 1] if settings.keep == "best" else history
    rates = [logs["learning_rate"] for logs in kept]
    replay = keras.callbacks.LearningRateScheduler(lambda epoch, rate: rates[epoch])
    final, _ = training((0, 1), len(kept), folder / "refit", [replay, *callbacks()])
    return Fitted(selected, final, history)


def train_once(
    config: Config,
    batches: Batches,
    build: Callable[[], M],
    objective: Callable[[M], Objective],
    validation: Callable[[M], Callable[[], dict[str, float]]],
    epochs: int,
    folder: Path,
    callbacks: Callbacks,
) -> tuple[M, Logs]:
    """One training, with the optimizer, strategy and loggers of the settings."""
    settings = config.train
    strategy = make_strategy(settings)
    with strategy.scope():
        model = build()
        model.compile(optimizer=make_optimizer(settings))
        model.optimizer.build(model.trainable_variables)
    validate = validation(model)
    trainer = Trainer(
        model,
        objective(model),
        batches,
        strategy,
        folder,
        validate=lambda: {"learning_rate": float(inner(model.optimizer).learning_rate.numpy())} | validate(),
        callbacks=[Warmup(settings.learning_rate, settings.warmup_steps), *_loggers(config, folder), *callbacks],
        accumulate=settings.accumulate,
        clip_norm=settings.clip_norm,
        checkpoint_steps=settings.checkpoint_steps,
        jit=settings.jit,
        sharded=isinstance(batches, ParquetBatches) and batches.shards > 1,
    )
    return model, trainer.fit(epochs)


def _loggers(config: Config, folder: Path) -> list[keras.callbacks.Callback]:
    folder.mkdir(parents=True, exist_ok=True)
    loggers: list[keras.callbacks.Callback] = [keras.callbacks.CSVLogger(str(folder / "history.csv"))]
    if config.train.tensorboard:
        loggers.append(keras.callbacks.TensorBoard(str(folder / "tensorboard"), write_graph=False))
    return loggers
