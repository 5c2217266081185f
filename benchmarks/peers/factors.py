"""Implicit ALS and BPR (package implicit): settings by coordinate ascent on valid, then fitted on train and valid."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse as sp
from implicit.als import AlternatingLeastSquares
from implicit.bpr import BayesianPersonalizedRanking
from protocol import METRIC, Peer, Prepared, Recommender

from tfrec.evaluation import ragged
from tfrec.evaluation.baselines.search import Grid, Settings, ascend
from tfrec.evaluation.ragged import Ragged

ALS: Grid = {
    "alpha": (0.3, 1, 5, 20, 60),
    "regularization": (0.01, 1, 5, 10, 20, 50),
    "factors": (32, 64, 128),
    "iterations": (15, 30),
}
ALS_START = {"alpha": 5, "regularization": 1, "factors": 64, "iterations": 15}
BPR: Grid = {
    "learning_rate": (0.003, 0.01, 0.03),
    "regularization": (0.001, 0.01, 0.05),
    "factors": (32, 64, 128),
    "iterations": (50, 100, 200),
}
BPR_START = {"learning_rate": 0.01, "regularization": 0.01, "factors": 64, "iterations": 100}


def als(prepared: Prepared, threads: int, seconds: float) -> Peer:
    """Hu, Koren and Volinsky 2008, doi 10.1109/ICDM.2008.22; an event counts as often as it happened."""
    return _tuned(AlternatingLeastSquares, ALS, ALS_START, prepared, threads)


def bpr(prepared: Prepared, threads: int, seconds: float) -> Peer:
    """Rendle et al. 2009, arXiv 1205.2618."""
    return _tuned(BayesianPersonalizedRanking, BPR, BPR_START, prepared, threads)


def _tuned(make: Callable[..., Any], grid: Grid, start: Settings, prepared: Prepared, threads: int) -> Peer:
    def fit(settings: Settings, *splits: int) -> Recommender:
        model = make(**settings, num_threads=threads, random_state=1)
        model.fit(_matrix(prepared.lists(*splits), prepared.items), show_progress=False)
        return _recommender(model)

    def score(settings: Settings) -> float:
        found = prepared.choose(fit(settings, 0))
        print(f"{make.__name__} {settings}: valid {METRIC} {found:.4f}", file=sys.stderr, flush=True)
        return found

    chosen = ascend(grid, start, score)
    return Peer(fit(chosen, 0, 1), chosen)


def _matrix(lists: Ragged, items: int) -> sp.csr_matrix:
    """Events of each user and item, float32 [U+1, N+1]."""
    shape = len(lists[1]) - 1, items + 1
    ones = np.ones(len(lists[0]), np.float32)
    return sp.coo_matrix((ones, (ragged.owners(lists), lists[0])), shape).tocsr()  # adds up what repeats


def _recommender(model: Any) -> Recommender:
    users, items = np.asarray(model.user_factors), np.asarray(model.item_factors)
    return lambda queries: lambda rows: users[queries.users[rows]] @ items.T
