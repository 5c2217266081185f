"""The same metrics on the parts of the holdout that differ: rare items, new items, short histories."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tfrec.evaluation import metrics, ragged
from tfrec.evaluation.ranks import Holdout, Ranks

SHORT_HISTORY = 4
"""Users with at most this many events are the field's cold-start users (Massa and Avesani 2007,
doi 10.1145/1297231.1297235)."""

TAIL_SHARE = 0.2
"""The long tail: the least popular items that together hold this share of train events."""


def slices(ranks: Ranks, holdout: Holdout, counts: np.ndarray, ks: Sequence[int]) -> dict[str, dict[str, float]]:
    """Metrics per slice: cold, tail and head items; short and long histories.

    Cold items have no train event, tail items are the least popular that together hold 20 % of the events, head
    items are the rest. A query is in an item slice with those of its targets that are; the ranks are unchanged.

    Args:
        ranks: of the whole holdout.
        holdout: what was asked.
        counts: train events per item, [N+1].
        ks: the Ks.

    Returns:
        {slice: {"queries": count, "hr@10": …, "ndcg@10": …, "mrr@10": …, "recall@10": …, "map@10": …}}; a slice
        without queries has the count alone.
    """
    cold, tail = counts == 0, tail_items(counts)
    items = holdout.targets[0]
    short = np.repeat(ragged.lengths(holdout.history) <= SHORT_HISTORY, ragged.lengths(holdout.targets))
    chosen = {
        "cold_items": cold[items],
        "tail_items": tail[items],
        "head_items": ~(cold | tail)[items],
        "short_history": short,
        "long_history": ~short,
    }
    return {name: _measure(select(ranks, targets), ks) for name, targets in chosen.items()}


def tail_items(counts: np.ndarray) -> np.ndarray:
    """Which items are in the long tail, bool [N+1].

    Items with equal counts fall on the same side, so the tail may hold less than its share: it ends at the largest
    count for which all items up to it hold at most 20 % of the events.
    """
    items_by_count = np.bincount(counts[1:])
    held = np.cumsum(items_by_count * np.arange(len(items_by_count)))  # events of the items with at most c events
    limit = np.searchsorted(held, TAIL_SHARE * counts[1:].sum(), side="right") - 1
    tail = (counts > 0) & (counts <= limit)
    tail[0] = False
    return tail


def select(ranks: Ranks, targets: np.ndarray) -> Ranks:
    """The ranks of some targets, bool [T]; queries without one are left out."""
    kept = np.add.reduceat(targets.astype(np.int64), ranks.offsets[:-1])
    some = kept > 0
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(kept[some])])
    return Ranks(ranks.values[targets], offsets, ranks.top[some], ranks.n_items)


def _measure(ranks: Ranks, ks: Sequence[int]) -> dict[str, float]:
    if not len(ranks):
        return {"queries": 0}
    return {"queries": len(ranks)} | {name: float(v.mean()) for name, v in metrics.per_query(ranks, ks).items()}
