"""The table of baselines: settings chosen on valid, metrics on valid and test."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from tfrec.errors import DataError, TrainingError
from tfrec.evaluation import metrics, ragged
from tfrec.evaluation.baselines.counts import events, refuse_large
from tfrec.evaluation.baselines.fits import Fits, Recommender
from tfrec.evaluation.baselines.search import Grid, Settings, ascend, every
from tfrec.evaluation.ragged import Ragged
from tfrec.evaluation.ranks import Holdout, rank
from tfrec.evaluation.whitening import whiten

logger = logging.getLogger(__name__)

GAMMA = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
KNN: Grid = {"neighbours": (20, 50, 100, 200), "shrink": (0, 5, 20, 100)}
LINEAR: Grid = {"l2": (20, 50, 100, 200, 500, 1000), "gamma": (*GAMMA, 1.0)}
PROFILE: Grid = {"text_gamma": (0.5, 0.6, 0.7, 0.8, 0.9), "whitened": (False, True)}
BLEND: Grid = {"weight": (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0), "gamma": GAMMA, **PROFILE}
_CHOOSING_QUERIES = 10_000


def table(
    train: Ragged,
    valid: Holdout,
    test: Holdout,
    n_items: int,
    text: np.ndarray | None = None,
    repeats: Literal["mask", "keep"] = "mask",
    k: Sequence[int] = (5, 10, 20, 50),
) -> dict[str, dict[str, Any]]:
    """Fits every baseline that the data allow.

    Settings are chosen by ndcg@10 on valid (at most 10,000 queries of it, drawn with a fixed seed); for test the
    chosen settings are fitted again on train and the targets of valid.

    Args:
        train: ragged, list u holds the items of user u, oldest first; list 0 is of unknown users.
        valid: queries to choose on; users index the lists of train.
        test: queries to report; its histories include the targets of valid.
        n_items: N.
        text: item embeddings, float32 [N+1, t], unit rows, row 0 zeros; None leaves text baselines out.
        repeats: "keep" adds personal frequency.
        k: the Ks of the metrics.

    Returns:
        {name: {"valid": metrics, "test": metrics, "chosen": settings, "per_query": {"hr@10": float64 [Q], …} of
        test}}. A baseline that is too large for the data has {"skipped": reason} instead.

    Raises:
        DataError: arrays that do not fit together.
    """
    if text is not None and len(text) != n_items + 1:
        raise DataError(f"text must have {n_items + 1} rows, one per item and row 0", len(text))
    if not len(valid):
        raise DataError("baselines need a valid query to choose their settings on", 0)
    texts = {} if text is None else {False: text, True: whiten(text)}
    before, after = Fits(train, n_items, texts), Fits(joined(train, valid), n_items, texts)
    skipped = _skipped(n_items, text is not None)
    chosen = _Chooser(before, valid).choose(repeats, pairs=not skipped)
    counts = events(train, n_items)
    out: dict[str, dict[str, Any]] = {}
    for name, settings in chosen.items():
        logger.info("baseline %s: %s", name, settings)
        on_valid, _ = _measure(getattr(before, name)(**settings), valid, counts, k)
        on_test, per_query = _measure(getattr(after, name)(**settings), test, counts, k)
        out[name] = {"valid": on_valid, "test": on_test, "chosen": settings, "per_query": per_query}
    return out | skipped


def _skipped(n_items: int, with_text: bool) -> dict[str, dict[str, Any]]:
    try:
        refuse_large(n_items)
    except TrainingError as error:
        names = ["item_knn", "ease", "ease_recency"] + ["ease_recency_text"] * with_text
        logger.warning("baselines %s are skipped: %s", ", ".join(names), error)
        return {name: {"skipped": str(error)} for name in names}
    return {}


class _Chooser:
    """Settings by ndcg@10 on valid."""

    def __init__(self, fits: Fits, valid: Holdout):
        self.fits, self.valid = fits, valid
        if len(valid) > _CHOOSING_QUERIES:
            rows = np.random.default_rng(0).choice(len(valid), _CHOOSING_QUERIES, replace=False)
            self.valid = valid.take(np.sort(rows))

    def choose(self, repeats: str, pairs: bool) -> dict[str, Settings]:
        names: dict[str, Settings] = {"popularity": {}}
        if repeats == "keep":
            names["personal_frequency"] = {}
        if pairs:
            names["item_knn"] = self._ascend("item_knn", KNN, {"neighbours": 100, "shrink": 20})
            names |= self._ease()
        if self.fits.texts:
            names |= {"text_last_item": {}, "text_profile": self._text_profile()}
        if pairs and self.fits.texts:
            start = names["ease_recency"] | names["text_profile"] | {"weight": 0.5}
            names["ease_recency_text"] = self._ascend("ease_recency_text", BLEND, start)
        return names

    def _ease(self) -> dict[str, Settings]:
        tried = every(LINEAR, lambda s: self._score(self.fits.ease_recency(**s)))
        plain = max((x for x in tried if x[1]["gamma"] == 1.0), key=lambda x: x[0])[1]
        recency = max((x for x in tried if x[1]["gamma"] < 1.0), key=lambda x: x[0])[1]
        return {"ease": {"l2": plain["l2"]}, "ease_recency": recency}

    def _text_profile(self) -> Settings:
        return max(every(PROFILE, lambda s: self._score(self.fits.text_profile(**s))), key=lambda x: x[0])[1]

    def _ascend(self, name: str, grid: Grid, start: Settings) -> Settings:
        return ascend(grid, start, lambda settings: self._score(getattr(self.fits, name)(**settings)))

    def _score(self, recommender: Recommender) -> float:
        ranks = rank(recommender(self.valid), self.valid, self.fits.n_items, top=0)
        return float(metrics.ndcg(ranks, 10).mean())


def joined(train: Ragged, valid: Holdout) -> Ragged:
    """Each user's train items followed by the targets of valid; unknown users' targets become lists of their own.

    Raises:
        DataError: a user of valid without a list in train.
    """
    users = len(train[1]) - 1
    if len(valid) and not 0 <= valid.users.min() <= valid.users.max() < users:
        raise DataError(f"users of valid must index the {users} lists of train", int(valid.users.max()))
    unknown = valid.users == 0
    owner = np.where(unknown, users + np.cumsum(unknown) - 1, valid.users)
    owners = np.concatenate([ragged.owners(train), np.repeat(owner, ragged.lengths(valid.targets))])
    items = np.concatenate([train[0], valid.targets[0]])[np.argsort(owners, kind="stable")]
    sizes = np.bincount(owners, minlength=users + int(unknown.sum()))
    return items, np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])


def _measure(
    recommender: Recommender, holdout: Holdout, counts: np.ndarray, k: Sequence[int]
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    ranks = rank(recommender(holdout), holdout, len(counts) - 1, top=max(k))
    return metrics.summarize(ranks, k, counts), metrics.per_query(ranks, k)
