"""A known-answer shop as tables: users of a block like items of that block, and titles tell the block."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from tiny_encoder import tiny_encoder

BLOCKS = ("fruit", "tool")
ITEMS, USERS, EVENTS = 10, 20, 7  # a block, a block, a user
WORDS = [*BLOCKS, "fresh", "steel", ".", *(str(i) for i in range(ITEMS)), *(f"##{i}" for i in range(10))]


def block(name: str) -> str:
    """The block of a user or item id."""
    return name.partition("-")[0]


def interactions(seed: int = 0) -> list[dict[str, Any]]:
    """EVENTS distinct items of the own block for each user, in an order that users share on average."""
    random = np.random.default_rng(seed)
    rows = []
    for kind in BLOCKS:
        for user in range(USERS):
            for time, item in enumerate(random.permutation(ITEMS)[:EVENTS]):
                rows.append({"user_id": f"{kind}-user-{user}", "item_id": f"{kind}-{item}", "timestamp": 1000 + time})
    return rows


def baskets() -> list[dict[str, Any]]:
    """Four baskets of two lines a user; the first line of each basket was bought before."""
    rows = []
    for kind in BLOCKS:
        for user in range(USERS):
            staple = f"{kind}-{user % ITEMS}"
            for time in range(4):
                for item in (staple, f"{kind}-{(user + 1 + time) % ITEMS}"):
                    rows.append({"user_id": f"{kind}-user-{user}", "item_id": item, "timestamp": 1000 + time})
    return rows


def items() -> list[dict[str, Any]]:
    """Every item, one that nobody has seen and one with neither title nor numbers."""
    rows = [
        {
            "item_id": f"{kind}-{item}",
            "title": f"{('fresh', 'steel')[side]} {kind} {item}",
            "tags": f"{kind}| {'odd' if item % 2 else 'even'} |new",
            "price": float(10 * side + item),
        }
        for side, kind in enumerate(BLOCKS)
        for item in range(ITEMS)
    ]
    rows.append({"item_id": "fruit-new", "title": "fresh fruit", "tags": "fruit", "price": float("inf")})
    rows.append({"item_id": "nameless", "title": None, "tags": None, "price": None})
    return rows


def users() -> list[dict[str, Any]]:
    return [
        {"user_id": f"{kind}-user-{user}", "country": ("Österreich", "日本")[side], "age": float(20 + user)}
        for side, kind in enumerate(BLOCKS)
        for user in range(USERS)
    ]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    """Writes rows as the path's suffix says, .parquet or .csv, and returns its name."""
    table = pa.Table.from_pylist(rows)
    if path.suffix == ".csv":
        pa_csv.write_csv(table, path)
    else:
        pq.write_table(table, path)
    return str(path)


def shop(folder: Path, rows: list[dict[str, Any]] | None = None) -> str:
    """Writes tables, a text encoder and a config of a small model; returns the config's name.

    Args:
        folder: where; runs and exports go below it.
        rows: interactions other than the checkerboard's.
    """
    write(folder / "interactions.parquet", interactions() if rows is None else rows)
    write(folder / "items.csv", items())
    write(folder / "users.parquet", users())
    tiny_encoder(folder / "encoder", WORDS)
    config = folder / "shop.toml"
    config.write_text(_CONFIG.format(folder=folder), encoding="utf-8")
    return str(config)


_CONFIG = """
[run]
name = "shop"
folder = "{folder}/runs"

[data]
source = "tables"
interactions = "{folder}/interactions.parquet"
items = "{folder}/items.csv"
users = "{folder}/users.parquet"
roles = {{ title = "title", price = "price" }}

[features.text]
columns = ["title"]
encoder = "{folder}/encoder"
tokens = 8

[[features.columns]]
name = "tags"
side = "item"
kind = "categorical"
separator = "|"
max_values = 3

[[features.columns]]
name = "price"
side = "item"
kind = "numeric"

[[features.columns]]
name = "country"
side = "user"
kind = "categorical"

[[features.columns]]
name = "age"
side = "user"
kind = "numeric"

[model]
dimension = 16
heads = 1
history = ["decay"]
history_length = 8
embedding_dropout = 0.0
dropout = 0.0

[train]
epochs = 5
patience = 0
batch = 16
learning_rate = 0.03
warmup_steps = 5

[evaluate]
k = [5, 10]
bootstrap = 50

[export]
folder = "{folder}/exports"
"""
