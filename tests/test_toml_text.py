"""What is written as TOML is read back by Python's own parser."""

from __future__ import annotations

import tomllib
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tfrec.toml_text import toml_text

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
SCALARS = st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False) | TEXT
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner), max_leaves=8)


@given(st.dictionaries(TEXT, st.dictionaries(TEXT, VALUES)))
def test_any_tree_comes_back(tree: dict[str, dict[str, Any]]) -> None:
    assert tomllib.loads(toml_text(tree)) == tree


def test_it_reads_as_a_person_would_write_it() -> None:
    tree = {"run": {"name": "x"}, "data": {"roles": {"title": "t"}, "k": [5, 10]}, "train": {"learning_rate": 1e-5}}
    assert toml_text(tree) == (
        '[run]\nname = "x"\n\n[data]\nroles = { title = "t" }\nk = [5, 10]\n\n[train]\nlearning_rate = 1e-05\n'
    )
