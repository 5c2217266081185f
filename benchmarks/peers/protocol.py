"""What peers are trained on and asked: the tables that ``tfrec prepare`` wrote, measured as ``tfrec evaluate`` does."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq

from tfrec.errors import DataError
from tfrec.evaluation import metrics
from tfrec.evaluation.holdouts import lists_of, make_holdout
from tfrec.evaluation.ragged import Ragged
from tfrec.evaluation.ranks import Holdout, Scorer, rank

METRIC, AT = "ndcg@10", 10
_CHOOSING_QUERIES = 2_000
Recommender = Callable[[Holdout], Scorer]


class Peer(NamedTuple):
    """A fitted peer.

    Args:
        recommender: gives scores for the queries of test.
        chosen: its settings, with how they were found.
    """

    recommender: Recommender
    chosen: dict[str, Any]


@dataclass(frozen=True)
class Prepared:
    """The part of the prepared tables that peers read.

    Args:
        events: user, item and split, sorted by user and time.
        users: U.
        counts: train events per item [N+1].
        repeats: "mask" or "keep".
    """

    events: dict[str, np.ndarray]
    users: int
    counts: np.ndarray
    repeats: str

    @classmethod
    def read(cls, folder: Path) -> Prepared:
        """From runs/NAME/prepared.

        Raises:
            DataError: the folder holds no prepared tables.
        """
        try:
            settings = json.loads((folder / "report.json").read_text(encoding="utf-8"))["settings"]
            table = pq.read_table(folder / "events.parquet", columns=["user", "item", "split"])
            counts = pq.read_table(folder / "items.parquet", columns=["count"])["count"].to_numpy()
            users = pq.read_metadata(folder / "users.parquet").num_rows
        except OSError as error:
            raise DataError("a folder must hold prepared tables", str(folder), "Run tfrec prepare") from error
        events = {name: table[name].to_numpy() for name in table.column_names}
        return cls(events, users, np.concatenate([[0], counts]), settings["repeats"])

    @property
    def items(self) -> int:
        return len(self.counts) - 1

    def lists(self, *splits: int) -> Ragged:
        """Items of each user in these splits, oldest first; list 0 is empty."""
        return lists_of(self.events, self.users, splits)

    def holdout(self, split: int) -> Holdout:
        """The queries of valid (1) or test (2)."""
        return make_holdout(self.events, self.users, split, self.repeats)

    def choose(self, recommender: Recommender) -> float:
        """ndcg@10 on valid: on 2,000 queries of it, drawn with a fixed seed, when there are more."""
        queries = self.holdout(1)
        if len(queries) > _CHOOSING_QUERIES:
            rows = np.random.default_rng(0).choice(len(queries), _CHOOSING_QUERIES, replace=False)
            queries = queries.take(np.sort(rows))
        ranks = rank(recommender(queries), queries, self.items, top=0)
        return float(metrics.ndcg(ranks, AT).mean())

    def test(self, recommender: Recommender, ks: tuple[int, ...]) -> tuple[dict[str, float], np.ndarray]:
        """Means of all metrics on test, and ndcg@10 of each query, float64 [Q]."""
        queries = self.holdout(2)
        ranks = rank(recommender(queries), queries, self.items, top=max(ks))
        return metrics.summarize(ranks, ks, self.counts), metrics.ndcg(ranks, AT)
