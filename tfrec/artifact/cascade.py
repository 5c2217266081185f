"""Retrieve, filter, rank, weigh, diversify: the signatures of a recommender with a ranker, each one call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from tfrec.artifact import filters
from tfrec.artifact.diversify import Varied, diversify
from tfrec.artifact.requests import LOWEST, checked, one_a_row, rows_of

RETRIEVAL = "retrieval"
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
    """``recommend``, ``rank`` and, with text, ``search``, which run every stage; ``module`` keeps what they read.

    Args:
        module: the recommender, a :class:`Retrieval`.
        parts: of the stages.
        ask: reads a request.
        drop_history: whether recommend leaves out what counts as seen.
        embed_query: texts [B] -> [B, t], or None without text.
    """
    module.cascade = cascade = Cascade(parts)
    stages = _Stages(module, cascade, parts)

    @tf.function
    def recommend(
        user_id: tf.Tensor, history: tf.Tensor, exclude: tf.Tensor, k: tf.Tensor, **options: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        user, seen, evidence, known = ask(user_id, history)
        rows = tf.shape(user)[0]
        dropped = module.items.lookup(rows_of(exclude, rows, "exclude"))
        if drop_history:
            dropped = tf.concat([dropped, seen], axis=1)
        options = stages.options(options, rows)
        found, items = stages.candidates(evidence[RETRIEVAL], dropped, k, options)
        answer, chosen = stages.ranked(user, seen, evidence, known, found, items, k, options)
        return answer | stages.reasons_of_history(chosen, seen, known)

    @tf.function
    def search(
        query: tf.Tensor,
        user_id: tf.Tensor,
        history: tf.Tensor,
        exclude: tf.Tensor,
        k: tf.Tensor,
        **options: tf.Tensor,
    ) -> dict[str, tf.Tensor]:
        assert embed_query is not None
        rows = tf.shape(query)[0]
        user, seen, evidence, known = ask(rows_of(user_id, rows, "user_id"), rows_of(history, rows, "history"))
        options = stages.options(options, rows)
        scores = tf.matmul(embed_query(query), module.text_vectors, transpose_b=True)
        dropped = module.items.lookup(rows_of(exclude, rows, "exclude"))
        found, items = stages.candidates(scores, dropped, k, options)
        answer, chosen = stages.ranked(user, seen, evidence, known, found, items, k, options)
        weight = tf.gather(scores, chosen, batch_dims=1)
        return answer | stages.reasons(chosen, tf.fill(tf.shape(chosen), "query"), weight)

    @tf.function
    def rank(user_id: tf.Tensor, history: tf.Tensor, item_ids: tf.Tensor, **options: tf.Tensor) -> dict[str, tf.Tensor]:
        user, seen, evidence, known = ask(user_id, history)
        rows = tf.shape(user)[0]
        items = module.items.lookup(rows_of(item_ids, rows, "item_ids"))
        there = tf.gather(module.available, items)
        found = tf.gather(evidence[RETRIEVAL], items, batch_dims=1)
        tasks = stages.tasks(user, seen, evidence, items)
        value = stages.value(tasks, found, known, stages.options(options, rows))
        return {name: tf.where(there, x, LOWEST) for name, x in {"scores": value, **tasks}.items()}

    strings, matrix = tf.TensorSpec([None], tf.string), tf.TensorSpec([None, None], tf.string)
    count = {"k": tf.TensorSpec(None, tf.int32)}
    options, weights = _specs(parts), _weight_specs(parts)
    person = {"user_id": strings, "history": matrix}
    made = {"recommend": (recommend, {**person, "exclude": matrix, **count, **options})}
    made["rank"] = (rank, {**person, "item_ids": matrix, **weights})
    if embed_query is not None:
        made["search"] = (search, {"query": strings, **person, "exclude": matrix, **count, **options})
    concrete = {name: function.get_concrete_function(**specs) for name, (function, specs) in made.items()}
    return concrete | {"serving_default": concrete["recommend"]}


class _Stages:
    def __init__(self, module: Retrieval, cascade: Cascade, parts: CascadeParts):
        self.module, self.cascade, self.parts = module, cascade, parts

    def options(self, given: Tensors, rows: tf.Tensor) -> dict[str, tf.Tensor]:
        """Numbers as one a request, lists of names as one row a request."""
        lists = [name for name in given if name.endswith("_categories")]
        read = {name: rows_of(given[name], rows, name) for name in lists}
        return read | {name: one_a_row(value, rows, name) for name, value in given.items() if name not in read}

    def candidates(
        self, scores: tf.Tensor, dropped: tf.Tensor, k: tf.Tensor, options: Tensors
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """The best allowed items of each row and their scores, [B, C]."""
        shape = tf.shape(scores)
        items = tf.broadcast_to(tf.range(shape[1])[None], shape)
        scores = tf.where(self.allowed(options)(items), scores, LOWEST)
        return self.module.best(scores, dropped, tf.maximum(self.parts.candidates, tf.reduce_max(k)))

    def allowed(self, options: Tensors) -> filters.Allowed:
        """What the filters of a request let through."""
        rules = []
        if self.parts.prices is not None:
            rules.append(filters.within_price(self.cascade.prices, options["min_price"], options["max_price"]))
        if self.parts.categories is not None:
            allow, deny = options["allow_categories"], options["deny_categories"]
            index, given = self.parts.category_index, tf.reduce_any(allow != "", axis=1)
            rules.append(filters.within_categories(self.cascade.categories, index(allow), given, index(deny)))
        return filters.all_of(rules)

    def tasks(self, user: tf.Tensor, seen: tf.Tensor, evidence: Tensors, items: tf.Tensor) -> dict[str, tf.Tensor]:
        """Scores of every task, [B, C]."""
        seen, items, *values = (tf.ensure_shape(x, [None, None]) for x in (seen, items, *evidence.values()))
        own = {name: tf.gather(x, items, batch_dims=1) for name, x in zip(evidence, values, strict=True)}
        columns = (self.module.item_vectors, self.module.text_vectors, self.cascade.prices, self.cascade.categories)
        return self.parts.scores(user, seen, items, own, columns)

    def value(self, tasks: Tensors, retrieval: tf.Tensor, known: tf.Tensor, options: Tensors) -> tf.Tensor:
        """Σ weight · score, [B, C]; retrieval's score for a user of whom nothing is known."""
        total = tf.zeros_like(retrieval)
        for name, score in {**tasks, RETRIEVAL: retrieval}.items():
            weight = options[f"weight_{name}"]
            finite = tf.reduce_all(tf.math.is_finite(weight))
            weight = checked(weight, finite, [f"weight_{name} must be a finite number; got", weight])
            total += tf.where(weight != 0, weight, 0.0)[:, None] * score
        return tf.where(known[:, None], total, retrieval)

    def ranked(
        self,
        user: tf.Tensor,
        seen: tf.Tensor,
        evidence: Tensors,
        known: tf.Tensor,
        found: tf.Tensor,
        items: tf.Tensor,
        k: tf.Tensor,
        options: Tensors,
    ) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        """The answer with the scores of every task, and its items [B, k]."""
        there = found > LOWEST
        tasks = self.tasks(user, seen, evidence, items)
        value = tf.where(there, self.value(tasks, tf.where(there, found, 0.0), known, options), LOWEST)
        value, order = tf.math.top_k(value, tf.shape(value)[1])
        place = self.places(value, tf.gather(items, order, batch_dims=1), options, k)
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

    def places(self, value: tf.Tensor, items: tf.Tensor, options: Tensors, k: tf.Tensor) -> tf.Tensor:
        """Which of the ordered candidates are answered, [B, ≤ k]."""
        rows, width = tf.shape(value)[0], tf.minimum(tf.reduce_max(k), tf.shape(value)[1])
        width = tf.maximum(width, 0)
        varied = self._varied(options, rows)
        categories = tf.zeros([1, 0], tf.int32) if self.cascade.categories is None else self.cascade.categories

        def chosen() -> tf.Tensor:
            vectors = tf.gather(self.module.item_vectors, items)
            own = tf.gather(categories, filters.known(items, categories))
            return diversify(value, vectors, own, self.parts.category_names, varied, width)

        plain = tf.broadcast_to(tf.range(width)[None], [rows, width])
        return tf.cond(varied.asked, chosen, lambda: plain)

    def _varied(self, options: Tensors, rows: tf.Tensor) -> Varied:
        strength = options["diversity"]
        inside = tf.reduce_all((strength >= 0) & (strength <= 1))
        strength = checked(strength, inside, ["diversity must be in [0, 1]; got", strength])
        most = options.get("per_category", tf.zeros([rows], tf.int32))
        most = checked(most, tf.reduce_all(most >= 0), ["per_category must be at least 0; got", most])
        return Varied(strength, most)

    def reasons_of_history(self, chosen: tf.Tensor, seen: tf.Tensor, known: tf.Tensor) -> dict[str, tf.Tensor]:
        """The item of the recent history that each answer is nearest to, and their cosine."""
        recent = tf.pad(seen, [[0, 0], [1, 0]])[:, -RECENT:]
        vectors = self.module.item_vectors
        cosine = tf.matmul(tf.gather(vectors, chosen), tf.gather(vectors, recent), transpose_b=True)  # [B, k, L]
        cosine = tf.where((recent > 0)[:, None], cosine, LOWEST)
        nearest = tf.gather(recent, tf.argmax(cosine, axis=2, output_type=tf.int32), batch_dims=1)
        some = tf.reduce_any(recent > 0, axis=1, keepdims=True)
        history = tf.strings.join(["history:", tf.gather(self.module.item_ids, nearest)])
        other = tf.where(known, "user", "popularity")[:, None]
        why = tf.where(some, history, other)
        weight = tf.where(some, tf.reduce_max(cosine, axis=2), tf.gather(self.module.popularity, chosen))
        return self.reasons(chosen, why, weight)

    def reasons(self, chosen: tf.Tensor, why: tf.Tensor, weight: tf.Tensor) -> dict[str, tf.Tensor]:
        """Padded as the answer is."""
        there = chosen > 0
        return {"reasons": tf.where(there, why, ""), "reason_weights": tf.where(there, weight, LOWEST)}


def _weight_specs(parts: CascadeParts) -> dict[str, tf.TensorSpec]:
    return {f"weight_{name}": tf.TensorSpec(None, tf.float32, name=f"weight_{name}") for name in parts.weights}


def _specs(parts: CascadeParts) -> dict[str, tf.TensorSpec]:
    number, names = (None, tf.float32), ([None, None], tf.string)
    specs: dict[str, tuple[Any, tf.DType]] = {"diversity": number}
    if parts.prices is not None:
        specs |= {"min_price": number, "max_price": number}
    if parts.categories is not None:
        specs |= {"allow_categories": names, "deny_categories": names, "per_category": (None, tf.int32)}
    return {name: tf.TensorSpec(*spec, name=name) for name, spec in specs.items()} | _weight_specs(parts)


def defaults(parts: CascadeParts, signature: str) -> dict[str, Any]:
    """Values of the optional inputs that the stages add to a signature; a search weighs retrieval alone."""
    plain = {name: float(name == RETRIEVAL) for name in parts.weights}
    weights = plain if signature == "search" else parts.weights
    made: dict[str, Any] = {f"weight_{name}": np.float32(weight) for name, weight in weights.items()}
    if signature == "search":
        made |= {"user_id": np.array([""], object), "history": np.empty((1, 0), object)}
    if signature in ("recommend", "serving_default", "search"):
        made["diversity"] = np.float32(0)
        if parts.prices is not None:
            made |= {"min_price": np.float32(0), "max_price": np.float32(filters.NO_LIMIT)}
        if parts.categories is not None:
            nothing = np.empty((1, 0), object)
            made |= {"allow_categories": nothing, "deny_categories": nothing, "per_category": np.int32(0)}
    return made if signature in ("recommend", "serving_default", "search", "rank") else {}
