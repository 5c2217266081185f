"""What every body of a ranker has: its sizes, its settings, and the parts that it hands to the heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import keras

from tfrec.models.ranking.fields import Field, FieldVectors, LinearTerms
from tfrec.ranker_config import Ranker as Settings


class Sizes(NamedTuple):
    """What data decides.

    Args:
        fields: the inputs of a row.
        history: item fields that each item of the history has too, as tensors "history_<name>".
        events: kinds of history items in the tensor "history_event", row 0 included; 0 = none.
        length: L, items of a history.
        positions: rows of the position on the page, row 0 included; 0 = none.
        ages: rows of "history_age", how long ago each item of the history was, row 0 included; 0 = none.
        prior: a number of the candidate that a learned multiple of joins the first task's logit; "" = none.
    """

    fields: tuple[Field, ...]
    history: tuple[str, ...] = ()
    events: int = 0
    length: int = 0
    positions: int = 0
    ages: int = 0
    prior: str = ""

    @classmethod
    def of(cls, value: Sequence[Any]) -> Sizes:
        """From itself or from the lists that a saved model holds."""
        fields, history, *others = value
        return cls(tuple(Field(*f) for f in fields), tuple(history), *others)

    def plain(self) -> list[Any]:
        """Lists, numbers and a name, for a saved model."""
        return [[list(f) for f in self.fields], list(self.history), *self[2:]]

    def items(self) -> tuple[Field, ...]:
        """Fields of a candidate."""
        return tuple(f for f in self.fields if f.side == "item")


class Body(keras.layers.Layer):
    """A network from inputs to what heads read.

    Call: inputs -> {"vector": [B, N, h], "logit": [B, N]}, one or both; the logit is added to every task's.

    Args:
        sizes: of the inputs.
        settings: the ranker section of the settings, or its dump.
    """

    def __init__(self, sizes: Sequence[Any], settings: Settings | Mapping[str, Any], **kwargs: Any):
        super().__init__(**kwargs)
        self.sizes = Sizes.of(sizes)
        self.settings = settings if isinstance(settings, Settings) else Settings.model_validate(settings, strict=False)
        self.policy = {"dtype": self.dtype_policy}

    def make_vectors(self, pooled: bool) -> FieldVectors:
        """Vectors of the fields; ``pooled`` adds the mean of the history as one more where there is one."""
        s, sizes = self.settings, self.sizes
        history = sizes.history if sizes.length else ()
        return FieldVectors(
            sizes.fields,
            s.embedding,
            s.embedding_dropout,
            history,
            sizes.events,
            pooled and bool(history),
            sizes.ages,
            name="vectors",
            **self.policy,
        )

    def make_linear(self) -> LinearTerms:
        """First-order terms of the fields and of the crosses that the settings name."""
        return LinearTerms(
            self.sizes.fields, self.settings.crosses, self.settings.cross_rows, name="linear", **self.policy
        )

    def get_config(self) -> dict[str, Any]:
        own = {"sizes": self.sizes.plain(), "settings": self.settings.model_dump(mode="json")}
        return {**super().get_config(), **own}
