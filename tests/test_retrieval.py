from __future__ import annotations

import dataclasses
from pathlib import Path

import keras
import numpy as np
import pytest
import world

from tfrec.config import Config
from tfrec.errors import TrainingError
from tfrec.evaluation.holdouts import make_holdout
from tfrec.models.two_tower import TwoTower
from tfrec.training import retrieval
from tfrec.training.retrieval import Fitted, RetrievalData, build, fit, stored_histories
from tfrec.training.validation import RetrievalScorer
from tfrec.training.warm_start import starter

USERS, ITEMS, BLOCKS = 40, 24, 2
EVENTS = world.checkerboard(USERS, ITEMS, BLOCKS, seed=3, events=8)
CONFIG = world.settings(
    {"dimension": 16, "embedding_dropout": 0.1, "dropout": 0.1, "temperature": 5.0},
    epochs=12,
    learning_rate=0.02,
    patience=4,
    refit=True,
    monitor="hr@10",
)


def data(**more: object) -> RetrievalData:
    return dataclasses.replace(world.retrieval_data(CONFIG, EVENTS), **more)


def share_of_own_block(model: TwoTower) -> float:
    """Of the best items of each user, as many as the block has left: the share that is of the block."""
    holdout = make_holdout(EVENTS, USERS, 2, "mask")
    scores = RetrievalScorer(model).scorer(holdout)(np.arange(len(holdout)))
    own = world.own_block(holdout.users, ITEMS, BLOCKS)
    for row, history in enumerate(np.split(holdout.history[0], holdout.history[1][1:-1])):
        scores[row, history] = -np.inf
    scores[:, 0] = -np.inf
    best = np.argsort(-scores, axis=1)[:, :5]  # 12 of a block, 7 of them known
    return float(np.take_along_axis(own, best, axis=1).mean())


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Fitted, Path]:
    folder = tmp_path_factory.mktemp("fit")
    return fit(CONFIG, data(), folder), folder


def test_a_trained_model_ranks_the_own_block_first(fitted: tuple[Fitted, Path]) -> None:
    untrained = share_of_own_block(build(CONFIG, data()))
    assert untrained < 0.75
    assert share_of_own_block(fitted[0].selected) > 0.97
    assert share_of_own_block(fitted[0].final) > 0.97


def test_the_selected_model_is_that_of_the_best_epoch(fitted: tuple[Fitted, Path]) -> None:
    best = max(logs["val_hr@10"] for logs in fitted[0].history)
    holdout = make_holdout(EVENTS, USERS, 1, "mask")
    assert RetrievalScorer(fitted[0].selected).metrics(holdout, (10,))["hr@10"] == pytest.approx(best)


def test_the_refit_sees_valid_events_and_the_chosen_number_of_epochs(fitted: tuple[Fitted, Path]) -> None:
    best = int(np.argmax([logs["val_hr@10"] for logs in fitted[0].history]))
    rows = (fitted[1] / "refit" / "history.csv").read_text().splitlines()
    assert len(rows) == 1 + best + 1
    assert len(retrieval._batches(CONFIG, data(), (0, 1)).values) == USERS * 7
    assert len(retrieval._batches(CONFIG, data(), (0,)).values) == USERS * 6
    assert world.largest_difference(fitted[0].selected, fitted[0].final) > 1e-3


def test_a_second_call_continues_what_is_finished(fitted: tuple[Fitted, Path]) -> None:
    again = fit(CONFIG, data(), fitted[1])
    assert again.history == fitted[0].history
    assert world.largest_difference(again.selected, fitted[0].selected) == 0
    assert world.largest_difference(again.final, fitted[0].final) == 0


def test_no_epochs_give_the_model_that_it_starts_from(fitted: tuple[Fitted, Path], tmp_path: Path) -> None:
    names = {"item": [str(i) for i in range(ITEMS)], "user": [str(u) for u in range(USERS)]}
    config = CONFIG.model_copy(update={"train": CONFIG.train.model_copy(update={"epochs": 0})})
    warm = fit(config, data(start=starter(fitted[0].final, names, names)), tmp_path)
    assert warm.history == []
    assert world.largest_difference(warm.final, fitted[0].final) == 0


def test_further_callbacks_are_made_for_both_trainings(tmp_path: Path) -> None:
    made: list[keras.callbacks.History] = []

    def callbacks() -> list[keras.callbacks.Callback]:
        made.append(keras.callbacks.History())
        return [made[-1]]

    short = CONFIG.model_copy(update={"train": CONFIG.train.model_copy(update={"epochs": 1, "tensorboard": True})})
    fit(short, data(), tmp_path, callbacks)
    assert [sorted(history.history) for history in made] == [
        sorted(made[0].history),
        ["learning_rate", "loss"],
    ]
    assert "val_hr@10" in made[0].history
    assert list((tmp_path / "select" / "tensorboard").rglob("events.*"))


@pytest.mark.parametrize(
    "loss",
    [
        {"loss": "in_batch"},
        {"loss": "sampled_softmax", "negatives": 16, "negative_sampling": "popularity"},
        {"loss": "sampled_softmax", "negatives": 16, "negative_sampling": "mixed"},
        {"loss": "gbce", "negatives": 16},
    ],
    ids=["in_batch", "popularity", "mixed", "gbce"],
)
def test_other_losses_learn_the_blocks_too(tmp_path: Path, loss: dict[str, object]) -> None:
    train = CONFIG.train.model_copy(update={**loss, "targets": "last", "refit": False, "batch": 32})
    config: Config = CONFIG.model_copy(update={"train": train})
    assert share_of_own_block(fit(config, data(), tmp_path).final) > 0.9


def test_epochs_cannot_be_chosen_without_validation_events(tmp_path: Path) -> None:
    train = {name: column[EVENTS["split"] == 0] for name, column in EVENTS.items()}
    with pytest.raises(TrainingError, match="validation events; got 0"):
        fit(CONFIG, data(events=train), tmp_path)


def test_stored_histories_are_the_last_items_before_test() -> None:
    events = {
        "user": np.array([1, 1, 1, 2], np.int32),
        "item": np.array([4, 5, 6, 7], np.int32),
        "split": np.array([0, 1, 2, 0], np.int8),
    }
    values, offsets = stored_histories(data(events=events, users=2), 3)
    assert (values.tolist(), offsets.tolist()) == ([4, 5, 7], [0, 0, 2, 3])
    values, offsets = stored_histories(data(events=events, users=2), 1)
    assert (values.tolist(), offsets.tolist()) == ([5, 7], [0, 0, 1, 2])
