"""What ``tfrec tune`` searches: ranges and choices of settings, as the section ``[tune]`` says them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, model_validator


class Axis(BaseModel):
    """The values that one setting may take: choices, or a range with both ends.

    Args:
        choices: values of the setting's type.
        low, high: ends of a range, of whole numbers where the setting is one.
        log: whether the range is searched by its logarithm.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    choices: tuple[JsonValue, ...] = Field(default=(), strict=False)
    low: int | float | None = None
    high: int | float | None = None
    log: bool = False

    @model_validator(mode="after")
    def _is_one_of_two(self) -> Axis:
        if bool(self.choices) == (self.low is not None or self.high is not None):
            raise ValueError("an entry must hold choices, or low and high")
        if self.choices:
            return self
        if self.low is None or self.high is None:
            raise ValueError("a range must have low and high")
        if self.low >= self.high:
            raise ValueError(f"low must be below high; got {self.low} and {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"a logarithmic range must begin above 0; got {self.low}")
        return self

    def ends(self) -> tuple[Any, ...]:
        """What a setting must take for the whole axis to be valid."""
        return self.choices or (self.low, self.high)


def _flat(tree: Any) -> Any:
    """Names with dots for nested tables: TOML nests ``train.learning_rate`` unless it is quoted."""
    if not isinstance(tree, dict):
        return tree
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict) and value and all(isinstance(inner, dict) for inner in value.values()):
            flat |= {f"{name}.{key}": inner for key, inner in _flat(value).items()}
        else:
            flat[name] = value
    return flat


class Tune(BaseModel):
    """The section ``[tune]``."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    trials: int = Field(default=20, ge=1, description="bayesian: how many; a grid is tried as a whole")
    sampler: Literal["bayesian", "grid"] = Field(
        default="bayesian", description="tree-structured Parzen estimators, or every combination of choices"
    )
    metric: str | None = Field(
        default=None,
        pattern=r"^(hr|ndcg|mrr|recall|map)@[1-9]\d*$",
        description="validation metric to raise, which takes the place of train.monitor; that one where none is given",
    )
    prune: int = Field(
        default=5, ge=0, description="trials that end before others stop below their median; 0 = no pruning"
    )
    seconds: float = Field(default=0, ge=0, description="no trial begins later; 0 = no limit")
    space: Annotated[dict[str, Axis], BeforeValidator(_flat)] = Field(
        default={}, description='"section.key" = { choices = […] } or { low = …, high = …, log = true }'
    )

    @model_validator(mode="after")
    def _a_grid_is_finite(self) -> Tune:
        ranges = sorted(name for name, axis in self.space.items() if not axis.choices)
        if self.sampler == "grid" and ranges:
            raise ValueError(f'tune.sampler = "grid" needs choices; {ranges[0]} has a range')
        return self
