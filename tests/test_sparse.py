"""Sparse optimizers equal their dense definitions on the rows a batch reads, and leave the others alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfrec.errors import TrainingError
from tfrec.training.sparse import LazyAdam, RowwiseAdagrad, SparseAdagrad, distinct_rows, merge_rows, merged_slices

ALL = [SparseAdagrad, RowwiseAdagrad, LazyAdam]
# Below and above the number of ids of a batch: the two ways of merging.
ROWS = [6, 60]


def variables(rows: int) -> list[keras.Variable]:
    random = np.random.default_rng(0)
    return [
        keras.Variable(random.normal(size=(rows, 3)).astype("float32"), name="table"),
        keras.Variable(random.normal(size=(3, 2)).astype("float32"), name="kernel"),
        keras.Variable(np.ones(2, "float32"), name="bias"),
    ]


def gradients(values: list[Any], ids: tf.Tensor) -> list[Any]:
    table, kernel, bias = (v.value for v in values)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.square(tf.matmul(tf.gather(table, ids), kernel) + bias))
    return tape.gradient(loss, [table, kernel, bias])


def batches(rows: int, steps: int = 3) -> np.ndarray:
    """Ids with duplicates; row 1 is never read."""
    ids = np.random.default_rng(1).integers(0, rows, (steps, 8))
    return np.where(ids == 1, 2, ids).astype(np.int32)


def train(optimizer: keras.optimizers.Optimizer, rows: int, dense: bool = False, **options: Any) -> list[np.ndarray]:
    values = variables(rows)
    optimizer.build(values)

    def step(ids: tf.Tensor) -> None:
        found = gradients(values, ids)
        optimizer.apply([tf.convert_to_tensor(g) for g in found] if dense else found, values)

    compiled = tf.function(step, **options)
    for ids in batches(rows):
        compiled(tf.constant(ids))
    return [v.numpy() for v in (*values, *optimizer.variables)]


def close(left: list[np.ndarray], right: list[np.ndarray]) -> None:
    for a, b in zip(left, right, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 20), min_size=1, max_size=30), st.sampled_from([21, 200]), st.booleans())
def test_merged_rows_equal_a_dictionary(ids: list[int], rows: int, static: bool) -> None:
    values = np.random.default_rng(len(ids)).normal(size=(len(ids), 2)).astype("float32")
    expected: dict[int, np.ndarray] = {}
    for row, value in zip(ids, values, strict=True):
        expected[row] = expected.get(row, 0) + value

    def merge(values: tf.Tensor, ids: tf.Tensor) -> tuple[tf.Tensor, ...]:
        return tuple(merge_rows(tf.IndexedSlices(values, ids), rows))

    if not static:
        merge = tf.function(merge, input_signature=[tf.TensorSpec([None, 2]), tf.TensorSpec([None], tf.int32)])
    merged = [x.numpy() for x in merge(tf.constant(values), tf.constant(ids, tf.int32))]
    present = merged[2][:, 0] > 0
    assert sorted(merged[0][present]) == sorted(expected)
    for row, total in zip(merged[0][present], merged[1][present], strict=True):
        np.testing.assert_allclose(total, expected[row], rtol=1e-5, atol=1e-5)
    assert not merged[1][~present].any()
    assert len(merged[0]) == (min(len(ids), rows) if static else len(ids))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=30), st.sampled_from([10, 40]))
def test_distinct_rows_are_those_of_a_set(ids: list[int], most: int) -> None:
    rows, place, count = distinct_rows(tf.constant(ids), most)
    assert rows.shape == (min(len(ids), most),)
    assert (int(count), sorted(rows.numpy()[: int(count)])) == (len(set(ids)), sorted(set(ids)))
    assert set(rows.numpy()) == set(ids)
    np.testing.assert_array_equal(tf.gather(rows, place), ids)


def test_the_norm_of_merged_rows_is_that_of_the_dense_gradient() -> None:
    slices = tf.IndexedSlices(tf.constant([[3.0], [1.0], [-3.0]]), tf.constant([5, 2, 5]), tf.constant([9, 1]))
    merged = merged_slices(slices, 9)
    assert tf.linalg.global_norm([merged]) == 1.0
    assert tf.linalg.global_norm([slices]) > 4.0
    np.testing.assert_array_equal(tf.convert_to_tensor(merged), tf.convert_to_tensor(slices))


@pytest.mark.parametrize("rows", ROWS)
def test_sparse_adagrad_equals_keras_adagrad(rows: int) -> None:
    close(train(SparseAdagrad(0.1), rows), train(keras.optimizers.Adagrad(0.1), rows, dense=True))


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("decay", [None, 0.1])
@pytest.mark.parametrize(
    ("ours", "dense"), [(LazyAdam, keras.optimizers.Adam), (SparseAdagrad, keras.optimizers.Adagrad)]
)
def test_one_step_equals_keras_on_read_rows(ours: Any, dense: Any, rows: int, decay: float | None) -> None:
    ids = tf.constant(batches(rows)[0])
    read = np.unique(ids)
    results = []
    for optimizer in (ours(0.1, weight_decay=decay), dense(0.1, weight_decay=decay)):
        values = variables(rows)
        found = gradients(values, ids)
        optimizer.apply(found if isinstance(optimizer, ours) else [tf.convert_to_tensor(g) for g in found], values)
        results.append([v.numpy() for v in values])
    for one, other in zip([results[0][0][read], *results[0][1:]], [results[1][0][read], *results[1][1:]], strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)


def test_lazy_adam_equals_adam_while_every_row_is_read() -> None:
    results = []
    for optimizer in (LazyAdam(0.1), keras.optimizers.Adam(0.1)):
        values = variables(4)
        for _ in range(5):
            found = gradients(values, tf.constant([0, 1, 2, 3, 3]))
            optimizer.apply([tf.convert_to_tensor(g) for g in found] if results else found, values)
        results.append([v.numpy() for v in values])
    close(*results)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("make", ALL)
def test_unread_rows_stay_with_decay_and_momentum(make: Any, rows: int) -> None:
    before = variables(rows)[0].numpy()
    after = train(make(0.1, weight_decay=0.5), rows)[0]
    read = np.unique(batches(rows))
    unread = np.setdiff1d(np.arange(rows), read)
    np.testing.assert_array_equal(after[unread], before[unread])
    assert (after[read] != before[read]).all()


def test_rowwise_adagrad_by_hand() -> None:
    """Two gradients (1, 2) of one row are (2, 4): mean square 10 on top of 0.1."""
    table = keras.Variable(np.zeros((3, 2), "float32"), name="table")
    optimizer = RowwiseAdagrad(0.5)
    slices = tf.IndexedSlices(tf.constant([[1.0, 2.0], [1.0, 2.0]]), tf.constant([2, 2]), tf.constant([3, 2]))
    optimizer.apply([slices], [table])
    np.testing.assert_allclose(table.numpy()[2], [-1.0 / 10.1**0.5, -2.0 / 10.1**0.5], rtol=1e-6)
    state = next(v.numpy() for v in optimizer.variables if "accumulator" in v.path)
    np.testing.assert_allclose(state, [[0.1], [0.1], [10.1]], rtol=1e-6)


@pytest.mark.parametrize("rows", ROWS)
def test_a_dense_gradient_of_rowwise_adagrad_takes_the_same_rule(rows: int) -> None:
    close(train(RowwiseAdagrad(0.1), rows), train(RowwiseAdagrad(0.1), rows, dense=True))


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("make", ALL)
def test_compiles_under_xla_with_equal_weights(make: Any, rows: int) -> None:
    close(train(make(0.1), rows, jit_compile=True), train(make(0.1), rows))


@pytest.mark.parametrize("make", ALL)
def test_state_is_saved_and_restored(make: Any, tmp_path: Path) -> None:
    values, ids = variables(20), tf.constant(batches(20)[0])
    optimizer = make(0.1)
    optimizer.apply(gradients(values, ids), values)
    path = tf.train.Checkpoint(**{f"v{i}": v.value for i, v in enumerate([*values, *optimizer.variables])}).save(
        str(tmp_path / "at")
    )
    optimizer.apply(gradients(values, ids), values)
    fresh, copy = variables(20), make(0.1)
    copy.build(fresh)
    restored = tf.train.Checkpoint(**{f"v{i}": v.value for i, v in enumerate([*fresh, *copy.variables])})
    restored.restore(path).assert_consumed()
    copy.apply(gradients(fresh, ids), fresh)
    assert len(copy.variables) > 4
    for one, other in zip([*values, *optimizer.variables], [*fresh, *copy.variables], strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())


@pytest.mark.parametrize("make", ALL)
def test_saves_its_settings_with_keras(make: Any) -> None:
    copy = keras.optimizers.deserialize(keras.optimizers.serialize(make(0.25, epsilon=1e-3, weight_decay=0.1)))
    assert type(copy) is make
    assert (float(copy.learning_rate.numpy()), copy.epsilon, copy.weight_decay) == (0.25, 1e-3, 0.1)


def test_a_table_excluded_from_weight_decay_keeps_its_length() -> None:
    table = keras.Variable(np.ones((30, 2), "float32"), name="table")
    optimizer = SparseAdagrad(0.1, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_names=["table"])
    optimizer.apply([tf.IndexedSlices(tf.zeros([1, 2]), tf.constant([3]), tf.constant([30, 2]))], [table])
    np.testing.assert_array_equal(table.numpy(), np.ones((30, 2)))


@pytest.mark.parametrize("option", [{"clipnorm": 1.0}, {"use_ema": True}, {"gradient_accumulation_steps": 2}])
@pytest.mark.parametrize("make", ALL)
def test_options_that_read_whole_tables_are_refused(make: Any, option: dict[str, Any]) -> None:
    with pytest.raises(TrainingError, match=next(iter(option))):
        make(0.1, **option)


def test_a_row_beyond_the_table_is_refused() -> None:
    table = keras.Variable(np.ones((30, 2), "float32"), name="table")
    with pytest.raises(tf.errors.InvalidArgumentError):
        SparseAdagrad(0.1).apply([tf.IndexedSlices(tf.ones([1, 2]), tf.constant([30]), tf.constant([30, 2]))], [table])


def replicas() -> None:
    """Run in a process of its own, for logical devices must be made before TensorFlow starts."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    for make in ALL:
        for rows in ROWS:
            with strategy.scope():
                values, optimizer = variables(rows), make(0.1)
                optimizer.build(values)

            def step(ids: tf.Tensor, values: Any = values, optimizer: Any = optimizer) -> None:
                optimizer.apply(gradients(values, ids), values)

            run = tf.function(lambda ids, step=step: strategy.run(step, (ids,)))
            for ids in batches(rows):
                halves = tf.split(tf.constant(ids), 2)
                run(
                    strategy.experimental_distribute_values_from_function(
                        lambda c, h=halves: h[c.replica_id_in_sync_group]
                    )
                )
            close([v.numpy() for v in (*values, *optimizer.variables)], train(make(0.1), rows))


@pytest.mark.slow
def test_two_replicas_equal_one_device() -> None:
    root = Path(__file__).parent
    path = os.pathsep.join([str(root), str(root.parent)])
    done = subprocess.run(
        [sys.executable, "-c", "import test_sparse; test_sparse.replicas(); print('equal')"],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.strip().endswith("equal"), done.stderr[-2000:]
