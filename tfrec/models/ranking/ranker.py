"""A ranker: stored features of users and items, a body, heads, and what its outputs mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import ops

from tfrec.models.ranking import dcn, deepfm, din, dlrm, fm, logistic, transformer, wide_deep
from tfrec.models.ranking.body import Body, Sizes
from tfrec.models.ranking.esmm import entire_space
from tfrec.models.ranking.fields import Inputs
from tfrec.models.ranking.heads import SharedBottom
from tfrec.models.ranking.mmoe import MMoE
from tfrec.models.ranking.ple import PLE
from tfrec.models.ranking_losses import ziln_mean
from tfrec.models.two_tower import Table
from tfrec.ranker_config import Ranker as Settings

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
OUTPUTS = {"binary": 1, "number": 1, "value": 3}


@keras.saving.register_keras_serializable("tfrec")
class Ranker(keras.Model):
    """Logits of every task for N candidates of each user.

    Candidates of one request do not see one another, so N at a time equal one at a time.

    Args:
        kind: of the body.
        sizes: of its inputs; a list of :class:`Sizes` or itself.
        settings: the ranker section of the settings, or its dump.
        user_columns, item_columns: stored features, name -> (shape, dtype); see :class:`Table`.

    Call: {"user": int32 [B], "item": int32 [B, N] or [B], "history": int32 [B, L], oldest first, 0 = padding,
    "history_event": int32 [B, L], context features [B, …]}, as far as the sizes ask for them
    -> {task: float32 [B, N], or [B, N, 3] for a value}, or [B] and [B, 3].
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
        self.head = self._make_head(policy)
        self.position: Any = None
        self.log_variances: Any = None
        self.prior: Any = None
        if self.sizes.positions:
            self.position = keras.layers.Embedding(self.sizes.positions, 1, "zeros", name="position")

    def _make_head(self, policy: Mapping[str, Any]) -> Any:
        s = self.settings
        if self.kind in ("logistic", "fm"):
            return None
        outputs = [OUTPUTS[task.kind] for task in s.tasks]
        makers = {"shared": SharedBottom, "esmm": SharedBottom, "mmoe": MMoE, "ple": PLE}
        experts = {"experts": s.experts, "expert_units": s.expert_units} if s.head in ("mmoe", "ple") else {}
        return makers[s.head](outputs, s.tower, s.dropout, name="head", **experts, **policy)

    def build(self, input_shape: Any = None) -> None:
        for layer in (self.user_table, self.item_table, self.body):
            if not layer.built:
                layer.build(None)
        if self.head is not None and not self.head.built:
            self.head.build((None, vector_width(self.body)))
        if self.position is not None and not self.position.built:
            self.position.build()
        if self.settings.weighting == "uncertainty" and self.log_variances is None:
            self.log_variances = self.add_weight(
                shape=(len(self.settings.tasks),), initializer="zeros", name="log_variances", dtype="float32"
            )
        if self.sizes.prior and self.prior is None:
            self.prior = self.add_weight(shape=(), initializer="zeros", name="prior", dtype="float32")
        self.built = True

    def gathered(self, inputs: Inputs) -> dict[str, Any]:
        """Adds the stored features of users, candidates and history to the inputs; item [B, N]."""
        out = {**inputs, **self.user_table(inputs["user"]), **self.item_table(inputs["item"])}
        if self.sizes.length:
            out["history_item"] = inputs["history"]
            columns = self.item_table(inputs["history"])
            out |= {f"history_{name}": columns[name] for name in self.sizes.history if name != "item"}
        return out

    def score(self, inputs: Inputs, training: bool = False) -> dict[str, Any]:
        """Logits of every task from gathered inputs, {task: float32 [B, N] or [B, N, 3]}."""
        parts = self.body(inputs, training=training)
        logits = parts["logit"][..., None] if self.head is None else self.head(parts["vector"], training=training)
        logits = ops.cast(logits, "float32")
        out: dict[str, Any] = {}
        place = 0
        for task in self.settings.tasks:
            width = OUTPUTS[task.kind]
            one = logits[..., place : place + width]
            if self.head is not None and "logit" in parts:
                one = _add_to_first(one, ops.cast(parts["logit"], "float32"))
            if self.position is not None and training:
                one = _add_to_first(one, self._position_bias(inputs))
            if self.prior is not None and not out:
                one = _add_to_first(one, self.prior * ops.cast(inputs[self.sizes.prior], "float32"))
            out[task.name], place = (one[..., 0] if width == 1 else one), place + width
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
        """What logits mean: a probability, a number, or expected money, {task: float32 [B, N] or [B]}."""
        meaning = {"binary": ops.sigmoid, "number": lambda x: x, "value": ziln_mean}
        return {task.name: meaning[task.kind](logits[task.name]) for task in self.settings.tasks}

    def scores(self, logits: Mapping[str, Any]) -> dict[str, Any]:
        """What a value formula adds up: predictions, but the logit of a task that only compares candidates."""
        comparing = {task.name for task in self.settings.tasks if task.loss in ("bpr", "listwise")}
        found = self.predictions(logits)
        return {name: logits[name] if name in comparing else value for name, value in found.items()}

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


def _add_to_first(logits: Any, term: Any) -> Any:
    """Adds [B, N] (or [B, 1]) to the first of the last axis of [B, N, w]."""
    return ops.concatenate([logits[..., :1] + term[..., None], logits[..., 1:]], axis=-1)
