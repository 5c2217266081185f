"""Choosing settings from grids."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

Settings = dict[str, Any]
Grid = Mapping[str, Sequence[Any]]


def every(grid: Grid, score: Callable[[Settings], float]) -> list[tuple[float, Settings]]:
    """The score of each combination; the first key varies slowest."""
    combinations = (dict(zip(grid, values, strict=True)) for values in product(*grid.values()))
    return [(score(settings), settings) for settings in combinations]


def ascend(grid: Grid, start: Settings, score: Callable[[Settings], float]) -> Settings:
    """The best settings found by changing one key at a time, until a round over all keys changes nothing.

    Far cheaper than every combination; where keys depend on each other it may stop short of the best one.
    """
    known: dict[tuple[Any, ...], float] = {}

    def remembered(settings: Settings) -> float:
        key = tuple(settings.values())
        if key not in known:
            known[key] = score(settings)
        return known[key]

    best, before = dict(start), None
    while best != before:
        before = best
        for key, values in grid.items():
            # The present value comes first, so that only a better one replaces it.
            best = max([best, *({**best, key: value} for value in values)], key=remembered)
    return best
