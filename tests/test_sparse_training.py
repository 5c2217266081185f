"""The loop with gradients of rows: clipped after merging, and never a tensor of the table's size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from test_loop import Points, trainer

from tfrec.models.layers import RowEmbedding
from tfrec.training.loop import Trainer
from tfrec.training.sparse import SparseAdagrad


def table_trainer(
    folder: Path, rows: int, factors: Any, accumulate: int = 1, clip_norm: float | None = None
) -> Trainer:
    """A table whose row x_0 of each point gets that point's factor as its gradient, by rows."""
    model = keras.Sequential([keras.Input((), dtype="int32"), RowEmbedding(rows, 1, "zeros", name="table")])
    model.compile(SparseAdagrad(1.0, initial_accumulator_value=0.0, epsilon=1e-12))
    model.optimizer.build(model.trainable_variables)

    def objective(batch: Any) -> tuple[tf.Tensor, tf.Tensor]:
        row, point = (tf.cast(batch[name][:, 0], tf.int32) for name in ("x", "y"))
        factor = tf.gather(tf.constant(factors, tf.float32), point)
        return tf.reduce_sum(model(row)[:, 0] * factor), tf.constant(1.0)

    return trainer(folder, model, batch=4, objective=objective, accumulate=accumulate, clip_norm=clip_norm)


def test_norms_of_rows_are_clipped_after_merging(tmp_path: Path) -> None:
    """Row 1 gets 3 − 3, row 0 gets 0.8, row 2 gets 0.6: a norm of 1, though the parts have one above 4."""
    ours = table_trainer(tmp_path, 3, [-3.0, 3.0, 0.8, 0, 0, 0.6], clip_norm=1.0)
    ours.fit(1)
    accumulators = ours.model.optimizer.variables[-1].numpy()[:, 0]
    np.testing.assert_allclose(accumulators, [0.64, 0.0, 0.36], atol=1e-6)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_of_rows_holds_no_tensor_of_the_table_s_size(tmp_path: Path, accumulate: int) -> None:
    ours = table_trainer(tmp_path, 1000, [-3.0, 3.0, 0.8, 0, 0, 0.6], accumulate, clip_norm=100.0)
    ours.fit(1)
    np.testing.assert_allclose(ours.model.layers[0].embeddings[:4, 0], [-1.0, 0.0, -1.0, 0.0], atol=1e-5)
    graph = ours._update.get_concrete_function(next(iter(Points(4).dataset(0))), tf.constant([0, 0], tf.int64)).graph
    graphs = [graph, *(f.graph for f in graph._functions.values() if hasattr(f, "graph"))]
    shapes = [o.shape for one in graphs for operation in one.get_operations() for o in operation.outputs]
    assert len(shapes) > 50
    assert [shape for shape in shapes if shape.rank and 1000 in shape.as_list()] == []
