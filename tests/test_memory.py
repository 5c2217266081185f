"""Memory before training: the tables' bytes are those of the built model, and too many are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import world

from tfrec.errors import TrainingError
from tfrec.training import memory
from tfrec.training.memory import Need
from tfrec.training.optimizers import make_optimizer
from tfrec.training.retrieval import build

EVENTS = world.checkerboard(12, 10, blocks=2, seed=0, events=5)
COUNTS = {"item": np.bincount(EVENTS["item"], minlength=11), "user": np.r_[0, [5] * 6, [2] * 6]}
TABLES = [
    {"kind": "full"},
    {"kind": "hashed", "rows": 7, "hashes": 3},
    {"kind": "compositional", "rows": 4},
    {"min_count": 3},
]


@pytest.mark.parametrize("table", TABLES, ids=["full", "hashed", "compositional", "frequent"])
@pytest.mark.parametrize("optimizer", ["adamw", "lazy_adam", "sparse_adagrad", "rowwise_adagrad", "sgd"])
def test_ids_need_what_the_model_and_its_optimizer_allocate(table: dict[str, Any], optimizer: str) -> None:
    model: dict[str, Any] = {"item_table": table, "user_table": table, "user_id": True, "history": ["decay"]}
    config = world.settings(model, loss="in_batch", optimizer=optimizer, keep="last")
    data = world.retrieval_data(config, EVENTS, counts=COUNTS)
    made = build(config, data)
    made.compile(optimizer=make_optimizer(config.train))
    made.optimizer.build(made.trainable_variables)
    dense = 0 if optimizer in ("lazy_adam", "sparse_adagrad", "rowwise_adagrad") else 1
    weights = {v.path: v.numpy().nbytes for v in made.trainable_variables if "/id/" in v.path}
    flat = [path.replace("/", "_") for path in weights]
    slots = [v.numpy().nbytes for v in made.optimizer.variables if any(path in v.path for path in flat)]
    needs = {need.name: need.bytes for need in memory.tables(config, data)}
    assert needs["item ids"] + needs["user ids"] == sum(weights.values()) * (1 + dense) + sum(slots)


def test_the_best_epoch_is_a_copy_and_the_softmax_its_catalogue() -> None:
    def need(**train: Any) -> dict[str, int]:
        config = world.settings({}, optimizer="sgd", **train)
        return {n.name: n.bytes for n in memory.tables(config, world.retrieval_data(config, EVENTS))}

    assert need(keep="best")["item ids"] == 3 * 11 * 8 * 4
    assert need(keep="last")["item ids"] == 2 * 11 * 8 * 4
    assert need(loss="softmax")["item vectors"] == 4 * need(loss="in_batch")["item vectors"] == 4 * 11 * 8 * 4


def test_columns_and_values_count() -> None:
    config = world.settings({}, loss="in_batch", optimizer="lazy_adam", keep="last")
    columns = {"brand": np.zeros((11, 2), np.int32)}
    data = world.retrieval_data(config, EVENTS, item_columns=columns, vocabularies={"brand": 5})
    needs = {need.name: need.bytes for need in memory.tables(config, data)}
    assert needs["stored columns"] == 88
    assert needs["features"] == 5 * 8 * 4 * 3


def test_what_does_not_fit_is_refused_with_the_setting_to_change() -> None:
    needs = [Need("a", 3 * 2**30, "model.dimension"), Need("b", 5 * 2**30, "model.item_table.kind")]
    assert memory.check(needs, None) == memory.check(needs, 8 * 2**30)
    assert memory.check(needs, None) == "tables and optimizer: 8.00 GiB (b 5.00 GiB, a 3.00 GiB)"
    with pytest.raises(TrainingError, match=r"7\.90 GiB of which is free; got '8\.00 GiB .*item_table\.kind"):
        memory.check(needs, int(7.9 * 2**30))


def test_free_memory_is_the_machines_or_the_containers(tmp_path: Path) -> None:
    assert memory.available(tmp_path) is None
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 900 kB\nMemAvailable:   500 kB\nHugePages_Total: 0\n")
    assert memory.available(tmp_path) == 500 * 1024
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/memory.current").write_text("1000\n")
    for most, expected in (("max", 512_000), ("5000", 4_000), ("900", 0)):
        (tmp_path / "sys/fs/cgroup/memory.max").write_text(f"{most}\n")
        assert memory.available(tmp_path) == expected
