"""Training on events that do not fit in memory: the same road, the same answers, and the same weights after a kill."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pyarrow as pa
import pytest
import tables
import world

from tfrec import config as settings
from tfrec import pipeline
from tfrec.data import groups
from tfrec.data.groups import EventGroups
from tfrec.data.parquet_batches import ParquetBatches
from tfrec.errors import DataError
from tfrec.training.loop import Trainer

MEMORY = 2e-6  # GiB: about half of the shop's events


class Kill(Exception):  # noqa: N818
    """Stands for a kill: nothing in the loop handles it."""


def on_disk(folder: Path, disk: EventGroups, kill_at: int) -> Trainer:
    """A trainer of a checkerboard's events in Parquet, killed after so many steps, 0 = never."""
    config = world.settings(
        {"history": ["decay"]}, loss="in_batch", optimizer="lazy_adam", batch=4, checkpoint_steps=2, targets="last"
    )
    data = world.retrieval_data(config, disk.whole(), groups=disk)

    def kill(step: int, logs: Any = None) -> None:
        if trainer.model.optimizer.iterations.numpy() == kill_at:
            raise Kill

    trainer = world.make_trainer(config, data, folder, [keras.callbacks.LambdaCallback(on_train_batch_end=kill)])
    assert isinstance(trainer.batches, ParquetBatches)
    return trainer


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> EventGroups:
    table = pa.table(world.checkerboard(12, 10, blocks=2, seed=0, events=5))
    path = tmp_path_factory.mktemp("disk") / "events.parquet"
    groups.write(path, table.schema, table.to_batches(), 12)
    return EventGroups((path,))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, disk: EventGroups) -> Trainer:
    trainer = on_disk(tmp_path_factory.mktemp("whole"), disk, 0)
    assert trainer.batches.steps == 6
    trainer.fit(2)
    return trainer


@pytest.mark.parametrize("step", [3, 7, 10])
def test_broken_off_at_any_step_the_weights_are_the_same(
    tmp_path: Path, disk: EventGroups, uninterrupted: Trainer, step: int
) -> None:
    with pytest.raises(Kill):
        on_disk(tmp_path, disk, step).fit(2)
    again = on_disk(tmp_path, disk, 0)
    again.fit(2)
    assert world.largest_difference(again.model, uninterrupted.model) == 0.0


def test_the_road_from_disk(tmp_path: Path) -> None:
    path = tables.shop(tmp_path)
    plain = ["model.text=none", "features.text.columns=[]", "train.epochs=12", "evaluate.bootstrap=0"]
    tables_of_ids = [
        "model.user_id=true",
        'model.user_table={kind="hashed", rows=30}',
        'model.item_table={kind="compositional", rows=8}',
    ]
    measure = ["evaluate.k=[5]", "train.monitor=ndcg@5"]
    config = settings.load(path, [*plain, *tables_of_ids, *measure, f"train.memory={MEMORY}"])
    lines: list[str] = []
    run = pipeline.train(config, lines.append)
    assert not run.prepared.fits
    sampled = len(np.unique(run.prepared.events["user"]))
    assert 5 < sampled < 35
    what = f"are of {sampled} of 40 users"
    assert any("training reads them from Parquet" in line and what in line for line in lines)
    assert any(line.startswith("tables and optimizer: ") and "item ids" in line for line in lines)
    assert set(run.prepared.events) == set(run.prepared.groups.columns)
    # Four items of the block are unseen before the test item: they come before all others.
    assert pipeline.evaluate(config, lines.append)["test"]["hr@5"] > 0.9
    # Verified as TensorFlow Serving runs it, and against the Keras model's own scores.
    assert pipeline.export(config, lines.append).is_dir()


def test_all_events_stay_in_memory_where_they_fit(tmp_path: Path) -> None:
    config = settings.load(tables.shop(tmp_path), ["model.text=none", "features.text.columns=[]"])
    run = pipeline.prepare(config, lambda line: None)
    assert run.prepared.fits
    assert run.retrieval_data().groups is None
    assert pipeline._where_events_are(run) == "280 events take 4.43e-06 GiB: in memory"


def test_damaged_prepared_tables_are_named(tmp_path: Path) -> None:
    config = settings.load(tables.shop(tmp_path), ["model.text=none", "features.text.columns=[]"])
    run = pipeline.prepare(config, lambda line: None)
    path = run.folder / "prepared" / "events.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"prepared tables must be whole.*events\.parquet.*tfrec prepare"):
        pipeline.train(config, lambda line: None)
