"""One training loop for every strategy: strategy.run, Keras optimizers and callbacks, exact resume."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import keras
import tensorflow as tf

from tfrec.errors import TrainingError
from tfrec.models.two_tower import Table
from tfrec.training import checkpoints
from tfrec.training.objectives import Batch, Objective


class Batches(Protocol):
    """Training batches in an order that is a function of epoch and step."""

    @property
    def steps(self) -> int: ...

    def dataset(self, epoch: int, first_step: int = 0) -> tf.data.Dataset: ...


@dataclass
class Trainer:
    """Trains a Keras model on an objective, epoch by epoch, and can be killed at any step.

    A restart with the same arguments continues from the last checkpoint in ``folder`` and ends with the
    weights of an uninterrupted run.

    Args:
        model: compiled with its optimizer, built under ``strategy``.
        objective: batch -> (sum of losses, sum of weights).
        batches: global batches; each replica gets an equal part.
        strategy: tf.distribute strategy.
        folder: of checkpoints.
        validate: what to log after an epoch beside the loss.
        callbacks: Keras callbacks; their state is checkpointed.
        accumulate: parts of a replica's batch whose gradients are added before an update.
        clip_norm: largest global norm of the gradient, after all replicas are added.
        checkpoint_steps: steps between checkpoints; 0 = epochs only.
    """

    model: keras.Model
    objective: Objective
    batches: Batches
    strategy: tf.distribute.Strategy
    folder: Path
    validate: Callable[[], dict[str, float]] = dict
    callbacks: Sequence[keras.callbacks.Callback] = ()
    accumulate: int = 1
    clip_norm: float | None = None
    checkpoint_steps: int = 0

    def __post_init__(self) -> None:
        self._loss = tf.Variable(0.0, trainable=False, name="epoch_loss")
        self._bad_step = tf.Variable(-1, trainable=False, name="bad_step", dtype=tf.int64)
        self._update = tf.function(self._global_step)
        constant = {
            id(variable)
            for layer in self.model._flatten_layers()
            if isinstance(layer, Table)
            for variable in layer.variables
        }
        own = [v for v in self.model.variables if id(v) not in constant]
        self._state = [*own, *self.model.optimizer.variables, self._loss]

    def fit(self, epochs: int) -> list[dict[str, float]]:
        """Trains up to ``epochs`` epochs and returns their logs.

        Raises:
            TrainingError: a loss is not finite; the checkpoint before it is kept.
        """
        callbacks = keras.callbacks.CallbackList(list(self.callbacks), model=self.model)
        callbacks.set_params({"epochs": epochs, "steps": self.batches.steps, "verbose": 0})
        self.model.stop_training = False
        progress = self._begin(callbacks)
        history: list[dict[str, float]] = progress["history"]
        while len(history) < epochs and not self.model.stop_training:
            epoch = len(history)
            callbacks.on_epoch_begin(epoch)
            self._run_epoch(epoch, progress["step"], callbacks, history)
            logs = {"loss": float(self._loss) / self.batches.steps}
            logs |= self.validate()
            callbacks.on_epoch_end(epoch, logs)
            history.append(logs)
            progress["step"] = 0
            self._loss.assign(0.0)
            self._save(0, history)
        callbacks.on_train_end()
        return history

    def _begin(self, callbacks: keras.callbacks.CallbackList) -> dict[str, Any]:
        resuming = (self.folder / checkpoints.FILE).exists()
        for callback in self.callbacks:
            if resuming and isinstance(callback, keras.callbacks.CSVLogger):
                callback.append = True
        callbacks.on_train_begin()
        progress = checkpoints.restore(self.folder, self._state, self.callbacks)
        if progress is None:
            return {"step": 0, "history": []}
        self.model.stop_training = progress["stopped"]
        return progress

    def _run_epoch(self, epoch: int, first_step: int, callbacks: Any, history: list[dict[str, float]]) -> None:
        dataset = self.strategy.experimental_distribute_dataset(self.batches.dataset(epoch, first_step))
        reads_losses = any(_reads_batches(callback) for callback in self.callbacks)
        for step, batch in enumerate(dataset, start=first_step):
            callbacks.on_train_batch_begin(step)
            loss = self._update(batch, tf.constant(step, tf.int64))
            callbacks.on_train_batch_end(step, {"loss": float(loss)} if reads_losses else {})
            if self.checkpoint_steps and (step + 1) % self.checkpoint_steps == 0 and step + 1 < self.batches.steps:
                self._check_finite(epoch)
                self._save(step + 1, history)
        self._check_finite(epoch)

    def _save(self, step: int, history: list[dict[str, float]]) -> None:
        progress = {"step": step, "history": history, "stopped": bool(self.model.stop_training)}
        checkpoints.save(self.folder, self._state, self.callbacks, progress)

    def _check_finite(self, epoch: int) -> None:
        if self._bad_step >= 0 or not math.isfinite(self._loss):
            raise TrainingError(
                f"a loss must be finite; it was not at epoch {epoch + 1}, step {int(self._bad_step) + 1}",
                advice="Lower train.learning_rate or set train.clip_norm; the checkpoint before it is kept",
            )

    def _global_step(self, batch: Any, step: tf.Tensor) -> tf.Tensor:
        losses = self.strategy.run(self._replica_step, args=(batch,))
        loss = self.strategy.reduce(tf.distribute.ReduceOp.SUM, losses, axis=None)
        self._loss.assign_add(loss)
        if not tf.math.is_finite(loss) and self._bad_step < 0:
            self._bad_step.assign(step)
        return loss

    def _replica_step(self, batch: Batch) -> tf.Tensor:
        variables = self.model.trainable_variables
        parts = [self._gradients(part, variables) for part in _split(batch, self.accumulate)]
        replicas = tf.distribute.get_replica_context()
        weight = tf.add_n([weight for _, weight, _ in parts])
        weight = tf.maximum(replicas.all_reduce(tf.distribute.ReduceOp.SUM, weight), 1e-12)
        gradients = [_sum_gradients(column) for column in zip(*(g for _, _, g in parts), strict=True)]
        gradients = [_scale(gradient, 1.0 / weight) for gradient in gradients]
        if self.clip_norm:
            gradients = self._clip(gradients, replicas)
        self.model.optimizer.apply(gradients, variables)
        return tf.add_n([loss for loss, _, _ in parts]) / weight

    def _gradients(self, batch: Batch, variables: Sequence[Any]) -> tuple[tf.Tensor, tf.Tensor, list[Any]]:
        with tf.GradientTape() as tape:
            loss, weight = self.objective(batch)
            scaled = self.model.optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled, [variable.value for variable in variables])
        missing = [v.path for v, gradient in zip(variables, gradients, strict=True) if gradient is None]
        if missing:
            raise TrainingError("every trainable variable must take part in the loss; these do not", missing)
        return loss, weight, gradients

    def _clip(self, gradients: Sequence[Any], replicas: tf.distribute.ReplicaContext) -> list[tf.Tensor]:
        # Duplicate rows must be added and replicas summed before a norm means anything.
        dense = [tf.convert_to_tensor(gradient) for gradient in gradients]
        count = replicas.num_replicas_in_sync
        if count > 1:
            dense = replicas.all_reduce(tf.distribute.ReduceOp.SUM, dense)
        scale = getattr(self.model.optimizer, "dynamic_scale", 1.0)
        clipped, _ = tf.clip_by_global_norm(dense, self.clip_norm * tf.convert_to_tensor(scale))
        # The optimizer adds the replicas again.
        return [gradient / count for gradient in clipped]


def _split(batch: Batch, parts: int) -> Iterable[Batch]:
    if parts == 1:
        return [batch]
    columns = {name: tf.split(value, parts) for name, value in batch.items()}
    return [{name: values[i] for name, values in columns.items()} for i in range(parts)]


def _sum_gradients(parts: Sequence[Any]) -> Any:
    if len(parts) == 1:
        return parts[0]
    if all(isinstance(part, tf.IndexedSlices) for part in parts):
        values = tf.concat([part.values for part in parts], axis=0)
        indices = tf.concat([part.indices for part in parts], axis=0)
        return tf.IndexedSlices(values, indices, parts[0].dense_shape)
    return tf.add_n([tf.convert_to_tensor(part) for part in parts])


def _scale(gradient: Any, factor: tf.Tensor) -> Any:
    if isinstance(gradient, tf.IndexedSlices):
        return tf.IndexedSlices(gradient.values * factor, gradient.indices, gradient.dense_shape)
    return gradient * factor


def _reads_batches(callback: keras.callbacks.Callback) -> bool:
    """Whether a callback wants the loss after every step, which makes the device wait."""
    base = keras.callbacks.Callback
    if isinstance(callback, keras.callbacks.LambdaCallback):
        return True
    return type(callback).on_train_batch_end not in (base.on_train_batch_end, keras.callbacks.TensorBoard.on_train_batch_end) or (
        type(callback).on_batch_end is not base.on_batch_end
    )
