"""A tf.data service in a process of its own gives the batches that are made here, in their order."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import world
from test_batches import make, read

from tfrec.data.groups import EventGroups
from tfrec.data.served import ServedBatches
from tfrec.errors import ConfigError, TrainingError
from tfrec.training import retrieval


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    command = [sys.executable, str(Path(__file__).with_name("data_service.py"))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()


def test_the_batches_and_their_order_are_the_same(address: str) -> None:
    batches = make(windows=3)
    served = ServedBatches(batches, address)
    assert served.steps == batches.steps > 2
    for epoch, first_step in ((0, 0), (1, 2)):
        found = [{k: v.numpy() for k, v in batch.items()} for batch in served.dataset(epoch, first_step)]
        np.testing.assert_equal(found, read(batches, epoch, first_step))
    assert np.array_equal(served.target_counts(50), batches.target_counts(50))


def test_settings_choose_it(address: str, tmp_path: Path) -> None:
    events = world.checkerboard(6, 6, blocks=2, seed=0, events=3)
    config = world.settings({"history": ["decay"]}, data_service=address)
    data = world.retrieval_data(config, events)
    assert isinstance(retrieval._batches(config, data, (0, 1, 2)), ServedBatches)
    with pytest.raises(TrainingError, match=r"fit in memory; got 'grpc.*train\.memory"):
        retrieval._batches(config, replace(data, groups=EventGroups((tmp_path / "x",))), (0,))


def test_a_service_that_is_not_there_is_named() -> None:
    with pytest.raises(TrainingError, match=r"must be reachable; got 'grpc://127\.0\.0\.1:9: .*refused"):
        ServedBatches(make(), "grpc://127.0.0.1:9")
    with pytest.raises(ConfigError, match=r"train\.data_service"):
        world.settings({}, data_service="127.0.0.1:9")
