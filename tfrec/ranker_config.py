"""Settings of a ranker: what it reads, how wide it is, and the tasks that it learns."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tfrec.schema import Column
from tfrec.section import Section

Units = Annotated[int, Field(ge=1)]
Kind = Literal["logistic", "fm", "wide_deep", "deepfm", "dcn", "dlrm", "din", "transformer"]
LINEAR = ("logistic", "fm")
ATTENTIVE = ("din", "transformer")
MONITORS = {
    "binary": ("logloss", "auc", "gauc"),
    "number": ("rmse", "spearman"),
    "value": ("rmse", "spearman", "gini"),
    "survival": ("logloss", "auc", "gauc", "concordance"),
}


class Task(Section):
    """One thing that a ranker predicts."""

    name: Column = "like"
    column: str = Field(default="value", description="of the interactions")
    kind: Literal["binary", "number", "value", "survival"] = Field(
        default="binary", description="a probability, a number, money that is mostly 0, or how long somebody stays"
    )
    positive: float | None = Field(
        default=None, description="binary: what is at least this is a positive; absent = the column holds 0 and 1"
    )
    loss: Literal["bce", "focal", "bpr", "listwise"] = Field(
        default="bce", description="of a binary task; number has MSE and value has ZILN"
    )
    positive_weight: float = Field(default=1.0, gt=0, description="bce: of a positive row")
    focus: float = Field(default=2.0, ge=0, description="focal: γ")
    weight: float = Field(default=1.0, gt=0, description="in the sum of the tasks' losses")
    observed: str | None = Field(
        default=None,
        description="survival: column that is 1 where leaving was seen at the time in column, 0 where nothing is known "
        "after it",
    )
    period: float = Field(default=1.0, gt=0, description="survival: length of a period, in the unit of column")
    periods: int = Field(default=1, ge=1, le=1000, description="survival: periods, each with a hazard of its own")
    horizon: int = Field(default=1, ge=1, description="survival: the score is the chance to stay so many periods")

    @model_validator(mode="after")
    def _parts_fit(self) -> Task:
        if self.kind != "binary" and (self.loss != "bce" or self.positive is not None):
            raise ValueError(f'task {self.name}: loss and positive go with kind = "binary"')
        if self.positive_weight != 1 and self.loss != "bce":
            raise ValueError(f'task {self.name}: positive_weight goes with loss = "bce"')
        if (self.kind == "survival") != bool(self.observed):
            raise ValueError(f'task {self.name}: kind = "survival" and observed, a column, go together')
        if self.kind != "survival" and (self.period, self.periods, self.horizon) != (1.0, 1, 1):
            raise ValueError(f'task {self.name}: period, periods and horizon go with kind = "survival"')
        if self.horizon > self.periods:
            raise ValueError(f"task {self.name}: horizon must be at most periods, {self.periods}")
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the interactions that make its label."""
        return (self.column, self.observed) if self.observed else (self.column,)

    @property
    def outputs(self) -> int:
        """Numbers that a head gives it."""
        return {"binary": 1, "number": 1, "value": 3, "survival": self.periods}[self.kind]


class Ranker(Section):
    """What ``model.kind`` other than "two_tower" reads beside model.text and model.history_length."""

    embedding: int = Field(default=16, ge=1, description="width of every field's vector")
    embedding_dropout: float = Field(default=0.0, ge=0, lt=1)
    user_id: bool = Field(default=True, description="an embedding row per user")
    item_id: bool = Field(default=True, description="an embedding row per item")
    members: int = Field(
        default=1, ge=1, le=32, description="networks that learn side by side, whose predictions are averaged"
    )
    hidden: tuple[Units, ...] = Field(default=(128, 64), min_length=1, description="widths of the hidden layers")
    dropout: float = Field(default=0.2, ge=0, lt=1, description="after hidden layers")
    crosses: tuple[tuple[Column, Column], ...] = Field(
        default=(), description="pairs of categorical fields, user and item among them, with a weight a pair of values"
    )
    cross_rows: int = Field(default=10_000, ge=1, description="rows that the pairs of a cross are hashed to")
    cross_layers: int = Field(default=2, ge=1, description="dcn: layers of feature crosses")
    cross_rank: int = Field(default=0, ge=0, description="dcn: rank of a cross; 0 = full")
    cross_experts: int = Field(default=1, ge=1, description="dcn: low-rank crosses in a mixture")
    history: bool = Field(default=False, description="the mean of the user's earlier items is a field too")
    history_fields: tuple[Column, ...] = Field(
        default=("item",), min_length=1, description="categorical item fields, and item, that history items have too"
    )
    history_event: Column | None = Field(
        default=None, description="column of the interactions that tells kinds of history items apart, as a rating"
    )
    history_age: bool = Field(
        default=False, description="how long ago each history item was, in steps that double, is read too"
    )
    history_gap: int = Field(default=0, ge=0, description="at most so many last history items are hidden in training")
    attention: tuple[Units, ...] = Field(default=(32,), min_length=1, description="din: widths of the attention")
    blocks: int = Field(default=1, ge=1, description="transformer: blocks over the history")
    heads: int = Field(default=2, ge=1, description="transformer: attention heads")
    tasks: tuple[Task, ...] = Field(default=(Task(),), min_length=1)
    head: Literal["shared", "mmoe", "ple", "esmm"] = Field(default="shared", description="from a body to tasks")
    experts: int = Field(default=4, ge=1, description="mmoe and ple: shared experts")
    expert_units: int = Field(default=64, ge=1)
    tower: tuple[Units, ...] = Field(default=(), description="widths of the hidden layers of each task")
    weighting: Literal["fixed", "uncertainty"] = Field(default="fixed", description="of the tasks' losses")
    position: Column | None = Field(
        default=None, description="categorical context feature whose bias is learned, and left out of every score"
    )
    event_weights: dict[str, float] = Field(
        default={}, description="weight of a training row by its history_event; others weigh 1"
    )
    half_life_days: float | None = Field(default=None, gt=0, description="a training row this old weighs a half")
    negatives: int = Field(
        default=0, ge=0, description="sampled negatives of an interaction; 0 = interactions are impressions with labels"
    )
    negatives_from: Literal["uniform", "popularity", "retrieval"] = "popularity"
    retriever: str | None = Field(default=None, description="run folder of the two-tower that retrieval negatives need")
    retrieved: int = Field(default=100, ge=1, description="items of each user that the retriever gives")
    monitor: Literal["logloss", "auc", "gauc", "rmse", "spearman", "gini", "concordance"] = Field(
        default="logloss", description="validation metric of early stopping, of the first task"
    )

    @model_validator(mode="after")
    def _parts_fit(self) -> Ranker:
        names = [task.name for task in self.tasks]
        if len(set(names)) < len(names):
            raise ValueError(f"ranker.tasks must have distinct names, not {sorted(names)}")
        if self.embedding % self.heads:
            raise ValueError(f"ranker.heads must divide ranker.embedding, {self.embedding}")
        if self.head == "esmm" and [task.kind for task in self.tasks] != ["binary", "binary"]:
            raise ValueError('ranker.head = "esmm" needs two binary tasks: click, then click and purchase')
        if self.weighting == "uncertainty" and len(self.tasks) < 2:
            raise ValueError("uncertainty weighting needs two tasks or more")
        if self.cross_experts > 1 and not self.cross_rank:
            raise ValueError("ranker.cross_experts above 1 needs ranker.cross_rank")
        if self.event_weights and not self.history_event:
            raise ValueError("ranker.event_weights needs ranker.history_event")
        if self.monitor not in MONITORS[self.tasks[0].kind]:
            raise ValueError(f"ranker.monitor must fit the first task, which is {self.tasks[0].kind}")
        return self

    def check(self, kind: str, section: str) -> None:
        """Refuses tasks that a kind of body cannot learn where its section puts it.

        Raises:
            ValueError: one such task.
        """
        if kind in LINEAR and (len(self.tasks) > 1 or self.tasks[0].outputs > 1):
            raise ValueError(f'{section}.kind = "{kind}" has one logit: one task, which needs no more')
        if section == "model" and not self.negatives and any(task.loss in ("bpr", "listwise") for task in self.tasks):
            raise ValueError('loss "bpr" and "listwise" compare candidates: set ranker.negatives')

    @model_validator(mode="after")
    def _rows_fit(self) -> Ranker:
        if self.negatives and (len(self.tasks) > 1 or self.tasks[0].kind != "binary"):
            raise ValueError("ranker.negatives goes with one binary task, whose positives are the interactions")
        if (self.negatives_from == "retrieval") != bool(self.retriever):
            raise ValueError('ranker.negatives_from = "retrieval" and ranker.retriever, a run folder, go together')
        if self.retriever and not self.negatives:
            raise ValueError("ranker.retriever gives negatives: set ranker.negatives")
        return self


class Cascade(Section):
    """A ranker behind a two-tower model: retrieve, filter, rank, diversify."""

    candidates: int = Field(default=0, ge=0, description="items that retrieval hands to the ranker; 0 = no ranker")
    kind: Kind = Field(default="dcn", description="of the ranker, whose settings are [ranker]")
    pairs: tuple[Literal["words", "follows"], ...] = Field(
        default=(), description="how candidates are compared with the history, beside vectors"
    )
    positions: int = Field(
        default=1,
        ge=1,
        le=2,
        description="held-out positions that the ranker learns from: valid, and the one before it behind a retrieval "
        "trained without it",
    )
    folds: int = Field(
        default=4, ge=2, le=20, description="of validation users: each is judged by a ranker of the rest"
    )
    epochs: int = Field(default=15, ge=1, description="most of them; the folds say how many")
    batch: int = Field(default=32, ge=1, description="requests of a step, each with all its candidates")
    learning_rate: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.01, ge=0, description="of adamw")
    sweep: tuple[Units, ...] = Field(
        default=(10, 20, 50, 100, 200, 500), description="numbers of candidates that evaluation compares, up to its own"
    )

    def check(self, ranker: Ranker, split: str) -> None:
        """Refuses what a ranker behind retrieval cannot do.

        Raises:
            ValueError: a setting of the ranker is for one that stands alone, or no position is before valid.
        """
        alone = {"negatives": 0, "position": None, "history_event": None, "history_age": False}
        alone |= {"half_life_days": None}
        wrong = [name for name, absent in alone.items() if getattr(ranker, name) != absent]
        if wrong:
            raise ValueError(f"ranker.{wrong[0]} goes with a ranker alone: a cascade learns from what retrieval gives")
        if self.positions > 1 and split not in ("given", "leave_last_out"):
            raise ValueError(
                'cascade.positions = 2 holds out what is last: data.split.kind "given" or "leave_last_out"'
            )
        if ranker.tasks[0].kind != "binary":
            raise ValueError("the first task of a cascade is whether an item was taken: binary")
        if any(task.name == "retrieval" for task in ranker.tasks):
            raise ValueError("a task of a cascade cannot be named retrieval, which is a term of the value formula")
