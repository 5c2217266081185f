"""Settings of a ranker: what does not go together is refused in one sentence."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tfrec.config import Config, validate
from tfrec.errors import ConfigError

HOUR = {"name": "hour", "side": "context", "kind": "categorical"}
IMAGE = {"name": "image", "side": "item", "kind": "vector", "width": 2}
QUERY = {"name": "query", "side": "context", "kind": "text"}
STAY = {"name": "stay", "column": "days", "kind": "survival", "observed": "left", "periods": 4}
BUY = {"name": "buy", "column": "buy"}


def configured(ranker: dict[str, Any], kind: str = "din", columns: tuple[Any, ...] = (), **model: Any) -> Config:
    return validate(
        {
            "run": {"name": "x"},
            "data": {"source": "ml-100k"},
            "features": {"columns": list(columns)},
            "model": {"kind": kind, "text": "none", **model},
            "ranker": ranker,
        }
    )


def test_a_ranker_says_which_columns_it_reads() -> None:
    config = configured({"tasks": [{"positive": 4.0}, BUY], "history_event": "event"})
    assert config.ranker_columns == (["buy", "value"], "event")
    assert configured({"tasks": [STAY, BUY]}).ranker_columns == (["buy", "days", "left"], None)
    assert configured({"negatives": 3}).ranker_columns == ([], None)
    assert configured({"history_event": "event"}, "two_tower").ranker_columns == ([], None)
    assert validate(json.loads(config.model_dump_json())) == config


@pytest.mark.parametrize(
    ("ranker", "more", "message"),
    [
        ({"tasks": [BUY, BUY]}, {}, "ranker.tasks must have distinct names"),
        ({"tasks": []}, {}, "at least 1 item"),
        ({"tasks": [{"nme": "x"}]}, {}, "ranker.tasks.0.nme is not a setting; the nearest is name"),
        ({"tasks": [{"kind": "number", "positive": 1.0}]}, {}, "loss and positive go with kind"),
        ({"tasks": [{"loss": "focal", "positive_weight": 2.0}]}, {}, "positive_weight goes with loss"),
        ({"tasks": [{"kind": "value"}]}, {}, "ranker.monitor must fit the first task, which is value"),
        ({"monitor": "spearman"}, {}, "ranker.monitor must fit the first task, which is binary"),
        ({"tasks": [{"kind": "number"}], "monitor": "gini"}, {}, "must fit the first task, which is number"),
        ({"tasks": [{"kind": "survival"}]}, {}, 'kind = "survival" and observed, a column, go together'),
        ({"tasks": [{"observed": "left"}]}, {}, 'kind = "survival" and observed, a column, go together'),
        ({"tasks": [{"periods": 3}]}, {}, 'period, periods and horizon go with kind = "survival"'),
        ({"tasks": [{**STAY, "horizon": 5}]}, {}, "task stay: horizon must be at most periods, 4"),
        ({"tasks": [STAY], "monitor": "rmse"}, {}, "ranker.monitor must fit the first task, which is survival"),
        ({"tasks": [STAY]}, {"kind": "logistic"}, 'model.kind = "logistic" has one logit'),
        ({"head": "esmm"}, {}, 'ranker.head = "esmm" needs two binary tasks'),
        ({"weighting": "uncertainty"}, {}, "uncertainty weighting needs two tasks"),
        ({"cross_experts": 2}, {}, "cross_experts above 1 needs ranker.cross_rank"),
        ({"event_weights": {"buy": 2.0}}, {}, "event_weights needs ranker.history_event"),
        ({"heads": 3}, {}, "ranker.heads must divide ranker.embedding, 16"),
        ({"tasks": [{"loss": "bpr"}]}, {}, "compare candidates: set ranker.negatives"),
        ({"negatives": 2, "tasks": [{}, BUY]}, {}, "goes with one binary task"),
        ({"negatives": 2, "negatives_from": "retrieval"}, {}, "ranker.retriever, a run folder, go together"),
        ({"retriever": "runs/x", "negatives_from": "retrieval"}, {}, "gives negatives: set ranker.negatives"),
        ({"tasks": [{}, BUY]}, {"kind": "fm"}, 'model.kind = "fm" has one logit'),
        ({"item_id": False}, {}, r"ranker.history_fields must be among \[\]"),
        ({"history_fields": ["brand"]}, {}, r"ranker.history_fields must be among \['item'\]"),
        ({"crosses": [["user", "brand"]]}, {}, "ranker.crosses must name categorical fields, not brand"),
        ({"position": "hour"}, {}, "ranker.position must be a categorical context feature, not hour"),
        ({}, {"kind": "two_tower", "columns": (IMAGE,)}, "the vector feature image needs a ranker"),
        ({}, {"kind": "two_tower", "columns": (QUERY,)}, 'the text feature query needs .* set model.text = "frozen"'),
        ({}, {"columns": (QUERY,)}, 'the text feature query needs .* set model.text = "frozen"'),
    ],
)
def test_what_does_not_go_together_is_refused(ranker: dict[str, Any], more: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        configured(ranker, **more)


def test_a_ranker_does_not_train_a_text_encoder() -> None:
    tree = {"run": {"name": "x"}, "data": {"source": "ml-100k"}, "features": {"text": {"columns": ["title"]}}}
    with pytest.raises(ConfigError, match=r'a ranker reads model\.text = "none" or "frozen"'):
        validate({**tree, "model": {"kind": "fm", "text": "full"}, "train": {"loss": "in_batch"}})


def test_folds_need_a_ranker() -> None:
    tree = {"run": {"name": "x"}, "data": {"source": "ml-100k"}, "model": {"text": "none"}, "evaluate": {"folds": 3}}
    with pytest.raises(ConfigError, match=r"evaluate\.folds needs a ranker"):
        validate(tree)


def test_what_goes_together_is_taken() -> None:
    assert configured({"position": "hour", "crosses": [["user", "hour"]]}, columns=(HOUR, IMAGE))
    assert configured({"tasks": [{**STAY, "periods": 1}], "monitor": "concordance"}, "logistic")
    assert configured({"tasks": [{"kind": "value"}], "monitor": "gini"})
    assert configured({"negatives": 4, "tasks": [{"loss": "listwise"}]}, "fm")
