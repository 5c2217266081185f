"""A run one held-out position earlier, and rankers that learn from both positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import contracts
import numpy as np
import pytest
from conftest import Shop

from tfrec import cascade
from tfrec.config import validate
from tfrec.earlier import earlier, one_earlier
from tfrec.errors import ConfigError
from tfrec.runs import Run
from tfrec.training.cascade import Requests, joined


def by_hand(events: Mapping[str, np.ndarray], holdout: str) -> dict[tuple[int, int, int], int]:
    """The split of each train event, (user, item, its place) -> 0 or 1."""
    found = {}
    for user in set(events["user"].tolist()):
        own = [i for i in range(len(events["user"])) if events["user"][i] == user and events["split"][i] == 0]
        times = [int(events["timestamp"][i]) if holdout == "basket" else i for i in own]
        for i, time in zip(own, times, strict=True):
            found[user, int(events["item"][i]), i] = int(time == times[-1] and times[0] != times[-1])
    return found


@pytest.mark.parametrize("holdout", ["item", "basket"])
@pytest.mark.parametrize("seed", range(5))
def test_the_last_train_events_of_each_user_become_valid(holdout: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    user = np.sort(random.integers(1, 8, 40)).astype(np.int32)
    time = np.concatenate([np.sort(random.integers(0, 6, n)) for n in np.bincount(user)])
    split = np.where(time >= 5, 2, np.where(time >= 4, 1, 0)).astype(np.int8)
    events = {"user": user, "item": random.integers(1, 9, 40).astype(np.int32), "split": split, "timestamp": time}
    found, expected = one_earlier(events, holdout), by_hand(events, holdout)
    places = np.flatnonzero(split == 0)
    assert found["split"].dtype == np.int8 and len(found["user"]) == len(places)
    got = dict(
        zip(
            zip(found["user"].tolist(), found["item"].tolist(), places.tolist(), strict=True),
            found["split"],
            strict=True,
        )
    )
    assert got == expected and 1 in expected.values()


def test_without_train_events_nothing_is_earlier() -> None:
    events = {
        "user": np.array([1, 2], np.int32),
        "item": np.array([1, 2], np.int32),
        "split": np.array([1, 2], np.int8),
    }
    assert all(not len(column) for column in one_earlier(events, "item").values())


def test_an_earlier_run_knows_what_train_knew_without_its_last(shop: Shop) -> None:
    run = Run.open(shop.run)
    past = earlier(run)
    assert past.folder == run.folder and set(np.unique(past.prepared.events["split"])) == {0, 1}
    kept = run.prepared.events["split"] == 0
    np.testing.assert_array_equal(past.prepared.events["item"], run.prepared.events["item"][kept])
    assert 2 in run.prepared.events["split"]  # the run itself stays as it was
    asked, valid = cascade.holdout_of(past, 1), cascade.holdout_of(run, 1)
    assert asked.history[1][-1] < valid.history[1][-1]


def test_events_that_do_not_fit_into_memory_are_refused(shop: Shop) -> None:
    run = Run.open(shop.run)
    small = run.config.model_copy(update={"train": run.config.train.model_copy(update={"memory": 1e-9})})
    other = run.with_config(small)
    other.folder = run.folder
    with pytest.raises(ConfigError, match=r"train.memory must hold them; got 1e-09"):
        earlier(other)


@pytest.mark.parametrize("kind", ["temporal", "random", "per_user"])
def test_splits_without_a_last_position_are_refused(kind: str) -> None:
    tree: dict[str, Any] = {"run": {"name": "a"}, "data": {"source": "ml-100k", "split": {"kind": kind}}}
    tree |= {"model": {"text": "none"}, "cascade": {"candidates": 10, "positions": 2}}
    with pytest.raises(ConfigError, match=r"cascade.positions = 2 holds out what is last"):
        validate(tree)


def test_statistics_of_its_own_past_stand_beside_each_candidate() -> None:
    columns = {"user": np.array([1]), "item": np.array([[2, 0]], np.int32)}
    requests = Requests(columns, np.zeros((1, 2)), np.zeros((1, 2, 1)), np.ones(1))
    found = cascade.with_statistics(requests, {"stat.count": np.array([-1.0, 0.5, 3.0], np.float32)})
    np.testing.assert_array_equal(found.columns["stat.count"], [[3.0, -1.0]])
    assert len(joined([found, found, found])) == 3


def test_what_a_request_gives_wins_over_what_the_ranker_holds() -> None:
    model, inputs = contracts.make("wide_deep"), contracts.batch(3, 2)
    own = np.full((3, 2), 7, np.float32)
    assert not np.allclose(model.gathered(inputs)["price"], own)
    np.testing.assert_array_equal(model.gathered({**inputs, "price": own})["price"], own)
