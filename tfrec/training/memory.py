"""What a two-tower model's tables need in memory, told before anything is allocated."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from tfrec.config import Config, Train
from tfrec.errors import TrainingError
from tfrec.id_table import IdTable
from tfrec.schema import Side
from tfrec.training.retrieval import RetrievalData, frequent_ids

_FLOAT = 4
_SLOTS = {"adamw": 2, "adam": 2, "lazy_adam": 2, "adagrad": 1, "sparse_adagrad": 1, "rowwise_adagrad": 0, "sgd": 0}
_SPARSE = ("sparse_adagrad", "rowwise_adagrad", "lazy_adam")


class Need(NamedTuple):
    """Bytes of one table, and what would lower them."""

    name: str
    bytes: int
    setting: str


def tables(config: Config, data: RetrievalData) -> list[Need]:
    """What grows with users, items and values; networks are small beside it.

        rows · d · 4 · (weights + best weights + optimizer's slots + a dense gradient)

    A row-wise accumulator is one number a row; a sparse optimizer has no dense gradient.
    """
    settings, width, copies = config.model, config.model.dimension, _copies(config.train)
    needs = []
    for side, ids, on in (("item", data.items, settings.item_id), ("user", data.users, settings.user_id)):
        rows = id_rows(config, data, side, ids) if on else 0  # type: ignore[arg-type]
        advice = f'model.{side}_table.kind = "hashed" or "compositional", model.dimension or train.optimizer'
        needs.append(Need(f"{side} ids", _learned(rows, width, config.train, copies), advice))
    rows = sum(data.vocabularies.values())
    needs.append(Need("features", _learned(rows, width, config.train, copies), "max_vocabulary or min_count"))
    fixed = sum(column.nbytes for columns in (data.item_columns, data.user_columns) for column in columns.values())
    needs.append(Need("stored columns", fixed, 'features.columns or model.text = "none"'))
    # The softmax over the catalogue keeps vectors, what they were before their norm, and the gradient of both.
    vectors = (data.items + 1) * width * _FLOAT * (4 if config.train.loss == "softmax" else 1)
    needs.append(Need("item vectors", vectors, 'train.loss = "sampled_softmax", or model.dimension'))
    return [need for need in needs if need.bytes]


def id_rows(config: Config, data: RetrievalData, side: Side, ids: int) -> int:
    """Embedding rows of the ids of one side."""
    table: IdTable = config.model.item_table if side == "item" else config.model.user_table
    if table.min_count > 1:
        return int(frequent_ids(config.model, data.counts)[side].sum()) + 1
    if table.kind == "full":
        return ids + 1
    return table.rows + (-(-(ids + 1) // table.rows) if table.kind == "compositional" else 0)


def _copies(train: Train) -> int:
    best = 1 if train.epochs and train.keep == "best" else 0
    return 1 + best + _SLOTS[train.optimizer] + (0 if train.optimizer in _SPARSE else 1)


def _learned(rows: int, width: int, train: Train, copies: int) -> int:
    return rows * (width * copies + (train.optimizer == "rowwise_adagrad")) * _FLOAT


def check(needs: Iterable[Need], available: int | None) -> str:
    """A line that says what the tables need.

    Args:
        needs: of :func:`tables`.
        available: bytes, or None where it is not known.

    Raises:
        TrainingError: they need more.
    """
    needs = sorted(needs, key=lambda need: -need.bytes)
    total = sum(need.bytes for need in needs)
    parts = ", ".join(f"{need.name} {_size(need.bytes)}" for need in needs)
    line = f"tables and optimizer: {_size(total)} ({parts})"
    if available is not None and total > available:
        rule = f"tables and optimizer must fit in memory, {_size(available)} of which is free"
        raise TrainingError(rule, f"{_size(total)} ({parts})", f"Change {needs[0].setting}")
    return line


def _size(number: int) -> str:
    return f"{number / 2**30:.2f} GiB" if number >= 2**30 else f"{number / 2**20:.1f} MiB"


def available(root: Path = Path("/")) -> int | None:
    """Bytes of memory that this process may still take, as Linux tells it; None elsewhere.

    Args:
        root: of the file system.
    """
    try:
        lines = (root / "proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    free = {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)}
    limits = [free["MemAvailable"]] if "MemAvailable" in free else []
    return min([*limits, *_container(root / "sys/fs/cgroup")], default=None)


def _container(folder: Path) -> list[int]:
    """What a container's limit leaves, if it has one."""
    try:
        most, now = ((folder / name).read_text(encoding="ascii").strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return []
    return [] if most == "max" else [max(int(most) - int(now), 0)]
