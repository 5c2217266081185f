"""Writes settings as TOML; Python's own tomllib only reads it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

_BARE = re.compile(r"[A-Za-z0-9_-]+")


def toml_text(tree: Mapping[str, Mapping[str, Any]]) -> str:
    """A TOML document with one table a section, a line a setting.

    Args:
        tree: sections of JSON values without nulls.
    """
    return "\n".join(
        f"[{_key(section)}]\n" + "".join(f"{_key(name)} = {_value(value)}\n" for name, value in settings.items())
        for section, settings in tree.items()
    )


def _key(name: str) -> str:
    return name if _BARE.fullmatch(name) else _value(name)


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(name)} = {_value(inner)}" for name, inner in value.items()) + " }"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    # Strings, numbers and booleans look the same in JSON, but for one control character that JSON leaves as it is.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
