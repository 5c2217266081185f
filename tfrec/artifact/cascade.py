"""Retrieve, filter, rank, weigh, diversify: the signatures of a recommender with a ranker, each one call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import tensorflow as tf

from tfrec.artifact import filters, indexed
from tfrec.artifact.diversify import Varied, diversify
from tfrec.artifact.indexed import Found
from tfrec.artifact.options import OPTIONS, RETRIEVAL, WEIGHTS, WITH, Options, Reader
from tfrec.artifact.requests import LOWEST, rows_of
from tfrec.artifact.retrieved import Retrieved
from tfrec.artifact.take import take, whole

RECENT = 20
Tensors = Mapping[str, tf.Tensor]


@dataclass(frozen=True)
class CascadeParts:
    """What stands between retrieval and an answer.

    Args:
        candidates: items of a request that are ranked; more where a request asks for more.
        weights: of the value formula unless a request says otherwise, by task and "retrieval"; tasks in their order.
        evidence: (cosines [B, M+1], history [B, H], text vectors or None) -> what the ranker reads of retrieval,
            name -> [B, M+1], "retrieval" among them.
        scores: (user [B], history [B, H], items [B, C], evidence of the items [B, C], (item vectors, text vectors,
            prices, categories), each a tensor or None) -> {task: [B, C]}.
        prices: float32 [N+1], NaN = unknown; None without a price role.
        categories: int32 [N+1, c], 0 = none; None without a category role.
        category_index: names -> int32, 0 = unknown.
        category_names: how many there are.
        variables, tables: that the functions read.
    """

    candidates: int
    weights: Mapping[str, float]
    evidence: Callable[[tf.Tensor, tf.Tensor, tf.Tensor | None], dict[str, tf.Tensor]]
    scores: Callable[..., dict[str, tf.Tensor]]
    prices: np.ndarray | None
    categories: np.ndarray | None
    category_index: Callable[[tf.Tensor], tf.Tensor]
    category_names: int
    variables: Sequence[tf.Variable]
    tables: Sequence[Any]


class Retrieval(Protocol):
    """The recommender that the cascade stands behind."""

    item_ids: tf.Variable
    item_vectors: tf.Variable
    text_vectors: tf.Variable | None
    available: tf.Variable
    popularity: tf.Variable
    items: Any
    item_index: Any
    text_index: Any
    nearest: Callable[..., Found]

    def answer(self, found: tf.Tensor, items: tf.Tensor, k: tf.Tensor) -> dict[str, tf.Tensor]: ...


class Person(NamedTuple):
    """Who asks: user index [B], what counts as seen [B, H], what retrieval says, and whether anything is known of them,
    bool [B]."""

    user: tf.Tensor
    seen: tf.Tensor
    retrieved: Retrieved
    known: tf.Tensor


Asked = Callable[[tf.Tensor, tf.Tensor], Person]
"""User ids [B] and histories [B, H], either of one row for all."""


class State(tf.Module):
    """What the stages read beside the recommender: raw variables and tables only, as the recommender holds."""

    def __init__(self, parts: CascadeParts):
        super().__init__(name="cascade")
        self.variables_, self.tables_ = list(parts.variables), list(parts.tables)
        self.prices, self.categories = None, None
        if parts.prices is not None:
            self.prices = tf.Variable(parts.prices, dtype=tf.float32, shape=[None], trainable=False)
        if parts.categories is not None:
            width = parts.categories.shape[1]
            self.categories = tf.Variable(parts.categories, dtype=tf.int32, shape=[None, width], trainable=False)


def signatures(
    module: Any, parts: CascadeParts, ask: Asked, drop_history: bool, embed_query: Callable[..., Any] | None
) -> dict[str, Any]:
    """``recommend``, ``rank`` and, with text, ``search``, as they are asked without a ranker; and each again with
    ``_with`` in its name and every option of a cascade among its inputs, as :func:`indexed.signatures` says why.

    Args:
        module: the recommender, a :class:`Retrieval`; keeps what the stages read.
        parts: of the stages.
        ask: reads a request.
        drop_history: whether recommend leaves out what counts as seen.
        embed_query: texts [B] -> [B, t], or None without text.
    """
    module.cascade = State(parts)
    stages = Stages(module, module.cascade, parts, ask, drop_history, embed_query)
    strings, matrix = tf.TensorSpec([None], tf.string), tf.TensorSpec([None, None], tf.string)
    person, last = {"user_id": strings, "history": matrix}, {"exclude": matrix, "k": tf.TensorSpec(None, tf.int32)}
    plain: dict[str, tuple[Callable[..., Any], dict[str, Any], Any]] = {
        "recommend": (stages.recommend, person | last, module.item_index),
        "rank": (stages.rank, person | {"item_ids": matrix}, None),
    }
    more = {"recommend": OPTIONS, "rank": {name: OPTIONS[name] for name in WEIGHTS}}
    if embed_query is not None:
        plain["search"] = stages.search, {"query": strings} | last, module.text_index
        more["search"] = person | OPTIONS
    made: dict[str, Any] = {}
    for name, (function, specs, index) in plain.items():
        made |= indexed.signatures(name, function, specs, index)
        made |= indexed.signatures(name + WITH, function, specs | more[name], index)
    return made


class Stages:
    """The stages of a request, each on tensors of its own; arguments are those of :func:`signatures`."""

    def __init__(
        self,
        module: Retrieval,
        state: State,
        parts: CascadeParts,
        ask: Asked,
        drop_history: bool,
        embed_query: Callable[..., Any] | None,
    ):
        self.module, self.state, self.parts = module, state, parts
        self.ask, self.drop_history, self.embed_query = ask, drop_history, embed_query
        self.reader = Reader(state.prices, state.categories, parts.category_index)

    def recommend(
        self,
        user_id: tf.Tensor,
        history: tf.Tensor,
        exclude: tf.Tensor,
        k: tf.Tensor,
        nprobe: Any = None,
        **given: tf.Tensor,
    ) -> dict[str, tf.Tensor]:
        """The best items for a user."""
        person = self.ask(user_id, history)
        rows = tf.shape(person.user)[0]
        dropped = self.module.items.lookup(rows_of(exclude, rows, "exclude"))
        if self.drop_history:
            dropped = tf.concat([dropped, person.seen], axis=1)
        options = self.reader.read(given, rows, self.parts.weights)
        found, items = person.retrieved.best(dropped, self.count(k), nprobe, options.allowed)
        answer, chosen = self.ranked(person, found, items, k, options)
        return answer | self.reasons_of_history(chosen, person)

    def search(
        self, query: tf.Tensor, exclude: tf.Tensor, k: tf.Tensor, nprobe: Any = None, **given: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """The best items for a text, and whom it may concern."""
        assert self.embed_query is not None
        rows = tf.shape(query)[0]
        user_id = given.pop("user_id", tf.constant([""]))
        history = given.pop("history", tf.zeros([1, 0], tf.string))
        person = self.ask(rows_of(user_id, rows, "user_id"), rows_of(history, rows, "history"))
        options = self.reader.read(given, rows, {name: float(name == RETRIEVAL) for name in self.parts.weights})
        index, texts, text = self.module.text_index, self.module.text_vectors, self.embed_query(query)
        dropped = self.module.items.lookup(rows_of(exclude, rows, "exclude"))
        found, items = self.module.nearest(index, texts, text, dropped, self.count(k), nprobe, options.allowed)
        answer, chosen = self.ranked(person, found, items, k, options)
        weight = tf.linalg.matvec(take(texts, chosen), text)
        return answer | self.reasons(chosen, tf.fill(tf.shape(chosen), "query"), weight)

    def rank(
        self, user_id: tf.Tensor, history: tf.Tensor, item_ids: tf.Tensor, **given: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """Values and tasks of given items."""
        person = self.ask(user_id, history)
        rows = tf.shape(person.user)[0]
        items = self.module.items.lookup(rows_of(item_ids, rows, "item_ids"))
        weights = self.reader.weights(given, rows, self.parts.weights)
        evidence = person.retrieved.at(items)
        tasks = self.tasks(person, items, evidence)
        value = self.value(tasks, evidence[RETRIEVAL], person, weights)
        there = take(self.module.available, items)
        return {name: tf.where(there, x, LOWEST) for name, x in {"scores": value, **tasks}.items()}

    def count(self, k: tf.Tensor) -> tf.Tensor:
        """How many candidates a request has."""
        return tf.maximum(self.parts.candidates, tf.reduce_max(k))

    def tasks(self, person: Person, items: tf.Tensor, evidence: Tensors) -> dict[str, tf.Tensor]:
        """Scores of every task, [B, C]."""
        seen, items = (tf.ensure_shape(x, [None, None]) for x in (person.seen, items))
        columns = (self.module.item_vectors, self.module.text_vectors, self.state.prices, self.state.categories)
        return self.parts.scores(person.user, seen, items, evidence, tuple(map(whole, columns)))

    def value(self, tasks: Tensors, retrieval: tf.Tensor, person: Person, weights: Mapping[str, Any]) -> tf.Tensor:
        """Σ weight · score, [B, C]; retrieval's score for a user of whom nothing is known."""
        total = tf.zeros_like(retrieval)
        for name, score in {**tasks, RETRIEVAL: retrieval}.items():
            weight = weights[name]
            if isinstance(weight, tf.Tensor):
                total += weight[:, None] * score
            elif weight:  # a term that weighs nothing costs nothing
                total += weight * score
        return tf.where(person.known[:, None], total, retrieval)

    def ranked(
        self, person: Person, found: tf.Tensor, items: tf.Tensor, k: tf.Tensor, options: Options
    ) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        """The answer with the scores of every task, and its items [B, k]."""
        there = found > LOWEST
        tasks = self.tasks(person, items, person.retrieved.at(items))
        value = self.value(tasks, tf.where(there, found, 0.0), person, options.weights)
        value, order = tf.math.top_k(tf.where(there, value, LOWEST), tf.shape(value)[1])
        place = self.places(value, tf.gather(items, order, batch_dims=1), k, options.varied)
        left, safe = place >= 0, tf.maximum(place, 0)
        order = tf.gather(order, safe, batch_dims=1)
        value = tf.where(left, tf.gather(value, safe, batch_dims=1), LOWEST)
        answer = self.module.answer(value, tf.gather(items, order, batch_dims=1), k)
        chosen = self.module.items.lookup(answer["item_ids"])
        missing = tf.shape(chosen)[1] - tf.shape(order)[1]
        for name, score in tasks.items():
            own = tf.pad(tf.gather(score, order, batch_dims=1), [[0, 0], [0, missing]])
            answer[name] = tf.where(chosen > 0, own, LOWEST)
        return answer, chosen

    def places(self, value: tf.Tensor, items: tf.Tensor, k: tf.Tensor, varied: Varied | None) -> tf.Tensor:
        """Which of the ordered candidates are answered, [B, ≤ k]."""
        width = tf.clip_by_value(tf.reduce_max(k), 0, tf.shape(value)[1])
        plain = tf.broadcast_to(tf.range(width)[None], [tf.shape(value)[0], width])
        if varied is None:
            return plain
        held = whole(self.state.categories)
        categories = tf.zeros([1, 0], tf.int32) if held is None else held

        def chosen() -> tf.Tensor:
            vectors = take(self.module.item_vectors, items)
            own = tf.gather(categories, filters.known(items, categories))
            return diversify(value, vectors, own, self.parts.category_names, varied, width)

        return tf.cond(varied.asked, chosen, lambda: plain)

    def reasons_of_history(self, chosen: tf.Tensor, person: Person) -> dict[str, tf.Tensor]:
        """The item of the recent history that each answer is nearest to, and their cosine."""
        recent = tf.pad(person.seen, [[0, 0], [1, 0]])[:, -RECENT:]
        vectors = self.module.item_vectors
        cosine = tf.matmul(take(vectors, chosen), take(vectors, recent), transpose_b=True)  # [B, k, L]
        cosine = tf.where((recent > 0)[:, None], cosine, LOWEST)
        nearest = tf.gather(recent, tf.argmax(cosine, axis=2, output_type=tf.int32), batch_dims=1)
        some = tf.reduce_any(recent > 0, axis=1, keepdims=True)
        history = tf.strings.join(["history:", tf.gather(self.module.item_ids, nearest)])
        other = tf.where(person.known, "user", "popularity")[:, None]
        why = tf.where(some, history, other)
        weight = tf.where(some, tf.reduce_max(cosine, axis=2), take(self.module.popularity, chosen))
        return self.reasons(chosen, why, weight)

    def reasons(self, chosen: tf.Tensor, why: tf.Tensor, weight: tf.Tensor) -> dict[str, tf.Tensor]:
        """Padded as the answer is."""
        there = chosen > 0
        return {"reasons": tf.where(there, why, ""), "reason_weights": tf.where(there, weight, LOWEST)}
