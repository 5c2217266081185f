"""Optimizers and learning-rate warm-up from the settings."""

from __future__ import annotations

from typing import Any

import keras

from tfrec.config import Train
from tfrec.training.sparse import LazyAdam, RowwiseAdagrad, SparseAdagrad


def make_optimizer(settings: Train) -> keras.optimizers.Optimizer:
    """The Keras optimizer of the settings, with loss scaling where float16 needs it."""
    rate, decay = settings.learning_rate, settings.weight_decay
    makers = {
        "adamw": lambda **name: keras.optimizers.AdamW(rate, weight_decay=decay, **name),
        "adam": lambda **name: keras.optimizers.Adam(rate, **name),
        "adagrad": lambda **name: keras.optimizers.Adagrad(rate, **name),
        "sparse_adagrad": lambda **name: SparseAdagrad(rate, weight_decay=decay or None, **name),
        "rowwise_adagrad": lambda **name: RowwiseAdagrad(rate, weight_decay=decay or None, **name),
        "lazy_adam": lambda **name: LazyAdam(rate, weight_decay=decay or None, **name),
        "sgd": lambda **name: keras.optimizers.SGD(rate, **name),
    }
    # Keras numbers names within a process, and a checkpoint finds variables by their names.
    optimizer = makers[settings.optimizer](name="optimizer")
    if settings.precision == "mixed_float16":
        return keras.optimizers.LossScaleOptimizer(optimizer, name="loss_scale")
    return optimizer


def inner(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """The optimizer that holds the learning rate."""
    return getattr(optimizer, "inner_optimizer", optimizer)


class Warmup(keras.callbacks.Callback):
    """Raises the learning rate linearly to its value over the first steps.

        rate_i = rate · (i + 1) / steps   for i < steps

    A callback and not a schedule object: ReduceLROnPlateau and LearningRateScheduler need a rate that can be set.
    """

    def __init__(self, rate: float, steps: int):
        super().__init__()
        self.rate, self.steps, self.seen = rate, steps, 0

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if self.seen < self.steps:
            self.seen += 1
            inner(self.model.optimizer).learning_rate = self.rate * self.seen / self.steps
