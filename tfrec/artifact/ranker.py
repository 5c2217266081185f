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
        stored_times: when, in seconds, int64 [U+1, L], 0 on the left.
        age_rows: (seconds of the request, of what was done) -> rows of the age; None = the model does not read ages.
        now: seconds of a request that does not say when it is made.
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
    stored_times: np.ndarray
    age_rows: Callable[[tf.Tensor, tf.Tensor], tf.Tensor] | None
    now: int
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
        if parts.age_rows:
            self.stored_times = tf.Variable(parts.stored_times, dtype=tf.int64, trainable=False)


def build(parts: RankerParts) -> tuple[RankerModule, dict[str, Any]]:
    """The module and its signatures: ``rank``, which is also the default."""
    module = RankerModule(parts)
    timed = parts.age_rows is not None

    def look_back(user: tf.Tensor, history: tf.Tensor, events: tf.Tensor, raw: Tensors) -> Tensors:
        """What the model reads of the history, [B, L] each: what is given, or where none is known what is stored."""
        rows = tf.shape(user)[0]
        items = parts.item_index(rows_of(history, rows, "history"))
        beside = [_beside(parts.event_index(rows_of(events, rows, "history_event")), items, "history_event")]
        stored = [module.stored_history, module.stored_events]
        if timed:
            beside.append(_beside(rows_of(raw["history_time"], rows, "history_time"), items, "history_time"))
            stored.append(module.stored_times)
        order = known_first(items)
        given = [last(tf.gather(x, order, batch_dims=1), parts.history_length) for x in (items, *beside)]
        some = tf.reduce_any(given[0] > 0, axis=1, keepdims=True)
        used, *more = (tf.where(some, a, tf.gather(b, user)) for a, b in zip(given, stored, strict=True))
        kinds, *times = (tf.where(used > 0, x, tf.zeros_like(x)) for x in more)
        if not parts.age_rows:
            return {"history": used, "history_event": kinds}
        now = rows_of(raw["now"], rows, "now")[:, None]
        ages = parts.age_rows(tf.where(now > 0, now, parts.now), times[0])
        return {"history": used, "history_event": kinds, "history_age": ages}

    @tf.function
    def rank(
        user_id: tf.Tensor, history: tf.Tensor, history_event: tf.Tensor, item_ids: tf.Tensor, **raw: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        asked = [tf.shape(x)[0] for x in (user_id, item_ids, history)]
        rows = tf.reduce_max(asked)
        user = parts.user_index(rows_of(user_id, rows, "user_id"))
        item = parts.item_index(rows_of(item_ids, rows, "item_ids"))
        seen = look_back(user, history, history_event, raw)
        context = parts.context_features({name: rows_of(raw[name], rows, name) for name in parts.context})
        found = parts.predict({"user": user, "item": item, **seen, **context})
        found = {name: tf.where(item > 0, value, LOWEST) for name, value in found.items()}
        return {"scores": next(iter(found.values())), **found}

    strings, matrix = tf.TensorSpec([None], tf.string), tf.TensorSpec([None, None], tf.string)
    inputs = {"user_id": strings, "history": matrix, "history_event": matrix, "item_ids": matrix}
    if timed:
        inputs["history_time"] = tf.TensorSpec([None, None], tf.int64, name="history_time")
        inputs["now"] = tf.TensorSpec([None], tf.int64, name="now")
    inputs |= {name: tf.TensorSpec([None], dtype, name=name) for name, dtype in parts.context.items()}
    concrete = rank.get_concrete_function(**inputs)
    return module, {"serving_default": concrete, "rank": concrete}


def _beside(values: tf.Tensor, items: tf.Tensor, name: str) -> tf.Tensor:
    """One value an item of the history; a request without any has unknown ones, 0."""
    none, width = tf.shape(values)[1] == 0, tf.shape(items)[1]
    message = [f"{name} must have as many columns as history, or none; got", tf.shape(values)[1], "for", width]
    values = checked(values, none | (tf.shape(values)[1] == width), message)
    return tf.cond(none, lambda: tf.zeros_like(items, values.dtype), lambda: values)


def defaults(parts: RankerParts) -> dict[str, Any]:
    """Values of the optional inputs: nobody, no history, no time, and an unknown context."""
    nothing, one = np.empty((1, 0), object), np.array([""], object)
    unknown = {n: one if t == tf.string else np.array([np.nan], np.float32) for n, t in parts.context.items()}
    times = {"history_time": np.zeros((1, 0), np.int64), "now": np.zeros(1, np.int64)} if parts.age_rows else {}
    return {"user_id": one, "history": nothing, "history_event": nothing, **times, **unknown}
