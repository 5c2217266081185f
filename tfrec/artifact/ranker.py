"""The graph of a ranker that is served alone: a user, a history and item ids in, a score of every item out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from tfrec.artifact.recommender import LOWEST
from tfrec.artifact.requests import checked, known_first, last, rows_of

Tensors = Mapping[str, tf.Tensor]


@dataclass(frozen=True)
class RankerParts:
    """What a trained ranker hands over to be served.

    Args:
        item_ids: id of item i + 1 at place i.
        user_index, item_index, event_index: strings -> int32 indices, 0 = unknown.
        context: raw context columns with their types.
        context_features: raw context columns [B] -> tensors [B, …].
        predict: {"user" [B], "item" [B, N], "history" and "history_event" [B, L], context} -> {task: [B, N]};
            the first task gives the scores.
        stored_history, stored_events: int32 [U+1, L], what each known user did last, 0 on the left.
        variables: every variable that the functions above read.
        tables: every lookup table that they read.
        history_length: L, at least 1.
    """

    item_ids: Sequence[str]
    user_index: Callable[[tf.Tensor], tf.Tensor]
    item_index: Callable[[tf.Tensor], tf.Tensor]
    event_index: Callable[[tf.Tensor], tf.Tensor]
    context: Mapping[str, tf.DType]
    context_features: Callable[[Tensors], dict[str, tf.Tensor]]
    predict: Callable[[Tensors], dict[str, tf.Tensor]]
    stored_history: np.ndarray
    stored_events: np.ndarray
    variables: Sequence[tf.Variable]
    tables: Sequence[Any]
    history_length: int


class RankerModule(tf.Module):
    """Raw variables and tables only; the C++ loader does not find those of a Keras layer."""

    def __init__(self, parts: RankerParts):
        super().__init__(name="ranker")
        self.variables_, self.tables_ = list(parts.variables), list(parts.tables)
        self.stored_history = tf.Variable(parts.stored_history, dtype=tf.int32, trainable=False)
        self.stored_events = tf.Variable(parts.stored_events, dtype=tf.int32, trainable=False)


def build(parts: RankerParts) -> tuple[RankerModule, dict[str, Any]]:
    """The module and its signatures: ``rank``, which is also the default."""
    module = RankerModule(parts)

    def look_back(user: tf.Tensor, history: tf.Tensor, events: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Items and kinds [B, L] that the model reads: those given, or where none is known those stored."""
        rows = tf.shape(user)[0]
        items = parts.item_index(rows_of(history, rows, "history"))
        kinds = _kinds(parts.event_index(rows_of(events, rows, "history_event")), items)
        order = known_first(items)
        given = [last(tf.gather(x, order, batch_dims=1), parts.history_length) for x in (items, kinds)]
        stored = [tf.gather(x, user) for x in (module.stored_history, module.stored_events)]
        some = tf.reduce_any(given[0] > 0, axis=1, keepdims=True)
        used, used_kinds = (tf.where(some, a, b) for a, b in zip(given, stored, strict=True))
        return used, tf.where(used > 0, used_kinds, 0)

    @tf.function
    def rank(
        user_id: tf.Tensor, history: tf.Tensor, history_event: tf.Tensor, item_ids: tf.Tensor, **raw: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        asked = [tf.shape(x)[0] for x in (user_id, item_ids, history)]
        rows = tf.reduce_max(asked)
        user = parts.user_index(rows_of(user_id, rows, "user_id"))
        item = parts.item_index(rows_of(item_ids, rows, "item_ids"))
        items, kinds = look_back(user, history, history_event)
        context = parts.context_features({name: rows_of(x, rows, name) for name, x in raw.items()})
        found = parts.predict({"user": user, "item": item, "history": items, "history_event": kinds, **context})
        found = {name: tf.where(item > 0, value, LOWEST) for name, value in found.items()}
        return {"scores": next(iter(found.values())), **found}

    strings, matrix = tf.TensorSpec([None], tf.string), tf.TensorSpec([None, None], tf.string)
    inputs = {"user_id": strings, "history": matrix, "history_event": matrix, "item_ids": matrix}
    inputs |= {name: tf.TensorSpec([None], dtype, name=name) for name, dtype in parts.context.items()}
    concrete = rank.get_concrete_function(**inputs)
    return module, {"serving_default": concrete, "rank": concrete}


def _kinds(events: tf.Tensor, items: tf.Tensor) -> tf.Tensor:
    """One kind an item of the history; a request without kinds has unknown ones."""
    none, width = tf.shape(events)[1] == 0, tf.shape(items)[1]
    message = ["history_event must have as many columns as history, or none; got", tf.shape(events)[1], "for", width]
    events = checked(events, none | (tf.shape(events)[1] == width), message)
    return tf.cond(none, lambda: tf.zeros_like(items), lambda: events)


def defaults(parts: RankerParts) -> dict[str, Any]:
    """Values of the optional inputs: nobody, no history, and an unknown context."""
    nothing, one = np.empty((1, 0), object), np.array([""], object)
    unknown = {n: one if t == tf.string else np.array([np.nan], np.float32) for n, t in parts.context.items()}
    return {"user_id": one, "history": nothing, "history_event": nothing, **unknown}
