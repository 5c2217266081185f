"""Which epoch is kept, and how long the refit lasts, with a training that is played by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import keras
import pytest

from tfrec.config import Config, validate
from tfrec.training.fitting import Fitted, choose_and_refit

VALID = (1.0, 3.0, 2.0, 0.0)  # metric after each epoch


class Played:
    """A training that sets the only weight to the number of epochs done."""

    def __init__(self) -> None:
        self.calls: list[tuple[tuple[int, ...], int]] = []

    def __call__(
        self, splits: tuple[int, ...], epochs: int, folder: Path, callbacks: Sequence[keras.callbacks.Callback]
    ) -> tuple[keras.Model, list[dict[str, float]]]:
        self.calls.append((splits, epochs))
        model, history = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)]), []
        model.compile("sgd")
        every = keras.callbacks.CallbackList(list(callbacks), model=model)
        every.on_train_begin()
        for epoch, metric in enumerate(VALID[:epochs]):
            if getattr(model, "stop_training", False):
                break
            every.on_epoch_begin(epoch)
            model.layers[0].kernel.assign([[epoch + 1.0]])
            history.append({"learning_rate": 0.1, "val_x": metric})
            every.on_epoch_end(epoch, history[-1])
        every.on_train_end()
        return model, history


def fitted(played: Played, folder: Path, **train: object) -> Fitted[keras.Model]:
    tree = {"run": {"name": "x"}, "data": {"source": "ml-100k"}, "model": {"text": "none"}}
    config: Config = validate({**tree, "train": {"epochs": 4, **train}})
    return choose_and_refit(config, played, "x", "max", folder)


@pytest.mark.parametrize(
    ("train", "kept", "seen"),
    [
        ({"patience": 0}, 2, 4),
        ({"patience": 1}, 2, 3),
        ({"patience": 0, "keep": "last"}, 4, 4),
        ({"patience": 1, "keep": "last"}, 3, 3),
    ],
)
def test_the_best_epoch_or_the_last_is_kept_and_refitted(
    train: dict[str, object], kept: int, seen: int, tmp_path: Path
) -> None:
    played = Played()
    found = fitted(played, tmp_path, **train)
    assert float(found.selected.layers[0].kernel[0, 0]) == kept and len(found.history) == seen
    assert played.calls == [((0,), 4), ((0, 1), kept)]
    assert float(found.final.layers[0].kernel[0, 0]) == kept


def test_without_a_refit_the_selected_model_is_the_final_one(tmp_path: Path) -> None:
    found = fitted(Played(), tmp_path, refit=False)
    assert found.final is found.selected
