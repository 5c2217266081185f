"""Writes docs/settings.md from the settings themselves: python tools/settings_doc.py."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel

from tfrec.config import Config
from tfrec.ranker_config import Task
from tfrec.schema import Feature

PATH = Path(__file__).parents[1] / "docs" / "settings.md"
HEAD = """# Settings

One TOML file, a section a stage; `section.key=value` on the command line replaces a value. Unknown keys are refused
with the nearest name. This page is written by `python tools/settings_doc.py`.
"""


def rows(model: type[BaseModel], prefix: str) -> list[str]:
    """A table row for every setting below a section."""
    lines: list[str] = []
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            lines += rows(kind, f"{prefix}{name}.")
            continue
        default = "required" if field.is_required() else f"`{_plain(field.default)!r}`"
        lines.append(f"| `{prefix}{name}` | {default} | {field.description or ''} |")
    return lines


def _plain(default: object) -> object:
    """A default as TOML would hold it: entries of a list by what they set."""
    if isinstance(default, tuple) and any(isinstance(entry, BaseModel) for entry in default):
        return [entry.model_dump(exclude_defaults=True) for entry in default]
    return default


def render() -> str:
    """The whole page."""
    parts = [HEAD]
    for name, field in Config.model_fields.items():
        assert isinstance(field.annotation, type)
        parts.append(
            f"\n## {name}\n\n| setting | default | |\n|---|---|---|\n" + "\n".join(rows(field.annotation, "")) + "\n"
        )
    for place, entry in (("features.columns", Feature), ("ranker.tasks", Task)):
        parts.append(f"\n## An entry of {place}\n\n| key | default | |\n|---|---|---|\n")
        parts.append("\n".join(rows(entry, "")) + "\n")
    return "".join(parts)


if __name__ == "__main__":
    PATH.write_text(render(), encoding="utf-8")
