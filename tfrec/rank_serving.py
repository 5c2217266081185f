"""Joins a trained ranker and its served graph: what the artefact is made of, golden requests, and their answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfrec.artifact.export import Requests
from tfrec.artifact.ranker import RankerParts
from tfrec.data.impressions import history_of
from tfrec.data.preprocess import age_rows, index_table
from tfrec.evaluation.holdouts import last_items
from tfrec.models.ranking.ranker import Ranker
from tfrec.models.text import said
from tfrec.ranking import event_kinds, scaled
from tfrec.runs import Run

GOLDEN_USERS, GOLDEN_ITEMS = 8, 12


def make_parts(run: Run) -> RankerParts:
    """Tables, stored histories and functions of a trained run, as the served graph wants them."""
    model: Ranker = run.model()
    prepared, preprocessor = run.prepared, run.preprocessor
    length = max(model.sizes.length, 1)
    kinds = event_kinds(run)
    event_table = index_table(kinds.known, "events")
    stored = _stored(run, kinds.rows, length)
    fields = run.config.features.schema_.side("context")

    texts = run.config.features.schema_.texts()
    encoders = [run.encoder.fast()] if texts else []

    def context_features(raw: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        read = {name: said(encoders[0], preprocessor.tokens(raw[name])) for name in texts}
        return preprocessor.features("context", raw) | {name: scaled(vectors) for name, vectors in read.items()}

    def predict(inputs: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        return model.predictions(model(dict(inputs)))

    return RankerParts(
        item_ids=list(prepared.item_ids),
        user_index=preprocessor.users.lookup,
        item_index=preprocessor.items.lookup,
        event_index=lambda names: event_table.lookup(tf.strings.strip(names)),
        context={f.name: tf.float32 if f.kind == "numeric" else tf.string for f in fields},
        context_features=context_features,
        predict=predict,
        stored_history=stored[0],
        stored_events=stored[1],
        stored_times=stored[2],
        age_rows=age_rows if model.sizes.ages else None,
        now=int(stored[2].max(initial=0)),
        variables=[*(variable.value for variable in model.variables), *(v for own in encoders for v in own.variables)],
        tables=[*preprocessor.tables, event_table],
        history_length=length,
    )


def _stored(run: Run, kinds: np.ndarray, length: int) -> list[np.ndarray]:
    """The last items of each user in train and valid with their kinds and times, [U+1, L] each."""
    events, users = run.prepared.events, len(run.prepared.user_ids)
    history, offsets = history_of(events, kinds, (0, 1))
    offsets = np.concatenate([offsets, np.full(users + 2 - len(offsets), offsets[-1])])
    places = last_items((np.arange(1, offsets[-1] + 1), offsets), length)
    places[0] = 0
    return [np.concatenate([np.zeros(1, column.dtype), column])[places] for column in history]


def golden_requests(run: Run) -> Requests:
    """Requests that touch every rule: known and unknown users and items, with and without history."""
    users = [str(u) for u in run.prepared.user_ids[:GOLDEN_USERS]]
    items = [str(i) for i in run.prepared.item_ids[:GOLDEN_ITEMS]]
    nothing, unknown = np.empty((1, 0), object), "no such id"
    first = {"user_id": _strings(users), "history": nothing, "history_event": nothing, "item_ids": _strings([items])}
    history = _strings([["", unknown, items[0], items[-1]], ["", "", "", items[-1]]])
    times = {"history_time": np.array([[0, 0, 1, 2**31]]), "now": np.array([2**32])}
    second = {
        "user_id": _strings([users[0], unknown]),
        "history": history,
        "history_event": _strings([["", "no such kind", *(event_kinds(run).known * 2 + ["", ""])[:2]]]),
        "item_ids": _strings([[*items[:2], unknown, ""]]),
        **(times if run.config.ranker.history_age else {}),
    }
    return [("rank", {**first, **_context(run, len(users))}), ("serving_default", {**second, **_context(run, 2)})]


def _context(run: Run, rows: int) -> dict[str, np.ndarray]:
    return {name: np.resize(column[:rows], rows) for name, column in run.raw("context").items()}


def _strings(values: Any) -> np.ndarray:
    return np.vectorize(lambda text: text.encode(), otypes=[object])(np.array(values, dtype=object))


def reference_scores(run: Run, parts: RankerParts) -> np.ndarray:
    """The Keras model's own scores of the first golden request, float32 [≤ users, ≤ items]."""
    users = np.arange(1, min(GOLDEN_USERS, len(run.prepared.user_ids)) + 1, dtype=np.int32)
    items = np.arange(1, min(GOLDEN_ITEMS, len(run.prepared.item_ids)) + 1, dtype=np.int32)
    raw = _context(run, len(users))
    inputs = {
        "user": users,
        "item": np.repeat(items[None], len(users), axis=0),
        "history": parts.stored_history[users],
        "history_event": parts.stored_events[users],
        "history_age": age_rows(tf.constant(parts.now, tf.int64), tf.constant(parts.stored_times[users])),
        **parts.context_features(raw),
    }
    model: Ranker = run.model()
    first = run.config.ranker.tasks[0].name
    return model.predictions(model({name: tf.constant(value) for name, value in inputs.items()}))[first].numpy()
