"""A linear model of what comes next, in closed form."""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import pairwise

import numpy as np

from tfrec.evaluation.ragged import Ragged

_NEGLIGIBLE = 1e-3
_LEAST_EVENTS = 64  # of a user whose pairs are expanded at a time


class Transitions:
    """Weights R of a linear map from a forgetting history to the next basket.

        R = argmin Σ_k ‖s_k R − t_k‖² + λ‖R‖² = (Σ s_kᵀ s_k + λI)⁻¹ Σ s_kᵀ t_k

    For each basket k of a user but the first, t_k holds its items and s_k = Σ γ^age(j) e_j the events j before it,
    the newest of age 0, but for those of γ^age < 1e-3. λ is a multiple of the mean of the diagonal of Σ sᵀs, so that
    one grid serves every table.
    Unlike EASE it knows order and repetition. Source: Choi et al. 2021 (SLIST), arXiv 2103.16104, with the past
    summed up by recency in place of one item.

    Args:
        train: ragged, a list of items per user, oldest first.
        baskets: int64 [E], a number that is equal for neighbours in one basket; single events each have their own.
        items: N.
        window: most events that s_k reads.
    """

    def __init__(self, train: Ragged, baskets: np.ndarray, items: int, window: int):
        self.train, self.baskets, self.items, self.window = train, baskets, items, window
        self._products = lru_cache(maxsize=1)(self._sums)

    def fit(self, decay: float, ridge: float) -> np.ndarray:
        """R float32 [N+1, N+1], row and column 0 zeros.

        Args:
            decay: γ in (0, 1].
            ridge: λ over the mean of the diagonal of Σ sᵀs.
        """
        gram, cross = self._products(decay)
        diagonal = np.diag_indices(self.items + 1)
        penalty = ridge * gram[diagonal].mean() + 1e-6
        gram = gram.copy()
        gram[diagonal] += penalty
        weights = np.linalg.solve(gram, cross)
        weights[0] = weights[:, 0] = 0
        return weights

    def _sums(self, decay: float) -> tuple[np.ndarray, np.ndarray]:
        """Σ sᵀs and Σ sᵀt, float32 [N+1, N+1]."""
        gram, cross = (np.zeros((self.items + 1) ** 2, np.float32) for _ in range(2))
        values, offsets = self.train
        window = self.window if decay == 1 else math.ceil(math.log(_NEGLIGIBLE) / math.log(decay))
        power = np.float32(decay) ** np.arange(min(self.window, window), dtype=np.float32)
        for low, high in pairwise(offsets[1:]):
            items, basket = values[low:high].astype(np.int64), self.baskets[low:high]
            first = np.append(np.flatnonzero(np.diff(basket, prepend=basket[:1] - 1)), len(items))
            for block in _blocks(first, max(len(power), _LEAST_EVENTS)):
                self._add(gram, cross, items, block, power)
        shape = (self.items + 1, self.items + 1)
        return gram.reshape(shape), cross.reshape(shape)

    def _add(
        self, gram: np.ndarray, cross: np.ndarray, items: np.ndarray, bounds: np.ndarray, power: np.ndarray
    ) -> None:
        """Adds the terms of one user's baskets that lie between these bounds."""
        place = np.arange(max(0, bounds[0] - len(power)), bounds[-2])
        age = bounds[:-1, None] - 1 - place[None]
        known = (age >= 0) & (age < len(power))
        source = np.where(known, power[np.clip(age, 0, len(power) - 1)], 0)  # [K, P]
        before = items[place] * (self.items + 1)
        np.add.at(gram, before[:, None] + items[place], source.T @ source)
        target = np.arange(bounds[0], bounds[-1])
        basket = np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))
        np.add.at(cross, before[None] + items[target][:, None], source[basket])


def _blocks(first: np.ndarray, events: int) -> list[np.ndarray]:
    """Bounds of baskets, the user's first left out, in runs of about so many events."""
    bounds = first[1:]
    if len(bounds) < 2:
        return []
    cuts = np.flatnonzero(np.diff(bounds[:-1] // events)) + 1
    starts = np.concatenate([[0], cuts, [len(bounds) - 1]])
    return [bounds[a : b + 1] for a, b in pairwise(starts)]
