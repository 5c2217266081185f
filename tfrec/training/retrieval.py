"""Fits a two-tower model: epochs chosen on validation data, then a refit on train + valid."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfrec.config import Config, Model
from tfrec.data.batches import HistoryBatches
from tfrec.data.groups import EventGroups
from tfrec.data.parquet_batches import ParquetBatches
from tfrec.data.served import ServedBatches
from tfrec.errors import TrainingError
from tfrec.evaluation import ragged
from tfrec.evaluation.holdouts import lists_of, make_holdout
from tfrec.evaluation.ragged import Ragged
from tfrec.models.negatives import Negatives
from tfrec.models.text import TextEncoder
from tfrec.models.two_tower import TwoTower
from tfrec.training.cluster import read_task
from tfrec.training.fitting import Fitted, choose_and_refit, train_once
from tfrec.training.objectives import (
    Objective,
    next_item_gbce,
    next_item_in_batch,
    next_item_sampled_softmax,
    next_item_softmax,
)
from tfrec.training.validation import RetrievalScorer

AnyBatches = HistoryBatches | ParquetBatches | ServedBatches


@dataclass(frozen=True)
class RetrievalData:
    """Everything that a two-tower model learns from.

    Args:
        events: "user", "item" int32 and "split" int8, sorted by user and time.
        users, items: U and N.
        user_columns, item_columns: feature tensors, row 0 for the unknown; "text" or "tokens" among the items'.
        vocabularies: embedding rows of each categorical feature.
        encoder: the pretrained text encoder when it learns, else None.
        counts: train events of each "item" and "user", int64 [N + 1] and [U + 1], for tables of frequent ids.
        groups: all events, to train on from disk; ``events`` are then those of a sample of users.
        start: changes the freshly built model, as a warm start does.
    """

    events: Mapping[str, np.ndarray]
    users: int
    items: int
    user_columns: Mapping[str, np.ndarray]
    item_columns: Mapping[str, np.ndarray]
    vocabularies: Mapping[str, int]
    encoder: TextEncoder | None = None
    counts: Mapping[str, np.ndarray] = field(default_factory=dict)
    groups: EventGroups | None = None
    start: Callable[[TwoTower], None] | None = None

    def sizes(self) -> dict[str, object]:
        columns = self.item_columns
        width = columns["text"].shape[1] if "text" in columns else 0
        return {
            "users": self.users,
            "items": self.items,
            "text_width": self.encoder.hidden if self.encoder else width,
            "tokens": columns["tokens"].shape[1] if "tokens" in columns else 0,
            "vocabularies": dict(self.vocabularies),
        }


def fit(
    config: Config,
    data: RetrievalData,
    folder: Path,
    callbacks: Callable[[], Sequence[keras.callbacks.Callback]] = list,
) -> Fitted[TwoTower]:
    """Trains on train with early stopping on valid; with ``train.refit`` once more on train + valid.

    Args:
        config: the settings.
        data: tensors of :class:`RetrievalData`.
        folder: of checkpoints and logs; a killed fit continues from it.
        callbacks: makes further Keras callbacks, anew for each of the two trainings.

    Raises:
        TrainingError: there is nothing to train or validate on, or the trainer fails.
    """
    return choose_and_refit(
        config, functools.partial(_train, config, data), config.train.monitor, "max", folder, callbacks
    )


def build(config: Config, data: RetrievalData) -> TwoTower:
    """A fresh model with its tables filled and pretrained weights in place."""
    encoder = data.encoder.get_config() if data.encoder else None
    frequent = frequent_ids(config.model, data.counts)
    sizes = data.sizes() | {"frequent": {side: int(kept.sum()) for side, kept in frequent.items()}}
    model = TwoTower(config.features.schema_, config.model, sizes, encoder, dtype=config.train.precision)
    model.build()
    for side, kept in frequent.items():
        tower = model.item_tower if side == "item" else model.user_tower
        if tower.id_embedding:
            tower.id_embedding.fill(kept)
    model.item_table.fill(data.item_columns)
    model.user_table.fill(data.user_columns)
    if data.encoder:
        model.item_tower.encoder.set_weights(data.encoder.get_weights())
    if data.start:
        data.start(model)
    return model


def frequent_ids(settings: Model, counts: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Which ids get a row, bool [N + 1], of the sides whose rare ids share one."""
    tables = {"item": settings.item_table, "user": settings.user_table}
    wanted = {side: table.min_count for side, table in tables.items() if table.min_count > 1}
    return {side: (counts[side] >= least) & (np.arange(len(counts[side])) > 0) for side, least in wanted.items()}


def _train(
    config: Config,
    data: RetrievalData,
    splits: tuple[int, ...],
    epochs: int,
    folder: Path,
    callbacks: Sequence[keras.callbacks.Callback],
) -> tuple[TwoTower, list[dict[str, float]]]:
    keras.utils.set_random_seed(config.run.seed)
    batches = _batches(config, data, splits)
    return train_once(
        config,
        batches,
        lambda: build(config, data),
        lambda model: _objective(config, data, model, batches),
        lambda model: _validation(config, data, model) if splits == (0,) else dict,
        epochs,
        folder,
        callbacks,
    )


def _batches(config: Config, data: RetrievalData, splits: tuple[int, ...]) -> AnyBatches:
    settings: dict[str, Any] = {
        "length": config.model.history_length,
        "batch": config.train.batch,
        "seed": config.run.seed,
        "targets": config.train.targets,
        "windows": config.train.windows,
        "first_event": config.model.user_id,
    }
    service = config.train.data_service
    if data.groups is not None and service:
        advice = "Unset it, or raise train.memory"
        raise TrainingError("train.data_service makes batches of events that fit in memory", service, advice)
    if data.groups is not None:
        return ParquetBatches(data.groups, splits, **settings | _shard(config))
    batches = HistoryBatches(*lists_of(data.events, data.users, splits), **settings)
    return ServedBatches(batches, service) if service else batches


def _shard(config: Config) -> dict[str, Any]:
    """Which part of each batch this worker makes, of how many."""
    if config.train.strategy != "multi_worker":
        return {}
    task = read_task(config.train.strategy)
    return {"shard": task.place, "shards": len(task.names)}


def _objective(config: Config, data: RetrievalData, model: TwoTower, batches: AnyBatches) -> Objective:
    settings = config.train
    if settings.loss == "softmax":
        return next_item_softmax(model, settings.static)
    counts = batches.target_counts(data.items)
    if settings.loss == "in_batch":
        return next_item_in_batch(model, counts, settings.hard_negatives, static=settings.static)
    chances = counts if settings.negative_sampling == "popularity" else np.ones(data.items + 1)
    drawn = Negatives(settings.negatives, chances, config.run.seed)
    if settings.loss == "gbce":
        return next_item_gbce(model, drawn, settings.calibration, settings.static)
    if settings.negative_sampling == "mixed":
        return next_item_in_batch(model, counts, drawn=drawn, static=settings.static)
    return next_item_sampled_softmax(model, drawn, settings.static)


def _validation(config: Config, data: RetrievalData, model: TwoTower) -> Callable[[], dict[str, float]]:
    holdout = make_holdout(data.events, data.users, split=1, repeats=config.evaluate.repeats)
    if config.train.epochs and not len(holdout):
        raise TrainingError("choosing epochs needs users with validation events", 0, "Change data.split")
    scorer = RetrievalScorer(model)
    ks = (int(config.train.monitor.rpartition("@")[2]),)

    def validate() -> dict[str, float]:
        return {f"val_{name}": value for name, value in scorer.metrics(holdout, ks).items()}

    return validate


def stored_histories(data: RetrievalData, length: int) -> Ragged:
    """The last items of each user in train + valid, at most ``length``; list 0 is empty."""
    return ragged.last(lists_of(data.events, data.users, (0, 1)), length)
