"""How many embedding rows ids get."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from tfrec.section import Section


class IdTable(Section):
    """How many rows the ids of one side get."""

    kind: Literal["full", "hashed", "compositional"] = Field(
        default="full", description="a row an id, the sum of rows that hashes pick, or a product of two small tables"
    )
    rows: int = Field(default=0, ge=0, description="hashed, compositional: rows of the (larger) table")
    hashes: int = Field(default=2, ge=1, le=8, description="hashed: rows that are added")
    min_count: int = Field(default=1, ge=1, description="full: ids with fewer train events share a row")

    @model_validator(mode="after")
    def _rows_are_meant(self) -> IdTable:
        if bool(self.rows) != (self.kind != "full"):
            raise ValueError('rows goes with kind = "hashed" or "compositional", and they need it')
        if self.min_count > 1 and self.kind != "full":
            raise ValueError('min_count goes with kind = "full"')
        return self
