"""Half-way whitening: the few directions that every text shares stop deciding every cosine."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Whitening(NamedTuple):
    """Centres rows, scales each singular direction by s^-½ and makes the rows unit again.

    Args:
        centre: float64 [t].
        directions: float64 [t, t'], scaled.
    """

    centre: np.ndarray
    directions: np.ndarray

    @classmethod
    def fit(cls, text: np.ndarray) -> Whitening:
        """Learns from the rows that are not zero.

        Args:
            text: float32 [N+1, t]; t' is the rank of its centred rows.
        """
        known = text[np.any(text != 0, axis=1)].astype(np.float64)
        centre = known.mean(axis=0)
        squares, directions = np.linalg.eigh((known - centre).T @ (known - centre))  # s²
        real = squares > squares[-1] * 1e-10
        return cls(centre, directions[:, real] * squares[real] ** -0.25)

    def __call__(self, text: np.ndarray) -> np.ndarray:
        """Text vectors [N, t] as unit rows float32 [N, t']; a zero row (no text) stays zero."""
        out = np.zeros((len(text), self.directions.shape[1]), np.float32)
        known = np.any(text != 0, axis=1)
        rows = (text[known] - self.centre) @ self.directions
        out[known] = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        return out


def whiten(text: np.ndarray) -> np.ndarray:
    """Rows [N+1, t] whitened by what they say themselves, float32 [N+1, t']."""
    return Whitening.fit(text)(text)
