"""Small worlds with known answers, and the tiny models and settings that several tests share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfrec.config import Config, validate
from tfrec.training import retrieval
from tfrec.training.loop import Trainer
from tfrec.training.optimizers import make_optimizer
from tfrec.training.retrieval import RetrievalData, build
from tfrec.training.strategies import make_strategy

# A key's bias shifts all attention logits of a query alike, and softmax does not see it: rounding is its gradient.
NO_GRADIENT = "key/bias"


def checkerboard(users: int, items: int, blocks: int, seed: int, events: int = 8) -> dict[str, np.ndarray]:
    """Users of block b like the items of block b and nothing else.

    User u and item i (1-based) belong to blocks (u - 1) % blocks and (i - 1) % blocks. Of each user's
    ``events`` distinct items the last is test, the one before valid, the others train.

    Returns:
        {"user": int32 [E], "item": int32 [E], "split": int8 [E]}, sorted by user and time.
    """
    random = np.random.default_rng(seed)
    own = [np.arange(block + 1, items + 1, blocks) for block in range(blocks)]
    chosen = [random.permutation(own[(user - 1) % blocks])[:events] for user in range(1, users + 1)]
    splits = [[0] * (len(list_) - 2) + [1, 2] for list_ in chosen]
    return {
        "user": np.repeat(np.arange(1, users + 1), [len(list_) for list_ in chosen]).astype(np.int32),
        "item": np.concatenate(chosen).astype(np.int32),
        "split": np.concatenate(splits).astype(np.int8),
    }


def own_block(users: np.ndarray, items: int, blocks: int) -> np.ndarray:
    """bool [Q, N + 1]: whether an item is of the user's block; column 0 is False."""
    same = (users[:, None] - 1) % blocks == (np.arange(items + 1)[None] - 1) % blocks
    return same & (np.arange(items + 1) > 0)


def settings(model: Mapping[str, Any] | None = None, **train: Any) -> Config:
    """Settings of a model that trains in a second."""
    small = {"dimension": 8, "text": "none", "history": ["decay", "transformer"], "history_length": 6}
    quick = {"epochs": 2, "batch": 8, "learning_rate": 0.01, "warmup_steps": 0, "refit": False}
    return validate(
        {
            "run": {"name": "world"},
            "data": {"source": "tables", "interactions": "none.csv"},
            "features": {"text": {"columns": ["title"]}} if (model or {}).get("text", "none") != "none" else {},
            "model": small | dict(model or {}),
            "train": quick | train,
        }
    )


def retrieval_data(config: Config, events: Mapping[str, np.ndarray], **more: Any) -> RetrievalData:
    """Events without features as training data; ``more`` replaces fields of :class:`RetrievalData`."""
    counts = {"users": int(events["user"].max()), "items": int(events["item"].max())}
    return RetrievalData(events, **counts, **{"user_columns": {}, "item_columns": {}, "vocabularies": {}, **more})


def make_trainer(config: Config, data: RetrievalData, folder: Path, callbacks: Sequence[Any] = ()) -> Trainer:
    """The trainer of the settings on train events alone, without early stopping."""
    keras.utils.set_random_seed(config.run.seed)
    strategy = make_strategy(config.train)
    with strategy.scope():
        model = build(config, data)
        model.compile(optimizer=make_optimizer(config.train))
        model.optimizer.build(model.trainable_variables)
    batches = retrieval._batches(config, data, (0,))
    return Trainer(
        model,
        retrieval._objective(config, data, model, batches),
        batches,
        strategy,
        folder,
        callbacks=callbacks,
        accumulate=config.train.accumulate,
        clip_norm=config.train.clip_norm,
        checkpoint_steps=config.train.checkpoint_steps,
        jit=config.train.jit,
        sharded=getattr(batches, "shards", 1) > 1,
    )


def weights(model: keras.Model) -> dict[str, np.ndarray]:
    """Trainable weights by path."""
    return {v.path: v.numpy() for v in model.trainable_variables}


def largest_difference(a: keras.Model, b: keras.Model) -> float:
    """Of all trainable weights that the loss depends on."""
    theirs = weights(b)
    mine = {path: value for path, value in weights(a).items() if not path.endswith(NO_GRADIENT)}
    return max(float(np.max(np.abs(value - theirs[path]))) for path, value in mine.items())
