from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfrec.errors import TrainingError
from tfrec.training import checkpoints


def variables() -> list[Any]:
    dense = keras.layers.Dense(2, name="dense")
    dense.build((None, 3))
    return [*dense.variables, tf.Variable(3.5, name="loss")]


class Stateful(keras.callbacks.Callback):
    def __init__(self) -> None:
        super().__init__()
        self.best, self.wait, self.seen, self.path = np.float32(0.25), 0, {"a": [1, 2]}, "here"
        self.best_weights: list[np.ndarray] | None = None


def test_everything_comes_back_bit_for_bit(tmp_path: Path) -> None:
    saved, callback = variables(), Stateful()
    callback.wait, callback.best_weights = 3, [np.float32(2.5), np.arange(12.0), np.float32([[np.pi]])]
    callback.path = "where it was written"
    checkpoints.save(tmp_path, saved, [callback], {"step": 7})
    fresh, other = variables(), Stateful()
    other.seen = {}
    stored = checkpoints.read(tmp_path)
    assert stored is not None
    stored.restore(fresh, [other])
    assert stored.progress == {"step": 7}
    for a, b in zip(saved, fresh, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
    assert (other.best, other.wait, other.seen) == (0.25, 3, {"a": [1, 2]})
    for a, b in zip(callback.best_weights, other.best_weights, strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype
    assert other.path == "here"  # a run's folder may have moved


def test_more_than_ten_best_weights_keep_their_order(tmp_path: Path) -> None:
    callback = Stateful()
    callback.best_weights = [np.array([i]) for i in range(13)]
    checkpoints.save(tmp_path, [], [callback], {})
    other = Stateful()
    checkpoints.read(tmp_path).restore([], [other])
    assert np.concatenate(other.best_weights).tolist() == list(range(13))


def test_parameters_of_the_run_are_not_state(tmp_path: Path) -> None:
    callback = Stateful()
    callback.set_params({"epochs": 2})
    checkpoints.save(tmp_path, [], [callback], {})
    other = Stateful()
    other.set_params({"epochs": 9})
    checkpoints.read(tmp_path).restore([], [other])
    assert other.params == {"epochs": 9}


def test_names_that_keras_counts_up_do_not_matter(tmp_path: Path) -> None:
    def optimizer() -> list[Any]:
        made = keras.optimizers.Adam()
        made.build(variables()[:2])
        return [*made.variables, keras.random.SeedGenerator(1).state]

    saved, again = optimizer(), optimizer()
    assert [v.path for v in saved] != [v.path for v in again]
    checkpoints.save(tmp_path, saved, [], {})
    checkpoints.read(tmp_path).restore(again, [])


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert checkpoints.read(tmp_path / "absent") is None


def test_a_write_that_fails_keeps_the_checkpoint_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints.save(tmp_path, variables(), [], {"step": 1})

    def torn(file: Any, **arrays: Any) -> None:
        file.write(b"half")
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", torn)
        with pytest.raises(OSError, match="disk full"):
            checkpoints.save(tmp_path, variables(), [], {"step": 2})
    assert checkpoints.read(tmp_path).progress == {"step": 1}
    checkpoints.save(tmp_path, variables(), [], {"step": 3})
    assert {path.name for path in tmp_path.iterdir()} == {checkpoints.FILE, checkpoints.BEFORE}


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_continues(tmp_path: Path) -> None:
    for step in (1, 2):
        checkpoints.save(tmp_path, variables(), [], {"step": step})
    (tmp_path / checkpoints.FILE).write_bytes(b"torn")
    with pytest.warns(
        UserWarning, match=r"must be whole; got '.*checkpoint\.npz: .*from the one before it, .*before\.npz"
    ):
        stored = checkpoints.read(tmp_path)
    assert stored.progress == {"step": 1}
    stored.restore(variables(), [])
    assert checkpoints.read(tmp_path).progress == {"step": 1}  # the next one does not put a damaged one in its place


def test_a_reader_leaves_the_files_of_who_writes(tmp_path: Path) -> None:
    checkpoints.save(tmp_path, variables(), [], {"step": 1})
    (tmp_path / checkpoints.FILE).rename(tmp_path / checkpoints.BEFORE)  # a kill between two renames
    checkpoints.read(tmp_path).restore(variables(), [], writes=False)
    assert [path.name for path in tmp_path.iterdir()] == [checkpoints.BEFORE]


def test_two_damaged_checkpoints_are_both_named(tmp_path: Path) -> None:
    for name in (checkpoints.FILE, checkpoints.BEFORE):
        (tmp_path / name).write_bytes(b"torn")
    with pytest.raises(TrainingError, match=r"must be whole; got '.*checkpoint\.npz: .*before\.npz: .*'\. Remove it"):
        checkpoints.read(tmp_path)


def test_damage_is_named_or_harmless(tmp_path: Path) -> None:
    saved = variables()
    checkpoints.save(tmp_path, saved, [Stateful()], {"step": 1})
    path = tmp_path / checkpoints.FILE
    whole = path.read_bytes()
    random = np.random.default_rng(0)
    damaged = [whole[:cut] for cut in (0, 1, 100, len(whole) // 2, len(whole) - 1)]
    for place in random.choice(len(whole), 150, replace=False):
        damaged.append(whole[:place] + bytes([whole[place] ^ (1 << random.integers(8))]) + whole[place + 1 :])
    refused = 0
    for content in damaged:
        path.write_bytes(content)
        fresh = variables()
        try:
            checkpoints.read(tmp_path).restore(fresh, [Stateful()])
        except TrainingError as error:
            refused += 1
            assert "checkpoint" in str(error) and checkpoints.FILE in str(error)
        else:
            for a, b in zip(saved, fresh, strict=True):
                np.testing.assert_array_equal(a.numpy(), b.numpy())
    assert refused > len(damaged) // 2


def other_shape() -> list[Any]:
    return [keras.Variable(np.zeros((3, 3)), name="kernel"), *variables()[1:]]


@pytest.mark.parametrize("other", [lambda: variables()[:-1], lambda: [*variables(), tf.Variable(1.0)], other_shape])
def test_another_model_is_refused_before_anything_is_assigned(tmp_path: Path, other: Any) -> None:
    checkpoints.save(tmp_path, variables(), [], {})
    wanted = other()
    before = [v.numpy() for v in wanted]
    with pytest.raises(TrainingError, match=r"must fit the model; .*checkpoint\.npz holds 0000"):
        checkpoints.read(tmp_path).restore(wanted, [])
    np.testing.assert_equal([v.numpy() for v in wanted], before)


def test_other_callbacks_are_refused(tmp_path: Path) -> None:
    checkpoints.save(tmp_path, [], [Stateful()], {})
    with pytest.raises(TrainingError, match=r"its callbacks, \['Stateful'\].*got \['Stateful', 'History'\]"):
        checkpoints.read(tmp_path).restore([], [Stateful(), keras.callbacks.History()])
