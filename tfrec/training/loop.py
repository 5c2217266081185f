"""One training loop for every strategy: strategy.run, Keras optimizers and callbacks, exact resume."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import keras
import tensorflow as tf

from tfrec.errors import RestartError, TfrecError, TrainingError
from tfrec.models.two_tower import Table
from tfrec.training import checkpoints
from tfrec.training.candidates import Batch
from tfrec.training.finite import widest_feature
from tfrec.training.objectives import Objective
from tfrec.training.optimizers import inner
from tfrec.training.sparse import TouchedRows, merged_slices
from tfrec.training.termination import Termination

_LOOK = 100  # steps between looks at the loss: each makes the device wait
_LOOK_FOR_STOP = 10  # the same for the wish of another worker to stop
_LOGGERS = (keras.callbacks.CSVLogger, keras.callbacks.TensorBoard)
_LOST = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError, tf.errors.InternalError)


class Batches(Protocol):
    """Training batches in an order that is a function of epoch and step."""

    @property
    def steps(self) -> int: ...

    def dataset(self, epoch: int, first_step: int = 0) -> tf.data.Dataset: ...


@dataclass
class Trainer:
    """Trains a Keras model on an objective, epoch by epoch, and can be killed at any step.

    A restart with the same arguments continues from the last checkpoint in ``folder`` and ends with the
    weights of an uninterrupted run. Several workers stop together; the first one writes, and all read what it wrote.

    Args:
        model: compiled with its optimizer, built under ``strategy``.
        objective: batch and "clock", int64 [2] epoch and step -> (sum of losses, sum of weights).
        batches: global batches, of which each replica gets an equal part, or with ``sharded`` this worker's part.
        strategy: tf.distribute strategy.
        folder: of checkpoints; the same one for all workers.
        validate: what to log after an epoch beside the loss.
        callbacks: Keras callbacks; their state is checkpointed.
        accumulate: parts of a replica's batch whose gradients are added before an update.
        clip_norm: largest global norm of the gradient, after all replicas are added.
        checkpoint_steps: steps between checkpoints; 0 = epochs only.
        jit: whether XLA compiles the step.
        sharded: whether every worker makes its own part of each global batch.
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
    jit: bool = False
    sharded: bool = False

    def __post_init__(self) -> None:
        self._coordinator = coordinator_of(self.strategy)
        with self.strategy.scope() if self._coordinator else nullcontext():  # or workers could not reach them
            self._loss = tf.Variable(0.0, trainable=False, name="epoch_loss")
            self._bad_step = tf.Variable(-1, trainable=False, name="bad_step", dtype=tf.int64)
        self._asked_here = tf.Variable(0, trainable=False, name="asked_here")
        self._asked = tf.Variable(0, trainable=False, name="asked")
        self._termination = Termination()
        self._leads = self.strategy.extended.should_checkpoint
        self._together = isinstance(self.strategy, tf.distribute.MultiWorkerMirroredStrategy)
        self._add = tf.function(self._global_sum, [tf.TensorSpec([None], tf.float64)], autograph=False)
        # Autograph would wrap our errors in its own.
        self._update = tf.function(self._global_step, autograph=False, jit_compile=self.jit or None)
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
            TrainingError: a loss or weight is not finite (the checkpoint before it is kept), a trainable
                variable takes no part in the loss, or the checkpoint is damaged or another model's.
            RestartError: SIGTERM came, here or to another worker, or one of them is gone.
        """
        heard = [callback for callback in self.callbacks if self._leads or not isinstance(callback, _LOGGERS)]
        callbacks = keras.callbacks.CallbackList(heard, model=self.model)
        callbacks.set_params({"epochs": epochs, "steps": self.batches.steps, "verbose": 0})
        loggers = [callback for callback in heard if isinstance(callback, keras.callbacks.CSVLogger)]
        try:
            with Termination() as self._termination:
                return self._run(epochs, callbacks, loggers)
        except _LOST as error:
            if not self._together and not self._coordinator:
                raise
            rule = "every worker must live until the end of the training; one is gone"
            raise RestartError(rule, advice="The last checkpoint is kept: start all workers again") from error
        finally:
            for logger in loggers:
                if logger.csv_file:
                    logger.csv_file.close()

    def _run(self, epochs: int, callbacks: Any, loggers: Sequence[keras.callbacks.CSVLogger]) -> list[dict[str, float]]:
        step, history = self._begin(callbacks, loggers)
        while len(history) < epochs and not self.model.stop_training:
            self._run_epoch(len(history), step, callbacks, history)
            step = 0
        callbacks.on_train_end()
        return history

    def _begin(
        self, callbacks: Any, loggers: Sequence[keras.callbacks.CSVLogger]
    ) -> tuple[int, list[dict[str, float]]]:
        checkpoint = checkpoints.read(self.folder)
        for logger in loggers if checkpoint else ():
            logger.append = True
        self.model.stop_training = False
        callbacks.on_train_begin()
        self._check_same(checkpoint)
        if checkpoint is None:
            return 0, []
        step, history = checkpoint.progress["step"], checkpoint.progress["history"]
        if step:
            callbacks.on_epoch_begin(len(history))
        # Last, because both hooks above reset state and rates.
        checkpoint.restore(self._state, self.callbacks, writes=self._leads)
        self.model.stop_training = checkpoint.progress["stopped"]
        return step, history

    def _check_same(self, checkpoint: checkpoints.Checkpoint | None) -> None:
        if not self._together:
            return
        progress: dict[str, Any] = checkpoint.progress if checkpoint else {"history": [], "step": -1}
        read = {"epochs": float(len(progress["history"])), "step": float(progress["step"])}
        first = self._of_first(read)
        if self._total([float(read != first)])[0]:
            rule = f"all workers must read the checkpoint that the first one writes, {first} in {self.folder}"
            raise TrainingError(rule, read, "Let run.folder lead to one shared folder")

    def _run_epoch(self, epoch: int, first_step: int, callbacks: Any, history: list[dict[str, float]]) -> None:
        if not first_step:
            callbacks.on_epoch_begin(epoch)
        self._run_steps(epoch, first_step, callbacks, history)
        logs = {"loss": float(self._loss) / self.batches.steps}
        logs |= self._of_first({name: float(value) for name, value in self._validated(epoch).items()})
        callbacks.on_epoch_end(epoch, logs)
        history.append(logs)
        self._loss.assign(0.0)
        self._save(0, history)
        if self._termination.asked if not self._together else int(self._asked) > 0:
            raise self._stopped(epoch, self.batches.steps)

    def _validated(self, epoch: int) -> dict[str, float]:
        try:
            return self.validate()
        except TfrecError as error:
            rule = f"validation after epoch {epoch + 1} failed: {str(error).removesuffix('.')}"
            raise TrainingError(rule, advice=self._advice()) from error

    def _run_steps(self, epoch: int, first_step: int, callbacks: Any, history: list[dict[str, float]]) -> None:
        step = first_step - 1  # a checkpoint may lie between the last step and validation
        dataset = self._distributed(self.batches.dataset(epoch, first_step))
        reads_losses = any(_reads_batches(callback) for callback in self.callbacks)
        for step, batch in enumerate(dataset, start=first_step):
            callbacks.on_train_batch_begin(step)
            if self._termination.asked:
                self._asked_here.assign(1)
            loss = self._start(batch, tf.constant([epoch, step], tf.int64))
            callbacks.on_train_batch_end(step, {"loss": float(_value(loss))} if reads_losses else {})
            if (step + 1) % _LOOK == 0 and int(self._bad_step) >= 0:
                break
            if self.checkpoint_steps and (step + 1) % self.checkpoint_steps == 0 and step + 1 < self.batches.steps:
                self._check_finite(epoch, step)
                self._save(step + 1, history)
            if self._must_stop(step):
                self._check_finite(epoch, step)
                self._save(step + 1, history)
                raise self._stopped(epoch, step + 1)
        self._check_finite(epoch, step)

    def _distributed(self, dataset: tf.data.Dataset) -> Any:
        if self._coordinator:
            return dataset
        if not self.sharded:
            return self.strategy.experimental_distribute_dataset(_by_rows(dataset))
        rows = tf.nest.flatten(dataset.element_spec)[0].shape[0]
        parts = dataset.rebatch(rows // len(self.strategy.extended.worker_devices), drop_remainder=True)
        return self.strategy.distribute_datasets_from_function(lambda context: parts)

    def _start(self, batch: Any, clock: tf.Tensor) -> Any:
        if self._coordinator:
            return self._coordinator.schedule(self._update, args=(batch, clock))
        return self._update(batch, clock)

    def _must_stop(self, step: int) -> bool:
        if not self._together:
            return self._termination.asked
        return (step + 1) % _LOOK_FOR_STOP == 0 and int(self._asked) > 0

    def _stopped(self, epoch: int, step: int) -> RestartError:
        if self._together:
            self._total([0.0])  # nobody leaves before the first one has written
        rule = f"SIGTERM stopped the training after epoch {epoch + 1}, step {step}, and a checkpoint was saved there"
        return RestartError(rule, advice="Run the same command to continue")

    def _of_first(self, logs: dict[str, float]) -> dict[str, float]:
        """The numbers of the first worker, so that all decide alike."""
        if not self._together:
            return logs
        return dict(zip(logs, self._total([value * self._leads for value in logs.values()]), strict=True))

    def _total(self, numbers: list[float]) -> list[float]:
        """Sums over the workers."""
        replicas = len(self.strategy.extended.worker_devices)
        return (self._add(tf.constant(numbers, tf.float64)).numpy() / replicas).tolist()

    def _global_sum(self, numbers: tf.Tensor) -> tf.Tensor:
        return self.strategy.reduce(
            tf.distribute.ReduceOp.SUM, self.strategy.run(tf.identity, args=(numbers,)), axis=None
        )

    def _save(self, step: int, history: list[dict[str, float]]) -> None:
        if not self._leads:
            return
        progress = {"step": step, "history": history, "stopped": bool(self.model.stop_training)}
        checkpoints.save(self.folder, self._state, self.callbacks, progress)

    def _check_finite(self, epoch: int, step: int) -> None:
        if self._coordinator:
            self._coordinator.join()
        bad_step = int(self._bad_step)
        broken = [v.path for v in self.model.trainable_variables if not tf.reduce_all(tf.math.is_finite(v.value))]
        if bad_step >= 0 or broken:
            what = "a loss" if bad_step >= 0 else broken[0]
            place = f"epoch {epoch + 1}, step {(bad_step if bad_step >= 0 else step) + 1}"
            raise TrainingError(f"losses and weights must be finite; {what} was not at {place}", advice=self._advice())

    def _advice(self) -> str:
        how = "Lower train.learning_rate or set train.clip_norm; the checkpoint before it is kept"
        feature = widest_feature(self.model)
        return f"{feature}. Mend it where that is far from 0. {how}" if feature else how

    def _global_step(self, batch: Any, clock: tf.Tensor) -> tf.Tensor:
        losses = self.strategy.run(self._replica_step, args=(batch, clock))
        loss = self.strategy.reduce(tf.distribute.ReduceOp.SUM, losses, axis=None)
        self._loss.assign_add(loss)
        first_bad = (self._bad_step < 0) & ~tf.math.is_finite(loss)
        self._bad_step.assign(tf.where(first_bad, clock[1], self._bad_step))
        if self._together:
            self._asked.assign_add(self._global_sum(self._asked_here.value()))
        return loss

    def _replica_step(self, batch: Batch, clock: tf.Tensor) -> tf.Tensor:
        variables = self.model.trainable_variables
        # The parts of a batch share their draws, as replicas do: together they are the objective of the whole.
        parts = [self._gradients({**part, "clock": clock}, variables) for part in _split(batch, self.accumulate)]
        replicas = tf.distribute.get_replica_context()
        weight = tf.add_n([weight for _, weight, _ in parts])
        weight = tf.maximum(replicas.all_reduce(tf.distribute.ReduceOp.SUM, weight), 1e-12)
        gradients = [_mean(column, weight) for column in zip(*(g for _, _, g in parts), strict=True)]
        scales = isinstance(self.model.optimizer, keras.optimizers.LossScaleOptimizer)
        if self.clip_norm or (scales and replicas.num_replicas_in_sync > 1):
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
        # Keras optimizers take sparse rows that come twice, as from two replicas, for two rows: (a + b)² ≠ a² + b².
        if not isinstance(inner(self.model.optimizer), TouchedRows):
            gradients = [tf.convert_to_tensor(gradient) for gradient in gradients]
        return loss, weight, gradients

    def _clip(self, gradients: Sequence[Any], replicas: tf.distribute.ReplicaContext) -> list[Any]:
        # Replicas and equal rows must be summed before a norm, or a test for overflow, means anything.
        count = replicas.num_replicas_in_sync
        if count > 1:
            gradients = replicas.all_reduce(tf.distribute.ReduceOp.SUM, gradients)
        gradients = [_merged(g, v) for g, v in zip(gradients, self.model.trainable_variables, strict=True)]
        if self.clip_norm:
            gradients, _ = tf.clip_by_global_norm(gradients, self.clip_norm * self.model.optimizer.scale_loss(1.0))
        # The optimizer adds the replicas again.
        return [_mean([gradient], count) for gradient in gradients]


def coordinator_of(strategy: tf.distribute.Strategy) -> Any:
    """What hands steps to the workers of parameter servers, each to the first that is free; None elsewhere."""
    if not isinstance(strategy, tf.distribute.ParameterServerStrategy):
        return None
    return tf.distribute.coordinator.ClusterCoordinator(strategy)


def _value(loss: Any) -> Any:
    return loss if isinstance(loss, tf.Tensor) else loss.fetch()


def _by_rows(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Each worker takes its rows of every global batch; files are not divided."""
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return dataset.with_options(options)


def _mean(parts: Sequence[Any], weight: Any) -> Any:
    """The sum of gradients over a weight; rows stay rows, with duplicates."""
    if not isinstance(parts[0], tf.IndexedSlices):
        return tf.add_n(parts) / weight
    values = tf.concat([part.values for part in parts], axis=0) / weight
    return tf.IndexedSlices(values, tf.concat([part.indices for part in parts], axis=0), parts[0].dense_shape)


def _merged(gradient: Any, variable: keras.Variable) -> Any:
    return merged_slices(gradient, variable.shape[0]) if isinstance(gradient, tf.IndexedSlices) else gradient


def _split(batch: Batch, parts: int) -> Iterable[Batch]:
    if parts == 1:
        return [batch]
    columns = {name: tf.split(value, parts) for name, value in batch.items()}
    return [{name: values[i] for name, values in columns.items()} for i in range(parts)]


def _reads_batches(callback: keras.callbacks.Callback) -> bool:
    """Whether a callback wants the loss after every step, which makes the device wait."""
    if isinstance(callback, keras.callbacks.TensorBoard):
        return callback.update_freq != "epoch"
    # LambdaCallback puts plain functions where others have bound methods.
    hooks = ((getattr(callback, name), name) for name in ("on_train_batch_end", "on_batch_end"))
    return any(getattr(hook, "__func__", None) is not getattr(keras.callbacks.Callback, name) for hook, name in hooks)
