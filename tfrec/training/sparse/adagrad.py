"""Adagrad on the rows of a batch, with an accumulator an element or a row."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfrec.training.sparse.rows import Merged, TouchedRows


@keras.saving.register_keras_serializable("tfrec")
class SparseAdagrad(TouchedRows, keras.optimizers.Adagrad):
    """Adagrad, whose dense rule leaves rows without gradient alone: the same weights as ``keras.optimizers.Adagrad``.

        a ← a + g²,   w ← w − η g / √(a + ε)

    Args: of ``keras.optimizers.Adagrad``, except those that clip, average or accumulate.

    Source: Duchi et al. 2011, Adaptive subgradient methods.
    """

    def row_step(self, index: int, merged: Merged, rate: tf.Tensor) -> tf.Tensor:
        accumulator = self._accumulators[index].value
        square = tf.square(merged.sums)
        total = tf.gather(accumulator, merged.rows) + square
        accumulator.scatter_add(tf.IndexedSlices(square, merged.rows))
        return rate * merged.sums * tf.math.rsqrt(total + self.epsilon)


@keras.saving.register_keras_serializable("tfrec")
class RowwiseAdagrad(TouchedRows, keras.optimizers.Adagrad):
    """Adagrad with one accumulator a row of a matrix: half the memory and half the traffic of a table.

        a_r ← a_r + mean_j g_rj²,   w_r ← w_r − η g_r / √(a_r + ε)

    Vectors and scalars have an accumulator an element.

    Args: of ``keras.optimizers.Adagrad``, except those that clip, average or accumulate.

    Source: Gupta et al. 2014, Training highly multiclass classifiers; FBGEMM's rowwise Adagrad (arXiv 2101.05615).
    """

    def add_optimizer_variables(self, trainable_variables: Any, name: Any, initializer: Any = "zeros") -> Any:
        return [self._add_accumulator(variable, name, initializer) for variable in trainable_variables]

    def _add_accumulator(self, variable: Any, name: str, initializer: Any) -> Any:
        if len(variable.shape) < 2:
            return self.add_variable_from_reference(variable, name=name, initializer=initializer)
        with self._distribution_strategy.extended.colocate_vars_with(variable.value):
            return self.add_variable(
                shape=(variable.shape[0],) + (1,) * (len(variable.shape) - 1),
                initializer=initializer,
                dtype=variable.dtype,
                name=f"{variable.path.replace('/', '_')}_{name}",
            )

    def row_step(self, index: int, merged: Merged, rate: tf.Tensor) -> tf.Tensor:
        accumulator = self._accumulators[index].value
        square = _row_mean(tf.square(merged.sums))
        total = tf.gather(accumulator, merged.rows) + square
        accumulator.scatter_add(tf.IndexedSlices(square, merged.rows))
        return rate * merged.sums * tf.math.rsqrt(total + self.epsilon)

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        if isinstance(gradient, tf.IndexedSlices) or len(variable.shape) < 2:
            super().update_step(gradient, variable, learning_rate)
            return
        rows = tf.range(variable.shape[0])
        super().update_step(tf.IndexedSlices(gradient, rows, tf.shape(gradient)), variable, learning_rate)


def _row_mean(values: tf.Tensor) -> tf.Tensor:
    return tf.reduce_mean(values, axis=list(range(1, values.shape.rank)), keepdims=True)
