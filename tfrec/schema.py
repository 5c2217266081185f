"""What a row, a request and a signature look like: features by side and kind."""

from __future__ import annotations

import keyword
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

Side = Literal["user", "item", "context"]
Kind = Literal["categorical", "numeric", "vector", "text"]


def _argument(name: str) -> str:
    if name == "self" or keyword.iskeyword(name):
        raise ValueError(f"a column cannot be named {name}, a word of Python's; rename it")
    return name


# Columns become arguments of a signature and names of variables.
Column = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$"), AfterValidator(_argument)]


class Feature(BaseModel):
    """One column that a model reads.

    Args:
        name: column of the items (side item), users (side user) or interactions (side context) table.
        side: whose property it is.
        kind: categorical (a vocabulary), numeric (standardised, missing = mean), vector (``width`` numbers, as a
            list or one string with spaces; missing = zeros), such as an image's embedding, or text of the context, such
            as a query, which the text encoder reads.
        separator: splits one categorical string into several values ("" = one value).
        max_values: how many of them are kept.
        max_vocabulary: the most frequent values that get a row of their own; the rest share row 0.
        min_count: categorical: rows of the table that a value needs, lest it share row 0.
        hash_rows: categorical: values are hashed to so many rows instead; 0 = a vocabulary.
        log: numeric: sign(x) · log(1 + |x|) is standardised.
        buckets: numeric: the number picks one of so many quantiles, each with a row of its own; 0 = standardised.
        width: vector: its numbers.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: Column
    side: Side
    kind: Kind
    separator: str = ""
    max_values: int = Field(default=1, ge=1, le=64)
    max_vocabulary: int = Field(default=10_000, ge=1)
    min_count: int = Field(default=1, ge=1)
    hash_rows: int = Field(default=0, ge=0)
    log: bool = False
    buckets: int = Field(default=0, ge=0, le=1000)
    width: int = Field(default=0, ge=0, le=4096)

    @model_validator(mode="after")
    def _values_can_be_split(self) -> Feature:
        if self.kind == "numeric" and self.separator:
            raise ValueError(
                f'feature {self.name}: a number is not split; remove separator or set kind = "categorical"'
            )
        if self.max_values > 1 and not self.separator:
            raise ValueError(f"feature {self.name}: max_values above 1 needs a separator")
        return self

    @model_validator(mode="after")
    def _settings_fit_the_kind(self) -> Feature:
        own = {"hash_rows": "categorical", "log": "numeric", "buckets": "numeric", "width": "vector"}
        for name, kind in own.items():
            if getattr(self, name) and self.kind != kind:
                raise ValueError(f'feature {self.name}: {name} goes with kind = "{kind}"')
        if self.min_count > 1 and (self.kind != "categorical" or self.hash_rows):
            raise ValueError(f'feature {self.name}: min_count goes with kind = "categorical" and a vocabulary')
        if self.kind == "vector" and not (self.width and not self.separator):
            raise ValueError(f"feature {self.name}: a vector needs a width, and no separator")
        if self.kind == "text" and (self.side != "context" or self.separator):
            raise ValueError(f"feature {self.name}: text is of the context, in one piece; features.text reads items")
        if self.log and self.buckets:
            raise ValueError(f"feature {self.name}: quantiles do not change under a log; remove log or buckets")
        return self

    @property
    def indexed(self) -> bool:
        """Whether its tensor holds rows of an embedding."""
        return self.kind == "categorical" or self.buckets > 0


class Schema(BaseModel):
    """The features of one data set, with the columns that make an item's text."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    features: tuple[Feature, ...] = ()
    text: tuple[Column, ...] = ()

    def side(self, side: Side) -> tuple[Feature, ...]:
        """The features of one side, in their order in the settings."""
        return tuple(f for f in self.features if f.side == side)

    def texts(self) -> tuple[str, ...]:
        """Names of the context's texts."""
        return tuple(f.name for f in self.features if f.kind == "text")

    def item_columns(self) -> tuple[str, ...]:
        """Every column of the items table that a request must carry to embed an item."""
        return tuple(dict.fromkeys([*self.text, *(f.name for f in self.side("item"))]))
