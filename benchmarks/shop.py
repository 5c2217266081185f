"""A small shop whose export holds a real BERT: what the benchmarks of serving and of the life cycle work on."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tfrec import cli

USERS, ITEMS, EVENTS = 200, 300, 8
_KINDS = ("red", "blue", "steel", "wooden", "small", "large", "garden", "kitchen", "office", "travel")
_THINGS = ("lamp", "chair", "knife", "kettle", "drill", "bag", "clock", "table", "brush", "mug")
_CONFIG = """
[run]
name = "shop"
folder = "{folder}/runs"

[data]
source = "tables"
interactions = "{folder}/interactions.parquet"
items = "{folder}/items.parquet"
roles = {{ title = "title" }}

[features.text]
columns = ["title"]

[train]
epochs = 1

[export]
folder = "{folder}/exports"
"""


def titles(count: int, seed: int = 0) -> list[str]:
    """Titles of eight words, as of products."""
    words = np.random.default_rng(seed).choice(_KINDS + _THINGS, (count, 7))
    return [f"{' '.join(row)} {i}" for i, row in enumerate(words.tolist())]


def train_shop(folder: Path) -> Path:
    """Trains and exports; returns exports/shop, with version 1."""
    random = np.random.default_rng(0)
    users = np.repeat(np.arange(USERS), EVENTS)
    events = {"user_id": users.astype(str), "item_id": random.integers(0, ITEMS, USERS * EVENTS).astype(str)}
    pq.write_table(pa.table(events), folder / "interactions.parquet")
    items = {"item_id": [str(i) for i in range(ITEMS)], "title": titles(ITEMS)}
    pq.write_table(pa.table(items), folder / "items.parquet")
    config = folder / "shop.toml"
    config.write_text(_CONFIG.format(folder=folder), encoding="utf-8")
    with contextlib.redirect_stdout(sys.stderr):
        if cli.main(["train", str(config), "--quiet"]):
            raise SystemExit("the shop must be trained")
    return folder / "exports" / "shop"
