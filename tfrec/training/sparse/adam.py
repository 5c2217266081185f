"""Adam(W) on the rows of a batch."""

from __future__ import annotations

import keras
import tensorflow as tf

from tfrec.training.sparse.rows import Merged, TouchedRows


@keras.saving.register_keras_serializable("tfrec")
class LazyAdam(TouchedRows, keras.optimizers.Adam):
    """Adam, or AdamW with ``weight_decay``, in which a row's moments stand still while no batch reads it.

        m ← m + (1 − β₁)(g − m),   v ← v + (1 − β₂)(g² − v)
        w ← w − η λ w − η √(1 − β₂ᵗ) / (1 − β₁ᵗ) · m / (√v + ε)

    Equal to ``keras.optimizers.Adam`` on rows that every step reads; t counts all steps.

    Args: of ``keras.optimizers.Adam``, except ``amsgrad`` and those that clip, average or accumulate.

    Source: Kingma and Ba 2015, arXiv 1412.6980; Loshchilov and Hutter 2019, arXiv 1711.05101.
    """

    def row_step(self, index: int, merged: Merged, rate: tf.Tensor) -> tf.Tensor:
        step = tf.cast(self.iterations.value + 1, rate.dtype)
        scale = rate * tf.sqrt(1.0 - tf.pow(self.beta_2, step)) / (1.0 - tf.pow(self.beta_1, step))
        momentum = _approach(self._momentums[index].value, merged.sums, 1.0 - self.beta_1, merged)
        velocity = _approach(self._velocities[index].value, tf.square(merged.sums), 1.0 - self.beta_2, merged)
        return scale * momentum / (tf.sqrt(velocity) + self.epsilon)


def _approach(average: tf.Variable, values: tf.Tensor, share: float, merged: Merged) -> tf.Tensor:
    """Moves rows of a moving average towards values and returns them as they are then."""
    old = tf.gather(average, merged.rows)
    change = share * (values - old) * merged.present
    average.scatter_add(tf.IndexedSlices(change, merged.rows))
    return old + change
