from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfrec.errors import TrainingError
from tfrec.training import checkpoints
from tfrec.training.loop import Trainer
from tfrec.training.optimizers import Warmup

X = np.array([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0], [2.0, 1.0]], np.float32)
Y = np.array([[1.0], [2.0], [0.0], [5.0]], np.float32)


class Points:
    """The four points, in batches of two whose order turns with the epoch."""

    def __init__(self, batch: int = 2):
        self.batch, self.steps = batch, len(X) // batch

    def dataset(self, epoch: int, first_step: int = 0) -> tf.data.Dataset:
        order = np.roll(np.arange(len(X)), epoch)
        return tf.data.Dataset.from_tensor_slices({"x": X[order], "y": Y[order]}).batch(self.batch).skip(first_step)


def line(optimizer: keras.optimizers.Optimizer | None = None) -> keras.Model:
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False, name="line")], name="model")
    model.layers[0].kernel.assign([[1.0], [-1.0]])
    model.compile(optimizer or keras.optimizers.SGD(0.1))
    model.optimizer.build(model.trainable_variables)
    return model


def squares(model: keras.Model) -> Any:
    def objective(batch: Any) -> tuple[tf.Tensor, tf.Tensor]:
        errors = tf.square(model(batch["x"], training=True) - batch["y"])
        return tf.reduce_sum(errors), tf.cast(tf.size(errors), tf.float32)

    return objective


def trainer(folder: Path, model: keras.Model | None = None, batch: int = 2, **more: Any) -> Trainer:
    model = model or line()
    objective = more.pop("objective", None) or squares(model)
    return Trainer(model, objective, Points(batch), tf.distribute.get_strategy(), folder, **more)


def kernel(trained: Trainer) -> np.ndarray:
    return trained.model.trainable_variables[0].numpy()


def gradient(w: np.ndarray, rows: slice = slice(None)) -> np.ndarray:
    """Of the mean square, by hand."""
    x, y = X[rows], Y[rows]
    return 2 * x.T @ (x @ w - y) / len(x)


START = np.array([[1.0], [-1.0]], np.float32)


def test_a_step_is_the_gradient_of_the_mean(tmp_path: Path) -> None:
    ours = trainer(tmp_path, batch=4)
    (logs,) = ours.fit(1)
    np.testing.assert_allclose(kernel(ours), START - 0.1 * gradient(START), rtol=1e-6)
    assert logs["loss"] == pytest.approx(float(np.mean((X @ START - Y) ** 2)))


def test_two_steps_by_hand(tmp_path: Path) -> None:
    ours = trainer(tmp_path)
    ours.fit(1)
    first = START - 0.1 * gradient(START, slice(0, 2))
    np.testing.assert_allclose(kernel(ours), first - 0.1 * gradient(first, slice(2, 4)), rtol=1e-6)


def test_accumulated_parts_are_one_batch(tmp_path: Path) -> None:
    whole, parts = trainer(tmp_path / "whole", batch=4), trainer(tmp_path / "parts", batch=4, accumulate=2)
    for ours in (whole, parts):
        ours.fit(3)
    np.testing.assert_allclose(kernel(parts), kernel(whole), rtol=1e-6)
    assert int(parts.model.optimizer.iterations) == 3


def test_clip_norm_shortens_the_whole_gradient(tmp_path: Path) -> None:
    ours = trainer(tmp_path, batch=4, clip_norm=0.5)
    ours.fit(1)
    g = gradient(START)
    assert np.linalg.norm(g) > 0.5
    np.testing.assert_allclose(kernel(ours), START - 0.1 * g * 0.5 / np.linalg.norm(g), rtol=1e-5)


def test_a_short_gradient_is_not_clipped(tmp_path: Path) -> None:
    clipped, free = trainer(tmp_path / "a", batch=4, clip_norm=1e3), trainer(tmp_path / "b", batch=4)
    for ours in (clipped, free):
        ours.fit(1)
    np.testing.assert_allclose(kernel(clipped), kernel(free), rtol=1e-6)


@pytest.mark.parametrize("scaling", ["dynamic", "fixed"])
def test_clip_norm_means_the_gradient_before_loss_scaling(tmp_path: Path, scaling: str) -> None:
    sgd = keras.optimizers.SGD(0.1, loss_scale_factor=64.0 if scaling == "fixed" else None)
    optimizer = keras.optimizers.LossScaleOptimizer(sgd) if scaling == "dynamic" else sgd
    plain = trainer(tmp_path / "plain", batch=4, clip_norm=0.5)
    scaled = trainer(tmp_path / "scaled", line(optimizer), batch=4, clip_norm=0.5)
    for ours in (plain, scaled):
        ours.fit(2)
    np.testing.assert_allclose(kernel(scaled), kernel(plain), rtol=1e-5)


def test_rows_that_come_twice_in_a_batch_are_one_gradient(tmp_path: Path) -> None:
    # Adam's first step has length rate · sign(g) only if the parts of g are added before they are squared.
    table = keras.layers.Embedding(3, 1, embeddings_initializer="zeros", name="table")
    model = keras.Sequential([keras.Input((), dtype="int32"), table])
    model.compile(keras.optimizers.Adam(0.1))
    model.optimizer.build(model.trainable_variables)

    def objective(batch: Any) -> tuple[tf.Tensor, tf.Tensor]:
        rows = model(tf.constant([1, 1, 2])) * tf.constant([[1.0], [3.0], [-2.0]])
        return tf.reduce_sum(rows), tf.constant(1.0)

    trainer(tmp_path, model, batch=4, objective=objective).fit(1)
    np.testing.assert_allclose(model.layers[0].embeddings, [[0.0], [-0.1], [0.1]], rtol=1e-4)


class Memory(keras.callbacks.Callback):
    """Writes down what it is called with."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, ...]] = []

    def on_train_begin(self, logs: Any = None) -> None:
        self.calls.append(("begin", dict(self.params)))

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.calls.append(("epoch", epoch))

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.calls.append(("batch", batch, sorted(logs)))

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.calls.append(("end", epoch, sorted(logs)))


def test_callbacks_are_called_as_by_fit(tmp_path: Path) -> None:
    memory = Memory()
    trainer(tmp_path, callbacks=[memory], validate=lambda: {"val_x": 1.0}).fit(1)
    assert memory.calls == [
        ("begin", {"epochs": 1, "steps": 2, "verbose": 0}),
        ("epoch", 0),
        ("batch", 0, ["loss"]),
        ("batch", 1, ["loss"]),
        ("end", 0, ["loss", "val_x"]),
    ]


def test_lambda_callback_gets_the_loss_of_every_batch(tmp_path: Path) -> None:
    losses: list[float] = []
    callback = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: losses.append(logs["loss"]))
    (logs,) = trainer(tmp_path, callbacks=[callback]).fit(1)
    assert np.mean(losses) == pytest.approx(logs["loss"])


def test_learning_rate_scheduler_and_warm_up(tmp_path: Path) -> None:
    rates: list[float] = []
    callbacks = [
        Warmup(0.1, 3),
        keras.callbacks.LearningRateScheduler(lambda epoch, rate: 0.05 if epoch == 2 else rate),
    ]
    ours = trainer(tmp_path, callbacks=callbacks)
    read = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: rates.append(ours.model.optimizer.learning_rate.numpy())
    )
    ours.callbacks = [*callbacks, read]
    ours.fit(3)
    np.testing.assert_allclose(rates, [0.1 / 3, 0.2 / 3, 0.1, 0.1, 0.05, 0.05], rtol=1e-6)


def test_early_stopping_restores_the_best_weights(tmp_path: Path) -> None:
    values = iter([0.1, 0.5, 0.4, 0.3, 0.9])
    kernels: list[np.ndarray] = []
    stopper = keras.callbacks.EarlyStopping("val_x", mode="max", patience=2, restore_best_weights=True)
    ours = trainer(tmp_path, validate=lambda: {"val_x": next(values)})
    remember = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: kernels.append(kernel(ours).copy()))
    ours.callbacks = [stopper, remember]
    assert len(ours.fit(5)) == 4
    np.testing.assert_array_equal(kernel(ours), kernels[1])


def test_reduce_on_plateau_lowers_the_rate(tmp_path: Path) -> None:
    plateau = keras.callbacks.ReduceLROnPlateau("val_x", factor=0.5, patience=1, mode="max")
    ours = trainer(tmp_path, callbacks=[plateau], validate=lambda: {"val_x": 1.0})
    ours.fit(3)
    assert float(ours.model.optimizer.learning_rate.numpy()) == pytest.approx(0.1 / 4)


@pytest.mark.parametrize("update_freq", ["epoch", 1])
def test_tensorboard_gets_scalars(tmp_path: Path, update_freq: str | int) -> None:
    board = keras.callbacks.TensorBoard(str(tmp_path / "board"), update_freq=update_freq)
    history = trainer(tmp_path, callbacks=[board], validate=lambda: {"val_x": 2.0}).fit(2)
    tags: dict[str, list[float]] = {}
    for file in sorted((tmp_path / "board").rglob("events.*")):
        for event in tf.compat.v1.train.summary_iterator(str(file)):
            for value in event.summary.value:
                if "loss" in value.tag or value.tag == "epoch_x":
                    name = f"{file.parent.name}/{value.tag}"
                    tags.setdefault(name, []).append(float(tf.make_ndarray(value.tensor)))
    np.testing.assert_allclose(tags["train/epoch_loss"], [logs["loss"] for logs in history], rtol=1e-6)
    assert tags["validation/epoch_x"] == [2.0, 2.0]
    assert ("train/batch_loss" in tags) == (update_freq == 1)


class Kill(Exception):  # noqa: N818
    """Stands for a kill: nothing in the loop handles it."""


class KillAt(keras.callbacks.Callback):
    """Breaks off after so many steps, counted over epochs; the last one comes before its checkpoint."""

    armed = True

    def __init__(self, step: int):
        super().__init__()
        self._step = [step]  # not a number, so not restored

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if KillAt.armed and self.model.optimizer.iterations.numpy() == self._step[0]:
            raise Kill


def resumable(folder: Path, step: int) -> Trainer:
    """Everything that has state: momenta, rates that depend on themselves, stoppers, logs."""
    scores = [0.1, 0.5, 0.4, 0.4, 0.45, 0.3, 0.2]
    model = line(keras.optimizers.Adam(0.1))
    dropped = keras.Sequential([keras.Input((2,)), keras.layers.Dropout(0.5, seed=3), model.layers[0]], name="model")
    dropped.compile(keras.optimizers.Adam(0.1))
    dropped.optimizer.build(dropped.trainable_variables)
    callbacks = [
        Warmup(0.1, 3),
        keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate * 0.9),
        keras.callbacks.ReduceLROnPlateau("val_x", factor=0.5, patience=1, mode="max"),
        keras.callbacks.EarlyStopping("val_x", mode="max", patience=4, restore_best_weights=True),
        keras.callbacks.CSVLogger(str(folder / "log.csv")),
        keras.callbacks.History(),
        KillAt(step),
    ]
    folder.mkdir(exist_ok=True)
    ours = trainer(folder, dropped, batch=1, callbacks=callbacks, checkpoint_steps=2)
    ours.validate = lambda: {"val_x": scores[int(dropped.optimizer.iterations.numpy()) // 4 - 1]}
    return ours


def outcome(ours: Trainer, history: list[dict[str, float]]) -> dict[str, Any]:
    return {
        "kernel": kernel(ours).tolist(),
        "optimizer": [v.numpy().tolist() for v in ours.model.optimizer.variables],
        "history": history,
        "csv": (ours.folder / "log.csv").read_text().splitlines(),
        "keras history": ours.callbacks[5].history,
    }


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    ours = resumable(tmp_path_factory.mktemp("whole"), 0)
    return outcome(ours, ours.fit(7))


@pytest.mark.parametrize("step", [1, 4, 7, 19])
def test_broken_off_at_any_step_the_end_is_the_same(tmp_path: Path, step: int, uninterrupted: dict[str, Any]) -> None:
    KillAt.armed = True
    with pytest.raises(Kill):
        resumable(tmp_path, step).fit(7)
    KillAt.armed = False
    again = resumable(tmp_path, step)
    assert outcome(again, again.fit(7)) == uninterrupted


def test_a_row_of_an_epoch_that_is_repeated_is_logged_once(tmp_path: Path, uninterrupted: dict[str, Any]) -> None:
    # Between the log of an epoch and its checkpoint lies a moment in which a kill may come.
    KillAt.armed = False
    first = resumable(tmp_path, 0)

    def kill(epoch: int, logs: Any) -> None:
        if epoch == 1:
            raise Kill

    last = keras.callbacks.LambdaCallback(on_epoch_end=kill)
    first.callbacks = [*first.callbacks[:-1], last]
    with pytest.raises(Kill):
        first.fit(7)
    again = resumable(tmp_path, 0)
    again.callbacks = [*again.callbacks[:-1], keras.callbacks.LambdaCallback()]
    assert outcome(again, again.fit(7)) == uninterrupted


def test_a_finished_training_is_not_repeated(tmp_path: Path, uninterrupted: dict[str, Any]) -> None:
    KillAt.armed = False
    resumable(tmp_path, 0).fit(7)
    again = resumable(tmp_path, 0)
    again._update = None  # any step would fail
    assert outcome(again, again.fit(7)) == uninterrupted


def test_training_goes_on_when_more_epochs_are_asked_for(tmp_path: Path) -> None:
    trainer(tmp_path / "a").fit(2)
    longer, whole = trainer(tmp_path / "a"), trainer(tmp_path / "b")
    assert longer.fit(3) == whole.fit(3)
    np.testing.assert_array_equal(kernel(longer), kernel(whole))


class Spoil(keras.callbacks.Callback):
    """Makes a weight NaN before (or after) a step of the second epoch."""

    def __init__(self, hook: str):
        super().__init__()
        self._last = {"on_train_batch_begin": [3], "on_train_batch_end": [4]}.get(hook, [99])
        setattr(self, hook, self._spoil)

    def _spoil(self, batch: int, logs: Any = None) -> None:
        if self.model.optimizer.iterations.numpy() == self._last[0]:
            self.model.trainable_variables[0].assign([[np.nan], [0.0]])


@pytest.mark.parametrize(("hook", "what"), [("on_train_batch_begin", "a loss"), ("on_train_batch_end", "line/kernel")])
def test_what_is_not_finite_is_named_and_not_saved(tmp_path: Path, hook: str, what: str) -> None:
    broken = trainer(tmp_path, callbacks=[Spoil(hook)])
    with pytest.raises(TrainingError, match=f"{what} was not at epoch 2, step 2"):
        broken.fit(3)
    good = trainer(tmp_path / "good")
    good.fit(1)
    kept = checkpoints.read(tmp_path)
    assert kept is not None
    assert len(kept.progress["history"]) == 1
    again = trainer(tmp_path, callbacks=[Spoil("on_test_begin")])
    again.fit(1)
    np.testing.assert_array_equal(kernel(again), kernel(good))


def test_variables_outside_the_loss_are_named(tmp_path: Path) -> None:
    first, second = keras.layers.Dense(1, name="used"), keras.layers.Dense(1, name="forgotten")
    inputs = keras.Input((2,))
    model = keras.Model(inputs, [first(inputs), second(inputs)])
    model.compile("sgd")
    model.optimizer.build(model.trainable_variables)

    def objective(batch: Any) -> tuple[tf.Tensor, tf.Tensor]:
        return tf.reduce_sum(model(batch["x"])[0]), tf.constant(1.0)

    with pytest.raises(TrainingError, match=r"take part in the loss.*forgotten/kernel', 'forgotten/bias'"):
        trainer(tmp_path, model, objective=objective).fit(1)


def test_errors_of_an_objective_arrive_as_they_are(tmp_path: Path) -> None:
    def objective(batch: Any) -> tuple[tf.Tensor, tf.Tensor]:
        raise TrainingError("a rule of the objective")

    log = keras.callbacks.CSVLogger(str(tmp_path / "log.csv"))
    with pytest.raises(TrainingError, match=r"^a rule of the objective$"):
        trainer(tmp_path, objective=objective, callbacks=[log]).fit(1)
    assert log.csv_file.closed
