"""A run as it stood one held-out position earlier: a second position for the ranker of a cascade to learn from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import keras
import numpy as np

from tfrec.errors import ConfigError
from tfrec.evaluation.holdouts import baskets
from tfrec.models.blend import Blend
from tfrec.runs import Run
from tfrec.training import retrieval
from tfrec.training.retrieval import RetrievalData

EARLIER = "earlier"


def earlier(run: Run) -> Run:
    """The run without valid and test, in which the last of each user's train events is valid.

    Args:
        run: prepared.

    Raises:
        ConfigError: its events do not fit into memory.
    """
    if not run.prepared.fits:
        raise ConfigError(
            "cascade.positions = 2 reads all events: train.memory must hold them", run.config.train.memory, "Raise it"
        )
    past = run.with_config(run.config)
    past.folder, past.prepared = run.folder, replace(run.prepared)
    vars(past.prepared)["events"] = one_earlier(run.prepared.events, run.config.evaluate.holdout)  # a cached property
    return past


def one_earlier(events: Mapping[str, np.ndarray], holdout: str) -> dict[str, np.ndarray]:
    """Train events, of which each user's last are valid; a user's only ones stay train.

    Args:
        events: "user" int32 and "split" int8, sorted by user and time, "timestamp" where ``holdout`` is "basket".
        holdout: "basket" or "item": what counts as one.
    """
    kept = (events["split"] == 0) & (events["user"] > 0)
    found = {name: column[kept] for name, column in events.items()}
    if not kept.any():
        return found
    number = baskets(events, (0,), holdout)
    _, first, user, count = np.unique(found["user"], return_index=True, return_inverse=True, return_counts=True)
    oldest, newest = number[first][user], number[first + count - 1][user]
    return found | {"split": ((number == newest) & (number != oldest)).astype(np.int8)}


def train(
    run: Run,
    data: RetrievalData,
    make_blend: Callable[[Run], Blend] | None,
    callbacks: Callable[[], Sequence[keras.callbacks.Callback]],
) -> None:
    """Trains retrieval of the run one position earlier, as the run's own was; a killed training continues.

    Args:
        run: with trained retrieval.
        data: of the run.
        make_blend: fits the blend that the run has; None = none.
        callbacks: makes Keras callbacks.
    """
    past = earlier(run)
    config = run.config.model_copy(update={"train": run.config.train.model_copy(update={"refit": False})})
    own = replace(data, events=past.prepared.events)
    fitted = retrieval.fit(config, own, run.folder / "checkpoints" / EARLIER, callbacks)
    past.save_model(fitted.selected, EARLIER)
    if make_blend and run.writes:
        past.save_blend(make_blend(past), EARLIER)
