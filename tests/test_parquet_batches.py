"""Batches from row groups: each row once an epoch, whatever the shards, and the rows of the in-memory path."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfrec.data import groups
from tfrec.data.batches import HistoryBatches
from tfrec.data.groups import EventGroups
from tfrec.data.parquet_batches import ParquetBatches
from tfrec.errors import TrainingError
from tfrec.evaluation.holdouts import lists_of

Batch = dict[str, np.ndarray]


def events_of(sizes: list[int], held_out: int = 0, seed: int = 0) -> dict[str, np.ndarray]:
    """Random items; the last ``held_out`` events of each user are valid."""
    random = np.random.default_rng(seed)
    split = [[0] * max(size - held_out, 0) + [1] * min(held_out, size) for size in sizes]
    return {
        "user": np.repeat(np.arange(1, len(sizes) + 1), sizes).astype(np.int32),
        "item": random.integers(1, 1_000, sum(sizes)).astype(np.int32),
        "split": np.array([part for parts in split for part in parts], np.int8),
    }


def write(folder: Path, events: dict[str, np.ndarray], size: int, files: int = 1) -> EventGroups:
    """The events in files of about equally many users, in row groups of at most ``size`` events or one user."""
    users = np.array_split(np.unique(events["user"]), files)
    paths = []
    for i, own in enumerate(users):
        kept = np.isin(events["user"], own)
        part = pa.table({name: column[kept] for name, column in events.items()})
        paths.append(folder / f"part-{i}.parquet")
        groups.write(paths[-1], part.schema, part.to_batches(), size)
    return EventGroups(tuple(paths))


def make(found: EventGroups, **more: object) -> ParquetBatches:
    return ParquetBatches(found, **{"splits": (0,), "length": 3, "batch": 4, "seed": 7, "buffer": 30, **more})


def rows(batches: list[Batch]) -> list[tuple[int, ...]]:
    return [
        (int(user), *history.tolist(), *target.tolist())
        for batch in batches
        for user, history, target in zip(batch["user"], batch["history"], batch["target"], strict=True)
    ]


def epoch_rows(batches: ParquetBatches | HistoryBatches, size: int, epoch: int = 0) -> list[tuple[int, ...]]:
    """The first ``size`` rows of an epoch, which are all but what fills the last batch."""
    read = [{k: v.numpy() for k, v in batch.items()} for batch in batches.dataset(epoch)]
    return rows(read)[:size]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> EventGroups:
    sizes = [1 + user % 9 for user in range(60)]
    return write(tmp_path_factory.mktemp("shop"), events_of(sizes, held_out=2), size=20, files=3)


@pytest.mark.parametrize("first_event", [False, True])
@pytest.mark.parametrize(("targets", "length"), [("last", 3), ("all", 9)])
def test_the_rows_are_those_in_memory(shop: EventGroups, targets: str, length: int, first_event: bool) -> None:
    settings = {"length": length, "targets": targets, "first_event": first_event}
    for splits in ((0,), (0, 1)):
        memory = HistoryBatches(*lists_of(shop.whole(), 60, splits), batch=4, seed=7, **settings)
        disk = make(shop, splits=splits, **settings)
        assert disk.steps == memory.steps
        size = len(memory._rows(0))
        assert sorted(epoch_rows(disk, size)) == sorted(epoch_rows(memory, size))
        assert np.array_equal(disk.target_counts(1_000), memory.target_counts(1_000))


def test_windows_of_long_histories_are_windows_of_their_user(shop: EventGroups) -> None:
    batches = make(shop, windows=3, splits=(0, 1, 2))
    whole = shop.whole()
    counts: Counter[int] = Counter()
    for user, *window in epoch_rows(batches, int(batches._rows.sum()), epoch=2):
        counts[user] += 1
        items = [0, 0, *whole["item"][whole["user"] == user].tolist()]
        assert window[:3] in [items[i : i + 3] for i in range(len(items) - 2)]
    assert counts == {u + 1: 3 if 1 + u % 9 > 4 else 1 for u in range(60) if u % 9}


@settings(max_examples=12, deadline=None)
@given(
    st.lists(st.integers(1, 12), min_size=8, max_size=30),
    st.integers(1, 40),
    st.integers(1, 3),
    st.integers(1, 60),
    st.sampled_from(["all", "last"]),
    st.integers(0, 3),
)
def test_each_row_comes_once_an_epoch_over_all_shards(
    tmp_path_factory: pytest.TempPathFactory,
    sizes: list[int],
    size: int,
    shards: int,
    buffer: int,
    targets: str,
    epoch: int,
) -> None:
    events = events_of([3, *sizes, 5, 5])
    found = write(tmp_path_factory.mktemp("shards"), events, min(size, sum(sizes) // 4), files=3)
    workers = [make(found, batch=6, buffer=buffer, targets=targets, shard=i, shards=shards) for i in range(shards)]
    assert len({worker.steps for worker in workers}) == 1
    seen: Counter[tuple[int, ...]] = Counter()
    for worker in workers:
        own = list(worker.arrays(epoch))
        assert all(len(batch["user"]) == 6 // shards for batch in own)
        seen.update(rows(own)[: int(worker._rows[worker._shards[worker.shard]].sum())])
    one = make(found, batch=1, buffer=buffer, targets=targets)
    if targets == "last":
        assert seen == Counter(rows(list(one.arrays(epoch))))
    assert Counter(row[0] for row in seen.elements()) == Counter(row[0] for row in rows(list(one.arrays(epoch))))


def test_order_is_a_function_of_seed_and_epoch(shop: EventGroups) -> None:
    def order(seed: int, epoch: int) -> str:
        return str(rows(list(make(shop, seed=seed).arrays(epoch))))

    assert order(1, 4) == order(1, 4)
    assert len({order(seed, epoch) for seed in range(3) for epoch in range(3)}) == 9


def test_an_epoch_mixes_users_of_all_files(shop: EventGroups) -> None:
    users = np.array([row[0] for row in rows(list(make(shop, targets="last", buffer=60).arrays(0)))])
    neighbours = np.mean(np.abs(np.diff(users)))
    assert neighbours > 12  # 20 in perfect disorder, 1 or less in the order of the files


@pytest.mark.parametrize("targets", ["all", "last"])
@pytest.mark.parametrize("shards", [1, 2])
def test_from_a_later_step_come_the_same_batches(shop: EventGroups, targets: str, shards: int) -> None:
    for shard in range(shards):
        batches = make(shop, targets=targets, shard=shard, shards=shards)
        whole = list(batches.arrays(2))
        assert len(whole) == batches.steps > 8
        for step in range(batches.steps):
            np.testing.assert_equal(list(batches.arrays(2, step)), whole[step:])


def test_no_more_than_the_buffer_is_shuffled_together(shop: EventGroups) -> None:
    batches = make(shop, buffer=40)
    events = [sum(shop.groups[group].events for group in part) for part in batches._plan(0)]
    assert max(events) < 40 + 20
    assert sorted(np.concatenate(batches._plan(0))) == list(range(len(shop)))


def test_shapes_are_static_for_strategies_and_compilers(shop: EventGroups) -> None:
    spec = make(shop, batch=8, shards=2).dataset(0).element_spec
    shapes = {name: (column.shape.as_list(), column.dtype.name) for name, column in spec.items()}
    assert shapes == {"user": ([4], "int32"), "history": ([4, 3], "int32"), "target": ([4, 3], "int32")}
    assert make(shop, targets="last").dataset(0).element_spec["target"].shape == [4, 1]
    assert make(shop).dataset(0, 3).cardinality().numpy() == make(shop).steps - 3


def test_a_reader_that_stops_early_leaves_no_thread(shop: EventGroups) -> None:
    batches = make(shop).arrays(0)
    next(batches)
    batches.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read-ahead")]


def test_what_cannot_be_divided_is_refused(shop: EventGroups, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="multiple of its shards, 3; got 4"):
        make(shop, shards=3)
    with pytest.raises(TrainingError, match=r"every worker needs a row group.*1 for 2 workers"):
        make(write(tmp_path, events_of([5, 5]), size=100), shards=2)
    with pytest.raises(TrainingError, match="at least two events"):
        make(write(tmp_path, events_of([1, 1, 1]), size=2))
