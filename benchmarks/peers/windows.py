"""Users' lists cut into sequences of a fixed length."""

from __future__ import annotations

import numpy as np

from tfrec.evaluation import ragged
from tfrec.evaluation.ragged import Ragged


def windows(lists: Ragged, length: int, shared: int, random: np.random.Generator) -> np.ndarray:
    """Cuts each list into windows of consecutive items that lie ``shared`` items over one another.

    A list that fits into one window is not cut; the first cut of a longer one is drawn anew at each call. With
    ``shared`` 1 every item but a list's first is the successor of another in exactly one window.

    Args:
        lists: ragged, any lengths.
        length: L, more than ``shared``.
        shared: items that a window has in common with the one before.
        random: draws the cuts.

    Returns:
        int32 [W, L], zeros on the right, at least shared + 1 items a row.
    """
    step = length - shared
    sizes = ragged.lengths(lists)
    # A first window reaches back before the list, by less than a step.
    early = np.where(sizes > length, random.integers(0, step, len(sizes)), 0)
    count = np.where(sizes > shared, -(-(sizes + early - shared) // step), 0)
    owner = np.repeat(np.arange(len(sizes)), count)
    nth = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    start = nth * step - early[owner]
    low, high = np.maximum(start, 0), np.minimum(start + length, sizes[owner])
    kept = high - low > shared
    place = low[kept, None] + np.arange(length)
    inside = place < high[kept, None]
    place = np.where(inside, place + lists[1][:-1][owner[kept], None], 0)
    return np.where(inside, lists[0][place], 0).astype(np.int32)
