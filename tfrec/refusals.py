"""What pydantic says of settings, in the project's words."""

from __future__ import annotations

import difflib
from typing import Any

from pydantic import BaseModel, ValidationError

from tfrec.ranker_config import Task
from tfrec.schema import Feature


def explain(error: ValidationError, settings: type[BaseModel]) -> str:
    """What the settings refuse, with the nearest known name of an unknown one."""
    return "; ".join(_explain_one(detail, settings) for detail in error.errors())


def _explain_one(detail: Any, settings: type[BaseModel]) -> str:
    place = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        known = _known_keys(detail["loc"][:-1], settings)
        near = difflib.get_close_matches(str(detail["loc"][-1]), known, n=1, cutoff=0.0)
        return f"{place} is not a setting; the nearest is {near[0]}" if near else f"{place} is not a setting"
    if detail["type"] == "missing":
        return f"{place} must be set"
    message = detail["msg"].removeprefix("Value error, ")
    if not detail["loc"] or isinstance(detail["input"], dict):
        return f"{place}: {message}" if place else message
    return f"{place}: {message}; got {detail['input']!r}"


def _known_keys(loc: tuple[Any, ...], settings: type[BaseModel]) -> list[str]:
    model: Any = settings
    for part in loc:
        if isinstance(part, int):
            model = Task if loc[0] == "ranker" else Feature
        elif hasattr(model, "model_fields") and part in model.model_fields:
            model = model.model_fields[part].annotation
    return list(getattr(model, "model_fields", {}))
