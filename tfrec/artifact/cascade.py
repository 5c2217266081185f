"""Retrieve, filter, rank, weigh, diversify: the signatures of a recommender with a ranker, each one call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import tensorflow as tf

from tfrec.artifact import filters
from tfrec.artifact.diversify import Varied, diversify
from tfrec.artifact.requests import LOWEST, checked, one_a_row, rows_of

RETRIEVAL, WITH = "retrieval", "_with"
RECENT = 20
WEIGHTS = ("weight_names", "weights")
LISTS = ("allow_categories", "deny_categories")
NUMBERS = {"diversity": tf.float32, "per_category": tf.int32, "min_price": tf.float32, "max_price": tf.float32}
OPTIONS = {
    **{name: tf.TensorSpec(None, dtype, name=name) for name, dtype in NUMBERS.items()},  # one, or one a request
    **{name: tf.TensorSpec([None, None], tf.string, name=name) for name in (*LISTS, "weight_names")},
    "weights": tf.TensorSpec([None, None], tf.float32, name="weights"),
}
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

    @property
    def tasks(self) -> list[str]:
        """In their order."""
        return [name for name in self.weights if name != RETRIEVAL]


class Retrieval(Protocol):
    """The recommender that the cascade stands behind."""

    item_ids: tf.Variable
    item_vectors: tf.Variable
    text_vectors: tf.Variable | None
    available: tf.Variable
    popularity: tf.Variable
    items: Any

    def best(self, scores: tf.Tensor, dropped: tf.Tensor, count: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]: ...

    def answer(self, found: tf.Tensor, items: tf.Tensor, k: tf.Tensor) -> dict[str, tf.Tensor]: ...


class Asked(Protocol):
    """User index [B], what counts as seen [B, H], evidence [B, M+1] by name, and whether anything is known [B]."""

    def __call__(
        self, user_id: tf.Tensor, history: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, dict[str, tf.Tensor], tf.Tensor]: ...


class Person(NamedTuple):
    """Who asks: user index [B], what counts as seen [B, H], retrieval's scores [B, M+1] by name, and whether anything
    is known of them, bool [B]."""

    user: tf.Tensor
    seen: tf.Tensor
    evidence: Tensors
    known: tf.Tensor


class Options(NamedTuple):
    """Weights by term, numbers or [B]; how varied the answer is; what it may hold."""

    weights: Mapping[str, Any]
    varied: Varied | None
    allowed: filters.Allowed | None


class Cascade(tf.Module):
    """Stages over a recommender's tables; holds raw variables and tables only, as the recommender does."""

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
    ``_with`` in its name and every option of a cascade among its inputs.

    A server that reads JSON or batches wants all inputs of a signature, defaults or not: what is asked plainly must
    find a plain signature.

    Args:
        module: the recommender, a :class:`Retrieval`; keeps what the stages read.
        parts: of the stages.
        ask: reads a request.
        drop_history: whether recommend leaves out what counts as seen.
        embed_query: texts [B] -> [B, t], or None without text.
    """
    module.cascade = cascade = Cascade(parts)
    stages = _Stages(module, cascade, parts)

    def recommend(
        user_id: tf.Tensor, history: tf.Tensor, exclude: tf.Tensor, k: tf.Tensor, **given: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        person = Person(*ask(user_id, history))
        rows = tf.shape(person.user)[0]
        dropped = module.items.lookup(rows_of(exclude, rows, "exclude"))
        if drop_history:
            dropped = tf.concat([dropped, person.seen], axis=1)
        options = stages.options(given, rows, parts.weights)
        found, items = stages.candidates(person.evidence[RETRIEVAL], dropped, k, options)
        answer, chosen = stages.ranked(person, found, items, k, options)
        return answer | stages.reasons_of_history(chosen, person)

    def search(query: tf.Tensor, exclude: tf.Tensor, k: tf.Tensor, **given: tf.Tensor) -> dict[str, tf.Tensor]:
        assert embed_query is not None
        rows = tf.shape(query)[0]
        nobody = tf.constant([""]), tf.zeros([1, 0], tf.string)
        user_id, history = given.pop("user_id", nobody[0]), given.pop("history", nobody[1])
        person = Person(*ask(rows_of(user_id, rows, "user_id"), rows_of(history, rows, "history")))
        options = stages.options(given, rows, {name: float(name == RETRIEVAL) for name in parts.weights})
        scores = tf.matmul(embed_query(query), module.text_vectors, transpose_b=True)
        dropped = module.items.lookup(rows_of(exclude, rows, "exclude"))
        found, items = stages.candidates(scores, dropped, k, options)
        answer, chosen = stages.ranked(person, found, items, k, options)
        return answer | stages.reasons(
            chosen, tf.fill(tf.shape(chosen), "query"), tf.gather(scores, chosen, batch_dims=1)
        )

    def rank(user_id: tf.Tensor, history: tf.Tensor, item_ids: tf.Tensor, **given: tf.Tensor) -> dict[str, tf.Tensor]:
        person = Person(*ask(user_id, history))
        rows = tf.shape(person.user)[0]
        items = module.items.lookup(rows_of(item_ids, rows, "item_ids"))
        weights = stages.weights(given, rows, parts.weights)
        tasks = stages.tasks(person, items)
        value = stages.value(tasks, tf.gather(person.evidence[RETRIEVAL], items, batch_dims=1), person, weights)
        there = tf.gather(module.available, items)
        return {name: tf.where(there, x, LOWEST) for name, x in {"scores": value, **tasks}.items()}

    strings, matrix = tf.TensorSpec([None], tf.string), tf.TensorSpec([None, None], tf.string)
    person, last = {"user_id": strings, "history": matrix}, {"exclude": matrix, "k": tf.TensorSpec(None, tf.int32)}
    plain = {"recommend": (recommend, person | last), "rank": (rank, person | {"item_ids": matrix})}
    more = {"recommend": OPTIONS, "rank": {name: OPTIONS[name] for name in WEIGHTS}}
    if embed_query is not None:
        plain["search"], more["search"] = (search, {"query": strings} | last), person | OPTIONS
    made = {
        name + ending: tf.function(function).get_concrete_function(**specs, **(more[name] if ending else {}))
        for name, (function, specs) in plain.items()
        for ending in ("", WITH)
    }
    return made | {"serving_default": made["recommend"]}


class _Stages:
    def __init__(self, module: Retrieval, cascade: Cascade, parts: CascadeParts):
        self.module, self.cascade, self.parts = module, cascade, parts

    def options(self, given: Tensors, rows: tf.Tensor, weights: Mapping[str, float]) -> Options:
        """What a request asks for; without inputs nothing but the weights of the artefact."""
        if not given:
            return Options(weights, None, None)
        read = {name: one_a_row(given[name], rows, name) for name in NUMBERS}
        lists = {name: rows_of(given[name], rows, name) for name in LISTS}
        return Options(self.weights(given, rows, weights), self._varied(read), self._allowed(read, lists))

    def weights(self, given: Tensors, rows: tf.Tensor, plain: Mapping[str, float]) -> Mapping[str, Any]:
        """Of every term, a number or [B]: those that a request names, and the artefact's."""
        if not given:
            return plain
        names, numbers = (rows_of(given[name], rows, name) for name in WEIGHTS)
        widths = tf.shape(numbers)[1], "for", tf.shape(names)[1]
        fits = tf.shape(numbers)[1] == tf.shape(names)[1]
        numbers = checked(numbers, fits, ["weights must have as many columns as weight_names; got", *widths])
        finite = tf.reduce_all(tf.math.is_finite(numbers))
        numbers = checked(numbers, finite, ["weights must be finite numbers; got", numbers])
        terms = tf.constant(list(plain))
        known = tf.reduce_all(tf.reduce_any(names[..., None] == tf.concat([terms, [""]], 0), axis=-1))
        names = checked(names, known, ["weight_names must be among", terms, "; got", names])
        return {name: _named(names == name, numbers, weight) for name, weight in plain.items()}

    def candidates(
        self, scores: tf.Tensor, dropped: tf.Tensor, k: tf.Tensor, options: Options
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """The best allowed items of each row and their scores, [B, C]."""
        if options.allowed is not None:
            shape = tf.shape(scores)
            items = tf.broadcast_to(tf.range(shape[1])[None], shape)
            scores = tf.where(options.allowed(items), scores, LOWEST)
        return self.module.best(scores, dropped, tf.maximum(self.parts.candidates, tf.reduce_max(k)))

    def _allowed(self, numbers: Tensors, lists: Tensors) -> filters.Allowed:
        low, high = numbers["min_price"], numbers["max_price"]
        allow, deny = lists["allow_categories"], lists["deny_categories"]
        prices, categories = self.cascade.prices, self.cascade.categories
        if prices is None:
            priced = tf.reduce_any((low > 0) | (high < filters.NO_LIMIT))
            low = checked(low, ~priced, ["price bounds need a recommender that knows prices; got", low, "and", high])
            prices = tf.zeros([1])
        if categories is None:
            named = tf.reduce_any(allow != "") | tf.reduce_any(deny != "")
            allow = checked(allow, ~named, ["categories need a recommender that knows them; got", allow, "and", deny])
            categories = tf.zeros([1, 1], tf.int32)
        index, given = self.parts.category_index, tf.reduce_any(allow != "", axis=1)
        rules = [filters.within_price(prices, low, high)]
        rules.append(filters.within_categories(categories, index(allow), given, index(deny)))
        return filters.all_of(rules)

    def tasks(self, person: Person, items: tf.Tensor) -> dict[str, tf.Tensor]:
        """Scores of every task, [B, C]."""
        evidence = person.evidence
        seen, items, *values = (tf.ensure_shape(x, [None, None]) for x in (person.seen, items, *evidence.values()))
        own = {name: tf.gather(x, items, batch_dims=1) for name, x in zip(evidence, values, strict=True)}
        columns = (self.module.item_vectors, self.module.text_vectors, self.cascade.prices, self.cascade.categories)
        return self.parts.scores(person.user, seen, items, own, columns)

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
        tasks = self.tasks(person, items)
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
        categories = tf.zeros([1, 0], tf.int32) if self.cascade.categories is None else self.cascade.categories

        def chosen() -> tf.Tensor:
            vectors = tf.gather(self.module.item_vectors, items)
            own = tf.gather(categories, filters.known(items, categories))
            return diversify(value, vectors, own, self.parts.category_names, varied, width)

        return tf.cond(varied.asked, chosen, lambda: plain)

    def _varied(self, numbers: Tensors) -> Varied:
        strength, most = numbers["diversity"], numbers["per_category"]
        inside = tf.reduce_all((strength >= 0) & (strength <= 1))
        strength = checked(strength, inside, ["diversity must be in [0, 1]; got", strength])
        most = checked(most, tf.reduce_all(most >= 0), ["per_category must be at least 0; got", most])
        if self.cascade.categories is None:
            rule = ["per_category needs a recommender that knows categories; got", most]
            most = checked(most, tf.reduce_all(most == 0), rule)
        return Varied(strength, most)

    def reasons_of_history(self, chosen: tf.Tensor, person: Person) -> dict[str, tf.Tensor]:
        """The item of the recent history that each answer is nearest to, and their cosine."""
        recent = tf.pad(person.seen, [[0, 0], [1, 0]])[:, -RECENT:]
        vectors = self.module.item_vectors
        cosine = tf.matmul(tf.gather(vectors, chosen), tf.gather(vectors, recent), transpose_b=True)  # [B, k, L]
        cosine = tf.where((recent > 0)[:, None], cosine, LOWEST)
        nearest = tf.gather(recent, tf.argmax(cosine, axis=2, output_type=tf.int32), batch_dims=1)
        some = tf.reduce_any(recent > 0, axis=1, keepdims=True)
        history = tf.strings.join(["history:", tf.gather(self.module.item_ids, nearest)])
        other = tf.where(person.known, "user", "popularity")[:, None]
        why = tf.where(some, history, other)
        weight = tf.where(some, tf.reduce_max(cosine, axis=2), tf.gather(self.module.popularity, chosen))
        return self.reasons(chosen, why, weight)

    def reasons(self, chosen: tf.Tensor, why: tf.Tensor, weight: tf.Tensor) -> dict[str, tf.Tensor]:
        """Padded as the answer is."""
        there = chosen > 0
        return {"reasons": tf.where(there, why, ""), "reason_weights": tf.where(there, weight, LOWEST)}


def _named(place: tf.Tensor, numbers: tf.Tensor, plain: float) -> tf.Tensor:
    """The sum of the numbers at a place, bool [B, W], or where there is none what is plain, float32 [B]."""
    return tf.where(tf.reduce_any(place, axis=1), tf.reduce_sum(tf.where(place, numbers, 0.0), axis=1), plain)


def defaults(signature: str) -> dict[str, Any]:
    """Values of the options of a signature that takes them."""
    if not signature.endswith(WITH):
        return {}
    nothing, values = np.empty((1, 0), object), dict.fromkeys(LISTS, np.empty((1, 0), object))
    made: dict[str, Any] = {"weight_names": nothing, "weights": np.empty((1, 0), np.float32)}
    if signature == f"rank{WITH}":
        return made
    if signature == f"search{WITH}":
        made |= {"user_id": np.array([""], object), "history": nothing}
    limit = {"min_price": np.float32(0), "max_price": np.float32(filters.NO_LIMIT)}
    return made | values | limit | {"diversity": np.float32(0), "per_category": np.int32(0)}
