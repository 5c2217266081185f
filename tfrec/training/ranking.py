"""Fits a ranker: rows, objective and validation from prepared events."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfrec.config import Config
from tfrec.data.impression_batches import ImpressionBatches
from tfrec.data.impressions import Impressions, check_classes
from tfrec.data.sampling import Sampler
from tfrec.evaluation import ranking_metrics, survival_metrics
from tfrec.models import ranking_losses
from tfrec.models.ranking.body import Sizes
from tfrec.models.ranking.ranker import Ranker
from tfrec.ranker_config import Task
from tfrec.training.candidates import Batch
from tfrec.training.fitting import Fitted, choose_and_refit, train_once
from tfrec.training.objectives import Objective
from tfrec.training.starts import start

_SCORED_AT_ONCE = 1024


@dataclass(frozen=True)
class RankingTables:
    """Stored features of users and items, row 0 for the unknown, and the sizes of what a ranker reads."""

    sizes: Sizes
    user_columns: Mapping[str, np.ndarray]
    item_columns: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class RankingData(RankingTables):
    """Everything that a ranker learns from.

    Args:
        train: rows of these splits, (0,) or (0, 1).
        held_out: rows of split 1 (valid) or 2 (test).
        sampler: negatives that none of these splits knows as positives; None = rows have labels.
    """

    train: Callable[[tuple[int, ...]], Impressions]
    held_out: Callable[[int], Impressions]
    sampler: Callable[[tuple[int, ...]], Sampler] | None = None


class Scored(NamedTuple):
    """Predictions beside labels.

    Args:
        labels: float32 [R, T], NaN where a task has none.
        predictions: float32 [R, T].
        groups: whose row it is, int [R]: the user, or with sampled negatives the interaction.
    """

    labels: np.ndarray
    predictions: np.ndarray
    groups: np.ndarray


def fit(
    config: Config,
    data: RankingData,
    folder: Path,
    callbacks: Callable[[], Sequence[keras.callbacks.Callback]] = list,
) -> Fitted[Ranker]:
    """Trains on train with early stopping on valid; with ``train.refit`` once more on train + valid.

    Args:
        config: the settings.
        data: tensors of :class:`RankingData`.
        folder: of checkpoints and logs; a killed fit continues from it.
        callbacks: makes further Keras callbacks, anew for each of the two trainings.

    Raises:
        DataError: a binary task has one class only, in train or in valid.
        TrainingError: there is nothing to train on, or the trainer fails.
    """
    monitor = config.ranker.monitor
    mode = "min" if monitor in ("logloss", "rmse") else "max"
    return choose_and_refit(config, functools.partial(_train, config, data), monitor, mode, folder, callbacks)


def _train(
    config: Config,
    data: RankingData,
    splits: tuple[int, ...],
    epochs: int,
    folder: Path,
    callbacks: Sequence[keras.callbacks.Callback],
) -> tuple[Ranker, list[dict[str, float]]]:
    keras.utils.set_random_seed(config.run.seed)
    rows = data.train(splits)
    if not data.sampler:
        check_classes(rows.labels, config.ranker.tasks, "train")
    sampler = data.sampler(splits) if data.sampler else None
    gap, length = config.ranker.history_gap, data.sizes.length
    batches = ImpressionBatches(rows, config.train.batch, config.run.seed, length, gap, sampler)
    return train_once(
        config,
        batches,
        lambda: build(config, data, rows.labels),
        objective,
        lambda model: _validation(config, data, model) if splits == (0,) else dict,
        epochs,
        folder,
        callbacks,
    )


def build(config: Config, data: RankingData, labels: np.ndarray) -> Ranker:
    """A fresh ranker with its tables filled, whose outputs start where the training labels [R, T] are."""
    model = filled_ranker(config, config.model.kind, data)
    starts = {task.name: start(task, own) for task, own in zip(config.ranker.tasks, labels.T, strict=True)}
    model.start_at({name: values for name, values in starts.items() if values is not None})
    return model


def filled_ranker(config: Config, kind: str, tables: RankingTables) -> Ranker:
    """A fresh ranker of a kind that holds the features of users and items."""
    shapes = [
        {name: (column.shape, column.dtype.name) for name, column in columns.items()}
        for columns in (tables.user_columns, tables.item_columns)
    ]
    model = Ranker(kind, tables.sizes, config.ranker, *shapes, dtype=config.train.precision)
    model.build()
    model.user_table.fill(tables.user_columns)
    model.item_table.fill(tables.item_columns)
    return model


def objective(model: Ranker) -> Objective:
    """The weighted sum of the tasks' losses of every row; a label that is NaN adds nothing."""
    tasks = model.settings.tasks
    weights = tf.constant([task.weight for task in tasks])

    def rows_loss(batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
        inputs = {name: value for name, value in batch.items() if name not in ("label", "weight")}
        logits = model(inputs, training=True)
        losses = [
            [task_loss(task, own, batch["label"][..., i]) for own in model.of_members(logits[task.name])]
            for i, task in enumerate(tasks)
        ]
        each = weights * tf.reduce_mean(tf.stack(losses, axis=-1), axis=0)  # [B, T]
        if model.settings.weighting == "uncertainty":
            total = ranking_losses.uncertainty_weighted(each, model.log_variances.value)
        else:
            total = tf.reduce_sum(each, axis=-1)
        return tf.reduce_sum(total * batch["weight"]), tf.reduce_sum(batch["weight"])

    return rows_loss


def task_loss(task: Task, logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Loss of one task, float32 [B], from its logits [B] or [B, N], with one more axis where it has several numbers,
    and labels [B] or [B, N].
    """
    given = tf.math.is_finite(labels)
    labels = tf.where(given, labels, 0.0)
    if task.loss == "bpr":
        return ranking_losses.bpr(logits, labels)
    if task.loss == "listwise":
        return ranking_losses.listwise(logits, labels)
    if task.kind == "value":
        losses = ranking_losses.ziln(logits, labels)
    elif task.kind == "survival":
        stayed = tf.floor(labels)
        observed = tf.equal(labels, stayed)
        period = tf.cast(stayed, tf.int32) - tf.cast(~observed, tf.int32)
        losses = ranking_losses.survival(logits, period, observed)
    elif task.kind == "number":
        losses = ranking_losses.mse(logits, labels)
    elif task.loss == "focal":
        losses = ranking_losses.focal(logits, labels, task.focus)
    else:
        losses = ranking_losses.bce(logits, labels, task.positive_weight)
    losses = tf.where(given, losses, 0.0)
    return losses if len(losses.shape) == 1 else tf.reduce_mean(losses, axis=1)


class RankScorer:
    """Predictions of a ranker, one compiled function for its life."""

    def __init__(self, model: Ranker):
        self.model = model
        self._predict = tf.function(lambda inputs: model.predictions(model(inputs)), reduce_retracing=True)

    def score(self, config: Config, data: RankingData, rows: Impressions) -> Scored:
        """Predictions of every row, in their order; with a sampler also of its negatives."""
        sampler = data.sampler((0, 1, 2)) if data.sampler else None
        batches = ImpressionBatches(
            rows,
            min(_SCORED_AT_ONCE, max(len(rows), 1)),
            config.run.seed,
            data.sizes.length,
            sampler=sampler,
            shuffle=False,
        )
        labels, predictions = [], []
        for batch in batches.dataset(epoch=0):
            labels.append(batch.pop("label").numpy())
            batch.pop("weight")
            found = self._predict(batch)
            predictions.append(np.stack([found[task.name] for task in config.ranker.tasks], axis=-1))
        label, prediction = (np.concatenate(parts)[: len(rows)] for parts in (labels, predictions))
        each = label.shape[1] if data.sampler else 1
        groups = np.repeat(np.arange(len(rows)), each) if data.sampler else rows.columns["user"]
        tasks = len(config.ranker.tasks)
        return Scored(label.reshape(-1, tasks), prediction.reshape(-1, tasks), groups)


def measure(tasks: Sequence[Task], scored: Scored, k: Sequence[int] = ()) -> dict[str, dict[str, float]]:
    """Metrics of every task over the rows that have its label, {task: {metric: number}}.

    Args:
        tasks: T.
        scored: rows.
        k: also NDCG of each group's rows re-ranked, at these K, where a group has a positive.
    """
    out = {}
    for i, task in enumerate(tasks):
        given = np.isfinite(scored.labels[:, i])
        labels, predictions, groups = scored.labels[given, i], scored.predictions[given, i], scored.groups[given]
        out[task.name] = _summary(task, labels, predictions, groups)
        if task.kind in ("binary", "value") and np.any(labels > 0):
            gains = {f"ndcg@{n}": ranking_metrics.ndcg(labels, predictions, groups, n) for n in k}
            out[task.name] |= {name: float(values.mean()) for name, values in gains.items()}
    return out


def _summary(task: Task, labels: np.ndarray, predictions: np.ndarray, groups: np.ndarray) -> dict[str, float]:
    if task.kind == "binary":
        return ranking_metrics.summarize_binary(labels, predictions, groups)
    if task.kind == "survival":
        stayed = np.floor(labels)
        return survival_metrics.summarize_survival(stayed, labels == stayed, predictions, groups, task.horizon)
    return ranking_metrics.summarize_value(labels, predictions)


def _validation(config: Config, data: RankingData, model: Ranker) -> Callable[[], dict[str, float]]:
    rows = data.held_out(1)
    if not data.sampler:
        check_classes(rows.labels[:, :1], config.ranker.tasks[:1], "valid")
    scorer = RankScorer(model)

    def validate() -> dict[str, float]:
        first, *others = measure(config.ranker.tasks, scorer.score(config, data, rows)).items()
        logs = {f"val_{metric}": value for metric, value in first[1].items()}
        return logs | {f"val_{task}_{metric}": v for task, found in others for metric, v in found.items()}

    return validate
