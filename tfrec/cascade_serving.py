"""Joins a trained cascade and its served graph: what stands between retrieval and an answer, and how good it is."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfrec import cascade, serving
from tfrec.artifact import export as artifacts
from tfrec.artifact.cascade import CascadeParts
from tfrec.artifact.filters import NO_LIMIT
from tfrec.artifact.options import WITH
from tfrec.artifact.recommender import Parts
from tfrec.artifact.requests import last
from tfrec.cascade import columns_of, pairs_of, read_chosen
from tfrec.data.preprocess import index_table
from tfrec.evaluation import ragged
from tfrec.evaluation.ranks import Holdout
from tfrec.models.ranking.pairs import Followers, Words
from tfrec.models.ranking.ranker import Ranker
from tfrec.models.ranking.signals import RETRIEVAL, Catalogue, evidence_of, scaled, signals
from tfrec.runs import Run
from tfrec.server.servable import Servable
from tfrec.training.cascade import RequestScorer

_AT_ONCE = 16
_MEASURED = ("recommend", f"recommend{WITH}")


def make_parts(run: Run, parts: Parts) -> Parts:
    """The parts of a recommender with the run's ranker behind it."""
    model: Ranker = run.model("ranker")
    chosen, columns = read_chosen(run), columns_of(run)
    table = index_table(columns.names, "categories")
    reads_text = run.config.model.text == "frozen"
    blend = parts.blend if isinstance(parts.blend, serving.ServedBlend) else None
    pairs = pairs_of(run, "final")
    made = CascadeParts(
        candidates=run.config.cascade.candidates,
        weights=chosen.weights,
        evidence=blend.evidence if blend else lambda *given: evidence_of(None, *given),
        scores=ranker_scores(model, chosen.moments, len(run.prepared.item_ids), parts.blend_history, reads_text, pairs),
        prices=columns.prices,
        categories=columns.categories,
        category_index=lambda names: table.lookup(tf.strings.strip(names)),
        category_names=len(columns.names),
        variables=[variable.value for variable in model.variables] + variables_of(pairs),
        tables=[table],
    )
    return replace(parts, cascade=made)


def variables_of(pairs: tuple[Words | None, Followers | None]) -> list[tf.Variable]:
    """What tables of pairs hold."""
    return [x for table in pairs if table is not None for x in (table.ids, table.weights)]


def ranker_scores(
    model: Ranker,
    moments: Mapping[str, tuple[float, float]],
    items: int,
    read: int,
    reads_text: bool,
    pairs: tuple[Words | None, Followers | None],
) -> Callable[..., dict[str, tf.Tensor]]:
    """A ranker as the cascade calls it.

    Args:
        model: trained.
        moments: of the signals.
        items: N; items beyond it are unknown to the ranker's tables, and have signals all the same.
        read: the last items of a history that signals read.
        reads_text: whether signals compare texts.
        pairs: words and followers of the items.
    """
    length = max(model.sizes.length, 1)

    def scores(
        user: tf.Tensor, seen: tf.Tensor, item: tf.Tensor, own: Mapping[str, tf.Tensor], columns: tuple[Any, ...]
    ) -> dict[str, tf.Tensor]:
        vectors, texts, prices, categories = columns
        catalogue = Catalogue(vectors, texts if reads_text else None, prices, categories, *pairs)
        numbers = scaled(signals(own, seen[:, -read:], item, catalogue), moments)
        trained, history = (tf.where(x <= items, x, 0) for x in (item, last(seen, length)))
        return model.scores(model({"user": user, "item": trained, "history": history, **numbers}))

    return scores


def measure(run: Run) -> dict[str, Any]:
    """End-to-end NDCG of the test queries by the run's SavedModel, through its own signature, beside retrieval alone.

    Retrieval alone is the same SavedModel asked with the weights of its tasks at 0.
    """
    model = run.model()
    parts = make_parts(run, serving.plan_indexes(run, model, serving.make_parts(run, model))[0])
    with tempfile.TemporaryDirectory(dir=run.folder) as folder:
        # Every signature costs seconds to trace and to load; those that are not asked cannot change the answers.
        artifacts.write_model(parts, Path(folder) / "1", {}, only=_MEASURED)
        servable = Servable(Path(folder) / "1")
        try:
            return _measured(run, servable)
        finally:
            servable.close()


def _measured(run: Run, servable: Servable) -> dict[str, Any]:
    k = int(run.config.train.monitor.rpartition("@")[2])
    terms = [name.encode() for name in read_chosen(run).weights]
    alone = {
        "weight_names": np.array([terms], object),
        "weights": np.array([[float(name == RETRIEVAL.encode()) for name in terms]], np.float32),
    }
    holdout = cascade.holdout_of(run, 2)
    place = {str(id_).encode(): index for index, id_ in enumerate(run.prepared.item_ids, start=1)}
    users = np.array([str(run.prepared.user_ids[user - 1]).encode() for user in holdout.users], object)
    found = []
    for signature, options in zip(_MEASURED, ({}, alone), strict=True):
        answers = [
            servable.run(signature, {"user_id": users[low : low + _AT_ONCE], "k": np.int32(k), **options}, ["item_ids"])
            for low in range(0, len(users), _AT_ONCE)
        ]
        ids = np.concatenate([answer["item_ids"] for answer in answers])
        found.append(np.vectorize(lambda id_: place.get(id_, 0), otypes=[np.int32])(ids))
    ours, theirs = (cascade.ndcg_of(holdout, items) for items in found)
    return cascade.difference(run, f"ndcg@{k}", ours, theirs)


def golden_requests(run: Run, parts: Parts) -> artifacts.Requests:
    """Those of a recommender, which name no new input, and some that reach every stage."""
    assert parts.cascade is not None
    users = np.array([str(id_).encode() for id_ in run.prepared.user_ids[:2]], object)
    rows, nothing = len(users), np.empty((1, 0), object)
    first, *_ = parts.cascade.weights
    weights = {
        "weight_names": np.array([[first.encode(), RETRIEVAL.encode()]], object),
        "weights": np.array([[2.0, 1.0]] * rows, np.float32),
    }
    prices, names = parts.cascade.prices, columns_of(run).names[:1]
    middle = NO_LIMIT if prices is None or not np.isfinite(prices).any() else np.nanmedian(prices)
    options = {
        **weights,
        "diversity": np.full(rows, 0.5, np.float32),
        "per_category": np.array(2 if names else 0, np.int32),
        "min_price": np.array(0, np.float32),
        "max_price": np.array(middle, np.float32),
        "allow_categories": nothing,
        "deny_categories": np.array([[name.encode() for name in names]], object).reshape(1, -1),
    }
    asked = {"user_id": users, "history": nothing, "exclude": nothing, "k": np.array(10, np.int32), **options}
    requests = [*serving.golden_requests(run, parts), (f"recommend{WITH}", asked)]
    if parts.embed_query is not None:
        requests.append((f"search{WITH}", asked | {"query": np.array([b"a gift"] * rows, object)}))
    items = np.array([[str(id_).encode() for id_ in run.prepared.item_ids[:4]]], object)
    return [*requests, (f"rank{WITH}", {"user_id": users, "history": nothing, "item_ids": items, **weights})]


def reference_scores(run: Run, users: int, k: int, at_once: int = 256) -> np.ndarray:
    """The Keras models' own best k values of the first users, from their stored history, float32 [≤ users, k].

    Args:
        run: trained.
        users, k: how many.
        at_once: users of a batch; products of other sizes round otherwise.
    """
    retriever, chosen, scorer = cascade.Retriever(run, "final"), read_chosen(run), RequestScorer(run.model("ranker"))
    lists = serving.stored_histories(run.retrieval_data(), run.config.export.stored_history)
    lists = ragged.take(lists, np.arange(1, min(users + 1, len(lists[1]) - 1)))
    queries, most = _queries(run, lists), max(run.config.cascade.candidates, k)
    found = []
    for rows in np.array_split(np.arange(len(queries)), max(-(-len(queries) // at_once), 1)):
        some = (ragged.take(part, rows) for part in (queries.history, queries.targets, queries.mask))
        requests = cascade.with_scaled(retriever.requests(Holdout(queries.users[rows], *some), most), chosen.moments)
        values = cascade.values_of(run, chosen, requests, scorer.score(requests))
        found.append(-np.sort(-values, axis=1)[:, :k])
    return np.concatenate(found)


def _queries(run: Run, lists: ragged.Ragged) -> Holdout:
    """Histories as queries that leave out what a served request leaves out."""
    users, items = len(lists[1]) - 1, np.arange(1, len(run.prepared.item_ids) + 1, dtype=np.int32)
    stock = run.in_stock()
    absent = items[:0] if stock is None else items[~stock[1:]]
    own = [values if run.config.export.drop_history else values[:0] for values in np.split(lists[0], lists[1][1:-1])]
    masks = [np.union1d(values, absent).astype(np.int32) for values in own]
    targets = [np.setdiff1d(items, mask, assume_unique=True)[:1] for mask in masks]  # a query must want something
    return Holdout(np.arange(1, users + 1, dtype=np.int32), lists, _joined(targets), _joined(masks))


def _joined(lists: Sequence[np.ndarray]) -> ragged.Ragged:
    return np.concatenate(lists), np.cumsum([0, *map(len, lists)]).astype(np.int64)
