"""The page of settings is the settings."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import settings_doc


def test_the_page_is_current():
    assert settings_doc.PATH.read_text(encoding="utf-8") == settings_doc.render(), "run python tools/settings_doc.py"


def test_every_section_and_a_default_are_on_it():
    page = settings_doc.render()
    assert "## train" in page and "| `learning_rate` | `0.002` |" in page
