"""Top-N metrics as pure functions of ranks.

Ranks are 0-based; a target is found at K when its position is below K. In a basket the j-th best target stands at
max(rank, j): targets that tie cannot share a position, so no metric passes 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tfrec.errors import DataError
from tfrec.evaluation.ranks import Ranks


def hr(ranks: Ranks, k: int) -> np.ndarray:
    """Hit rate: 1 when any target is in the first K, float64 [Q]."""
    return (_sum(ranks, _found(ranks, k)) > 0).astype(np.float64)


def recall(ranks: Ranks, k: int) -> np.ndarray:
    """Recall: targets in the first K / targets, float64 [Q]."""
    return _sum(ranks, _found(ranks, k)) / ranks.sizes


def mrr(ranks: Ranks, k: int) -> np.ndarray:
    """Reciprocal rank: 1 / (1 + position) of the best target, 0 when it is not in the first K, float64 [Q]."""
    best = ranks.offsets[:-1]
    return (_found(ranks, k) / (ranks.positions + 1))[best]


def ndcg(ranks: Ranks, k: int) -> np.ndarray:
    """Normalised discounted cumulative gain, float64 [Q].

    DCG@K / ideal DCG@K with DCG@K = Σ 1 / log2(position + 2) over the targets in the first K; the ideal order has
    the min(targets, K) first positions. Source: Järvelin and Kekäläinen 2002, doi 10.1145/582415.582418.
    """
    gains = _found(ranks, k) / np.log2(ranks.positions + 2)
    ideal = np.cumsum(1 / np.log2(np.arange(k) + 2))
    return _sum(ranks, gains) / ideal[np.minimum(ranks.sizes, k) - 1]


def map_(ranks: Ranks, k: int) -> np.ndarray:
    """Average precision: Σ precision at each target found in the first K / min(targets, K), float64 [Q]."""
    precision = (ranks.nth + 1) / (ranks.positions + 1)
    return _sum(ranks, precision * _found(ranks, k)) / np.minimum(ranks.sizes, k)


def coverage(ranks: Ranks, k: int) -> float:
    """Share of the catalogue that is in anyone's first K."""
    shown = np.unique(_top(ranks, k))
    return float(np.count_nonzero(shown) / ranks.n_items)


def novelty(ranks: Ranks, k: int, counts: np.ndarray) -> float:
    """Mean self-information of what is shown, -log2 p(item), in bits.

    p is the share of train events; an item without one counts as one event.
    Source: Zhou et al. 2010, doi 10.1073/pnas.1000488107.

    Args:
        ranks: with top lists of at least K.
        k: K.
        counts: train events per item, [N+1].
    """
    shown = _top(ranks, k)
    shown = shown[shown > 0]
    if not len(shown):
        return 0.0
    known = np.maximum(counts[1:], 1)
    return float(np.mean(-np.log2(known / known.sum())[shown - 1]))


def per_query(ranks: Ranks, ks: Sequence[int]) -> dict[str, np.ndarray]:
    """hr, ndcg, mrr, recall and map of every query: {"hr@10": float64 [Q], …}."""
    functions = {"hr": hr, "ndcg": ndcg, "mrr": mrr, "recall": recall, "map": map_}
    return {f"{name}@{k}": function(ranks, k) for k in ks for name, function in functions.items()}


def summarize(ranks: Ranks, ks: Sequence[int], counts: np.ndarray) -> dict[str, float]:
    """The mean of every metric over queries, with coverage and novelty: {"hr@10": 0.12, …}.

    Args:
        ranks: of at least one query, with top lists of at least the largest K.
        ks: the Ks.
        counts: train events per item, [N+1].

    Raises:
        DataError: no queries, or top lists shorter than a K.
    """
    if not len(ranks):
        raise DataError("metrics need at least one query", 0)
    out = {name: float(values.mean()) for name, values in per_query(ranks, ks).items()}
    for k in ks:
        out |= {f"coverage@{k}": coverage(ranks, k), f"novelty@{k}": novelty(ranks, k, counts)}
    return out


def _found(ranks: Ranks, k: int) -> np.ndarray:
    if k < 1:
        raise DataError("K must be at least 1", k)
    return ranks.positions < k


def _sum(ranks: Ranks, values: np.ndarray) -> np.ndarray:
    return np.add.reduceat(values.astype(np.float64), ranks.offsets[:-1])  # no query is without a target


def _top(ranks: Ranks, k: int) -> np.ndarray:
    if k > ranks.top.shape[1]:
        raise DataError(f"top lists must hold at least {k} items", ranks.top.shape[1], "Rank with a larger top.")
    return ranks.top[:, :k]
