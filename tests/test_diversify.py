"""Marginal relevance and the cap on categories against plain Python, and by hand."""

from __future__ import annotations

import numpy as np
from cascade_twin import order
from hypothesis import given, settings
from hypothesis import strategies as st
from parts import LOWEST

from tfrec.artifact.diversify import Varied, diversify

AXES = np.array([[1, 0], [0, 1], [-1, 0], [0, -1]], np.float32)


def run(
    values: list[float], vectors: np.ndarray, categories: np.ndarray, strength: float, most: int, k: int
) -> list[int]:
    varied = Varied(np.array([strength], np.float32), np.array([most], np.int32))
    given = np.array([values], np.float32), vectors[None], categories[None].astype(np.int32)
    return diversify(*given, 3, varied, np.int32(k))[0].numpy().tolist()


@settings(max_examples=60, deadline=None)
@given(
    candidates=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=7),
    strength=st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]),
    most=st.integers(0, 3),
    k=st.integers(1, 8),
)
def test_places_are_those_of_plain_python(
    candidates: list[tuple[int, int, int]], strength: float, most: int, k: int
) -> None:
    ranked = sorted(candidates, key=lambda c: -c[0])
    values, vectors = [float(c[0]) for c in ranked], AXES[[c[1] for c in ranked]]
    categories = np.array([[c[2]] for c in ranked])
    got = run(values, vectors, categories, strength, most, k)
    assert [place for place in got if place >= 0] == order(values, vectors, categories, strength, most, k)


def test_a_strength_of_0_keeps_the_order_and_of_1_goes_to_the_other_side() -> None:
    vectors, none = AXES[[0, 0, 1, 2]], np.zeros((4, 0))
    assert run([4, 3, 2, 1], vectors, none, 0.0, 0, 4) == [0, 1, 2, 3]
    assert run([4, 3, 2, 1], vectors, none, 1.0, 0, 2) == [0, 3]
    # 0.5 · (3 − 1) / 3 − 0.5 · 1 < 0.5 · (2 − 1) / 3 − 0: the copy of the first waits.
    assert run([4, 3, 2, 1], vectors, none, 0.5, 0, 3)[1] != 1


def test_at_most_m_of_a_category_and_no_limit_for_what_has_none() -> None:
    vectors, categories = AXES[[0, 0, 0, 0]], np.array([[1, 2], [1, 0], [2, 0], [0, 0]])
    assert run([4, 3, 2, 1], vectors, categories, 0.0, 1, 4) == [0, 3, -1, -1]
    assert run([4, 3, 2, 1], vectors, np.zeros((4, 1)), 0.0, 1, 4) == [0, 1, 2, 3]


def test_what_is_no_candidate_is_never_chosen() -> None:
    assert run([2, LOWEST, LOWEST], AXES[:3], np.zeros((3, 0)), 0.5, 0, 3) == [0, -1, -1]


def test_rows_are_diversified_apart() -> None:
    values = np.array([[3, 2, 1], [3, 2, 1]], np.float32)
    vectors = np.stack([AXES[[0, 0, 2]], AXES[[0, 2, 0]]])
    varied = Varied(np.array([1, 0], np.float32), np.zeros(2, np.int32))
    got = diversify(values, vectors, np.zeros((2, 3, 0), np.int32), 0, varied, np.int32(2)).numpy()
    assert got.tolist() == [[0, 2], [0, 1]]
