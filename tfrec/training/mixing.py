"""Weights of a sum of scores under which held-out items are likeliest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from tfrec.evaluation import ragged
from tfrec.evaluation.ranks import Holdout

POWER = 0.5
_STEPS = 40
_CONVERGED = 1e-4
_RIDGE = 1e-6  # keeps two equal parts apart


class Mixture(NamedTuple):
    """Weights above 0 by name, and the objective that they reach, at most 1."""

    weights: dict[str, float]
    value: float


def mix(scores: Mapping[str, np.ndarray], holdout: Holdout) -> Mixture:
    """Non-negative weights of scores.

        w = argmax mean_q P_q^½,  P_q = Σ_{t ∈ targets(q)} softmax_i(Σ_c w_c s_c(q, i))[t],  w ≥ 0

    The softmax runs over the items that may rank; P is the chance that one draw from it is wanted. With log P in
    place of the root, hopeless queries outweigh those whose targets are near the top; with P itself, few queries
    decide. A handful of unknowns: Newton's method solves it, and a part whose weight would be negative leaves.

    Args:
        scores: float32 [Q, N+1] of each part, of like scale; column 0 is not read.
        holdout: Q queries.
    """
    names = list(scores)
    while names:
        weights, value = _Problem({name: scores[name] for name in names}, holdout).solve()
        if weights.min() >= 0:
            return Mixture({name: float(w) for name, w in zip(names, weights, strict=True) if w}, value)
        names.pop(int(weights.argmin()))
    return Mixture({}, 0.0)


class _Problem:
    def __init__(self, scores: Mapping[str, np.ndarray], holdout: Holdout):
        self.parts = list(scores.values())
        self.owner, item = ragged.owners(holdout.targets), holdout.targets[0]
        self.place = self.owner, item
        self.masked = ragged.owners(holdout.mask), holdout.mask[0]
        self.queries = len(holdout)
        self.wanted = np.stack([part[self.place] for part in self.parts]).astype(np.float64)  # [C, T]

    def solve(self) -> tuple[np.ndarray, float]:
        """Newton's method with halved steps, from equal chances of all items."""
        weights = np.zeros(len(self.parts))
        value, chances, hit = self._at(weights)
        for _ in range(_STEPS):
            slope, curvature = self._derivatives(chances, hit)
            step = np.linalg.solve(curvature + _RIDGE * np.eye(len(weights)), slope)
            for _ in range(10):
                new, *state = self._at(weights + step)
                if new > value:
                    break
                step /= 2
            else:
                break
            gain, weights, value, (chances, hit) = new - value, weights + step, new, state
            if gain < _CONVERGED * value:
                break
        return weights, value

    def _at(self, weights: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        """The objective, chances of items float32 [Q, N+1], and chances of targets [T]."""
        logits = np.zeros_like(self.parts[0])
        for weight, part in zip(weights, self.parts, strict=True):
            logits += np.float32(weight) * part
        kept = logits[self.place]
        logits[:, 0] = -np.inf
        logits[self.masked] = -np.inf
        logits[self.place] = kept
        logits -= logits.max(axis=1, keepdims=True)
        chances = np.exp(logits, out=logits)
        chances /= chances.sum(axis=1, keepdims=True)
        hit = chances[self.place].astype(np.float64) + 1e-30
        return float(np.mean(self._by_query(hit) ** POWER)), chances, hit

    def _derivatives(self, chances: np.ndarray, hit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Slope [C], and minus the second derivative [C, C] but for terms that are not definite."""
        total = self._by_query(hit)
        weight = total**POWER / self.queries
        share = hit / total[self.owner]
        count = len(self.parts)
        means, curvature = np.empty((count, self.queries)), np.empty((count, count))
        for i, part in enumerate(self.parts):
            weighed = chances * part
            means[i] = weighed.sum(axis=1)
            weighed *= weight[:, None].astype(np.float32)
            for j in range(i, count):
                curvature[i, j] = curvature[j, i] = np.vdot(weighed, self.parts[j])
        wanted = np.stack([self._by_query(share * row) for row in self.wanted])
        return (wanted - means) @ weight, curvature - (means * weight) @ means.T

    def _by_query(self, values: np.ndarray) -> np.ndarray:
        return np.bincount(self.owner, values, minlength=self.queries)
