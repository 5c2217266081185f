"""A ranker: stored features of users and items, a body, heads, and what its outputs mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import keras
from keras import ops

from tfrec.models.ranking import dcn, deepfm, din, dlrm, fm, logistic, transformer, wide_deep
from tfrec.models.ranking.body import Body, Sizes
from tfrec.models.ranking.esmm import entire_space
from tfrec.models.ranking.fields import Inputs, matches
from tfrec.models.ranking.heads import SharedBottom
from tfrec.models.ranking.mmoe import MMoE
from tfrec.models.ranking.ple import PLE
from tfrec.models.ranking_losses import retention, ziln_mean
from tfrec.models.two_tower import Table
from tfrec.ranker_config import Ranker as Settings
from tfrec.ranker_config import Task

BODIES: dict[str, type[Body]] = {
    "logistic": logistic.Logistic,
    "fm": fm.FactorisationMachine,
    "wide_deep": wide_deep.WideDeep,
    "deepfm": deepfm.DeepFM,
    "dcn": dcn.DCN,
    "dlrm": dlrm.DLRM,
    "din": din.DIN,
    "transformer": transformer.Transformer,
}


@keras.saving.register_keras_serializable("tfrec")
class Ranker(keras.Model):
    """Logits of every task for N candidates of each user.

    Candidates of one request do not see one another, so N at a time equal one at a time. With ``settings.members`` of M
    there are M bodies and heads over the same rows, and their predictions are averaged, as in Lakshminarayanan et al.
    2017, arXiv 1612.01474.

    Args:
        kind: of the body.
        sizes: of its inputs; a list of :class:`Sizes` or itself.
        settings: the ranker section of the settings, or its dump.
        user_columns, item_columns: stored features, name -> (shape, dtype); see :class:`Table`.

    Call: {"user": int32 [B], "item": int32 [B, N] or [B], "history": int32 [B, L], oldest first, 0 = padding,
    "history_event" and "history_age": int32 [B, L], context features [B, …]}, as far as the sizes ask for them
    -> {task: float32 [B, N], or [B, N, 3] for a value and [B, N, P] for survival over P periods}, or without N; with a
    last axis of M where M > 1.
    """

    def __init__(
        self,
        kind: str,
        sizes: Sequence[Any],
        settings: Settings | Mapping[str, Any],
        user_columns: Mapping[str, Any] | None = None,
        item_columns: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ):
        # A fixed name: checkpoints find variables by their path.
        super().__init__(**{"name": "ranker", **kwargs})
        self.kind, self.sizes = kind, Sizes.of(sizes)
        self.settings = settings if isinstance(settings, Settings) else Settings.model_validate(settings, strict=False)
        policy = {"dtype": self.dtype_policy}
        self.user_table = Table(user_columns or {}, name="user_table")
        self.item_table = Table(item_columns or {}, name="item_table")
        self.body = BODIES[kind](self.sizes, self.settings, name="body", **policy)
        self.head = self._make_head("head", policy)
        more = range(1, self.settings.members)
        self.more_bodies: list[Body] = [
            BODIES[kind](self.sizes, self.settings, name=f"body_{member}", **policy) for member in more
        ]
        self.more_heads: list[Any] = [self._make_head(f"head_{member}", policy) for member in more]
        self.position: Any = None
        self.log_variances: Any = None
        self.prior: Any = None
        if self.sizes.positions:
            self.position = keras.layers.Embedding(self.sizes.positions, 1, "zeros", name="position")

    @property
    def members(self) -> list[tuple[Body, Any]]:
        """Body and head of each member; a linear body needs no head, which is None."""
        return list(zip([self.body, *self.more_bodies], [self.head, *self.more_heads], strict=True))

    def _make_head(self, name: str, policy: Mapping[str, Any]) -> Any:
        s = self.settings
        if self.kind in ("logistic", "fm"):
            return None
        outputs = [task.outputs for task in s.tasks]
        makers = {"shared": SharedBottom, "esmm": SharedBottom, "mmoe": MMoE, "ple": PLE}
        experts = {"experts": s.experts, "expert_units": s.expert_units} if s.head in ("mmoe", "ple") else {}
        return makers[s.head](outputs, s.tower, s.dropout, name=name, **experts, **policy)

    def build(self, input_shape: Any = None) -> None:
        layers: list[keras.layers.Layer] = [self.user_table, self.item_table, self.body, *self.more_bodies]
        for layer in layers:
            if not layer.built:
                layer.build(None)
        for body, head in self.members:
            if head is not None and not head.built:
                head.build((None, vector_width(body)))
        if self.position is not None and not self.position.built:
            self.position.build()
        if self.settings.weighting == "uncertainty" and self.log_variances is None:
            self.log_variances = self.add_weight(
                shape=(len(self.settings.tasks),), initializer="zeros", name="log_variances", dtype="float32"
            )
        if self.sizes.prior and self.prior is None:
            self.prior = self.add_weight(shape=(), initializer="zeros", name="prior", dtype="float32")
        self.built = True

    def start_at(self, outputs: Mapping[str, Any]) -> None:
        """Makes a built ranker give these, {task: its numbers}, whatever the features; other tasks keep their outputs.

        Last kernels become 0 and not only biases those numbers: a random product of features under exp is a fortune.
        """
        for body, head in self.members:
            lasts = [body.linear] if head is None else head.towers.last
            for task, last in zip(self.settings.tasks, lasts, strict=True):
                if task.name in outputs:
                    last.bias.assign(ops.reshape(outputs[task.name], last.bias.shape))
                    if head is not None:
                        last.kernel.assign(ops.zeros_like(last.kernel))

    def gathered(self, inputs: Inputs) -> dict[str, Any]:
        """Adds the stored features of users, candidates and history to the inputs, which win; item [B, N]."""
        out = {**self.user_table(inputs["user"]), **self.item_table(inputs["item"]), **inputs}
        if self.sizes.length:
            out["history_item"] = inputs["history"]
            columns = self.item_table(inputs["history"])
            out |= {f"history_{name}": columns[name] for name in self.sizes.history if name != "item"}
        return out | matches(self.sizes.fields, out)

    def score(self, inputs: Inputs, training: bool = False) -> dict[str, Any]:
        """Logits of every task from gathered inputs, {task: float32 [B, N], [B, N, 3] or [B, N, P]}, M last."""
        members = [self._member(body, head, inputs, training) for body, head in self.members]
        if len(members) == 1:
            return members[0]
        return {name: ops.stack([member[name] for member in members], axis=-1) for name in members[0]}

    def of_members(self, logits: Any) -> list[Any]:
        """One task's logits of each member."""
        return [logits] if self.settings.members == 1 else ops.unstack(logits, axis=-1)

    def _member(self, body: Body, head: Any, inputs: Inputs, training: bool) -> dict[str, Any]:
        parts = body(inputs, training=training)
        logits = parts["logit"][..., None] if head is None else head(parts["vector"], training=training)
        logits = ops.cast(logits, "float32")
        out: dict[str, Any] = {}
        place = 0
        for task in self.settings.tasks:
            one = logits[..., place : place + task.outputs]
            if head is not None and "logit" in parts:
                one = _shifted(task, one, ops.cast(parts["logit"], "float32"))
            if self.position is not None and training:
                one = _shifted(task, one, self._position_bias(inputs))
            if self.prior is not None and not out:
                one = _shifted(task, one, self.prior * ops.cast(inputs[self.sizes.prior], "float32"))
            out[task.name], place = (one if task.kind in ("value", "survival") else one[..., 0]), place + task.outputs
        if self.settings.head == "esmm":
            return dict(zip(out, entire_space(*out.values()), strict=True))
        return out

    def _position_bias(self, inputs: Inputs) -> Any:
        assert self.settings.position
        place = ops.reshape(inputs[self.settings.position], (-1, 1))  # [B, 1] for all candidates
        return self.position(place)[..., 0] * ops.cast(place > 0, "float32")

    def call(self, inputs: Inputs, training: bool = False) -> dict[str, Any]:
        single = len(inputs["item"].shape) == 1
        if single:
            inputs = {**inputs, "item": inputs["item"][:, None]}
        logits = self.score(self.gathered(inputs), training=training)
        return {name: value[:, 0] for name, value in logits.items()} if single else logits

    def predictions(self, logits: Mapping[str, Any]) -> dict[str, Any]:
        """What logits mean: a probability, a number, money or retention, {task: float32 [B, N] or [B]}."""
        return {task.name: self._mean(logits[task.name], partial(_meaning, task)) for task in self.settings.tasks}

    def _mean(self, logits: Any, meaning: Callable[[Any], Any]) -> Any:
        members = [meaning(own) for own in self.of_members(logits)]
        return sum(members[1:], members[0]) / len(members)

    def scores(self, logits: Mapping[str, Any]) -> dict[str, Any]:
        """What a value formula adds up: predictions, but the logit of a task that only compares candidates."""
        comparing = {task.name for task in self.settings.tasks if task.loss in ("bpr", "listwise")}
        found = self.predictions(logits)
        own = {name: self._mean(logits[name], lambda x: x) for name in comparing}
        return {name: own.get(name, value) for name, value in found.items()}

    def count_trainable(self) -> int:
        """Trainable numbers, without the stored features."""
        return sum(int(ops.size(variable)) for variable in self.trainable_variables)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "kind": self.kind,
            "sizes": self.sizes.plain(),
            "settings": self.settings.model_dump(mode="json"),
            "user_columns": self.user_table.columns,
            "item_columns": self.item_table.columns,
        }


def vector_width(body: Body) -> int:
    """h of a built body's vector."""
    s = body.settings
    return s.hidden[-1] + (body.vectors.width * s.embedding if isinstance(body, dcn.DCN) else 0)


def _meaning(task: Task, logits: Any) -> Any:
    if task.kind == "value":
        return ziln_mean(logits)
    if task.kind == "survival":
        return retention(logits, task.horizon)
    return ops.sigmoid(logits) if task.kind == "binary" else logits


def _shifted(task: Task, logits: Any, term: Any) -> Any:
    """Adds [B, N] (or [B, 1]) to every hazard, or to the first of the other tasks' numbers, of [B, N, w]."""
    if task.kind == "survival":
        return logits + term[..., None]
    return ops.concatenate([logits[..., :1] + term[..., None], logits[..., 1:]], axis=-1)
