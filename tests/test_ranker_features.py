"""Every kind of feature on a ranker's road: what is served for raw strings is what was trained on tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tables
import tensorflow as tf
from tiny_encoder import tiny_encoder

from tfrec import pipeline, rank_serving, ranking
from tfrec.artifact import ranker
from tfrec.config import Config, validate
from tfrec.errors import DataError
from tfrec.evaluation import ranking_metrics
from tfrec.models.ranking.body import Sizes
from tfrec.models.ranking.fields import matches, text_fields
from tfrec.models.ranking.ranker import Ranker
from tfrec.training.ranking import RankScorer

COLUMNS: list[dict[str, Any]] = [
    {"name": "tags", "side": "item", "kind": "categorical", "separator": "|", "max_values": 3, "hash_rows": 40},
    {"name": "price", "side": "item", "kind": "numeric", "log": True},
    {"name": "image", "side": "item", "kind": "vector", "width": 2},
    {"name": "country", "side": "user", "kind": "categorical"},
    {"name": "age", "side": "user", "kind": "numeric", "buckets": 3},
    {"name": "hour", "side": "context", "kind": "categorical"},
    {"name": "wait", "side": "context", "kind": "numeric"},
    {"name": "mood", "side": "context", "kind": "vector", "width": 3},
    {"name": "query", "side": "context", "kind": "text"},
]
WAITS = (1.0, 2.5, float("nan"), float("inf"))


def rows() -> list[dict[str, Any]]:
    random = np.random.default_rng(0)
    return [
        {
            **row,
            "timestamp": row["timestamp"] * 3600,
            "event": ("view", "cart", None)[i % 3],
            "value": float(random.integers(0, 2)),
            "hour": f"{random.integers(0, 24)}",
            "wait": WAITS[i % 4],
            "mood": " ".join(f"{x:.3f}" for x in random.normal(size=3)) if i % 5 else None,
            "query": (" ".join(random.choice(tables.WORDS, 2)), "", None)[i % 3],
        }
        for i, row in enumerate(tables.interactions())
    ]


def configured(folder: Path, interactions: list[dict[str, Any]]) -> Config:
    items = [{**row, "image": f"{i} {-i / 7:.2f}" if i % 3 else ""} for i, row in enumerate(tables.items())]
    encoder = tiny_encoder(folder / "encoder", tables.WORDS)
    tree: dict[str, Any] = {
        "run": {"name": "kinds", "folder": str(folder / "runs")},
        "data": {
            "source": "tables",
            "interactions": tables.write(folder / "interactions.parquet", interactions),
            "items": tables.write(folder / "items.parquet", items),
            "users": tables.write(folder / "users.parquet", tables.users()),
            "split": {"kind": "per_user", "valid": 0.2, "test": 0.2},
        },
        "features": {"columns": COLUMNS, "text": {"columns": ["title"], "encoder": encoder, "tokens": 8}},
        "model": {"kind": "din", "text": "frozen", "history_length": 4},
        "ranker": {
            "embedding": 4,
            "hidden": [8],
            "members": 2,
            "crosses": [["country", "tags"], ["user", "hour"]],
            "cross_rows": 50,
            "history_fields": ["item", "tags"],
            "history_event": "event",
            "history_age": True,
            "event_weights": {"cart": 2.0},
            "half_life_days": 1.0,
            "tasks": [{}],
        },
        "train": {"epochs": 2, "batch": 64, "learning_rate": 0.02, "warmup_steps": 0, "refit": False},
        "evaluate": {"baselines": False, "bootstrap": 0},
    }
    return validate(tree)


def test_raw_rows_are_served_as_they_were_trained(tmp_path: Path) -> None:
    config = configured(tmp_path, rows())
    run = pipeline.train(config, lambda line: None)
    data, model = ranking.ranking_data(run), run.model()
    held = data.held_out(2)
    expected = RankScorer(model).score(config, data, held).predictions[:, 0]
    users, items = (run.prepared.user_ids, run.prepared.item_ids)
    test = run.prepared.events["split"] == 2
    raw = {name: column[test] for name, column in run.raw("context").items()}
    request = {
        "user_id": users[held.columns["user"] - 1].astype(object),
        "item_ids": items[held.columns["item"] - 1].astype(object)[:, None],
        "now": held.times,
        **raw,
    }
    parts = rank_serving.make_parts(run)
    asked = {n: tf.constant(v) for n, v in (ranker.defaults(parts) | request).items()}
    served = ranker.build(parts)[1]["rank"](**asked)["scores"].numpy()[:, 0]
    assert len(served) == 40 and np.ptp(served) > 0.01
    np.testing.assert_allclose(served, expected, atol=1e-6)


def test_a_match_is_the_cosine_at_the_scale_of_random_directions() -> None:
    fields = text_fields(("query",), width=4)
    text = np.float32([[[2, 0, 0, 0], [0, 2, 0, 0], [0, 0, 0, 0]]])
    query = np.float32([[2**0.5, 2**0.5, 0, 0]])
    found = matches(fields, {"text": text, "query": query})
    np.testing.assert_allclose(found["query.match"], [[2 * 0.5**0.5, 2 * 0.5**0.5, 0]], rtol=1e-6)


def test_what_queries_and_items_have_in_common_is_learned() -> None:
    random = np.random.default_rng(0)
    texts = random.normal(size=(21, 16)).astype(np.float32)
    texts *= 4 / np.linalg.norm(texts, axis=1, keepdims=True)
    item = random.integers(1, 21, 2000).astype(np.int32)
    about = np.where(random.random(2000) < 0.5, item, random.integers(1, 21, 2000))
    inputs, liked = {"user": np.zeros_like(item), "item": item, "query": texts[about]}, about == item
    model = Ranker("logistic", Sizes(tuple(text_fields(("query",), 16))), {}, {}, {"text": (texts.shape, "float32")})
    model.build()
    model.item_table.fill({"text": texts})
    loss = {"like": keras.losses.BinaryCrossentropy(from_logits=True)}
    model.compile(keras.optimizers.Adam(0.05), loss=loss)
    model.fit({name: x[:1500] for name, x in inputs.items()}, {"like": liked[:1500, None]}, epochs=10, verbose=0)
    logits = model.predict({name: x[1500:] for name, x in inputs.items()}, verbose=0)["like"]
    assert ranking_metrics.auc(liked[1500:], logits) > 0.99


def test_ages_need_times(tmp_path: Path) -> None:
    untimed = [{name: value for name, value in row.items() if name != "timestamp"} for row in rows()]
    config = configured(tmp_path, untimed)
    config = config.model_copy(update={"ranker": config.ranker.model_copy(update={"half_life_days": None})})
    with pytest.raises(DataError, match="history_age needs a column timestamp in the interactions"):
        pipeline.train(config, lambda line: None)


@pytest.mark.parametrize("column", ["hour", "value", "event"])
def test_a_missing_column_is_refused_by_name(column: str, tmp_path: Path) -> None:
    lacking = [{name: value for name, value in row.items() if name != column} for row in rows()]
    with pytest.raises(DataError, match=f"the interactions must have .*{column}"):
        pipeline.prepare(configured(tmp_path, lacking), lambda line: None)
