"""The graph that is served: strings in, ranked item ids out, in ops that stock TF Serving links."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from tfrec.artifact import cascade, indexed
from tfrec.artifact.blended import BlendAt, BlendedSearch
from tfrec.artifact.cascade import CascadeParts, Person
from tfrec.artifact.indexed import Found, Plan
from tfrec.artifact.item_table import ItemTable
from tfrec.artifact.ivf import Allowed
from tfrec.artifact.options import RETRIEVAL
from tfrec.artifact.requests import LOWEST, known_first, one_a_row
from tfrec.artifact.requests import last as _last
from tfrec.artifact.requests import rows_of as _rows
from tfrec.artifact.retrieved import ByIndex, OfAll, Retrieved
from tfrec.artifact.scan import lower, top_k
from tfrec.artifact.take import take, whole
from tfrec.evaluation.whitening import Whitening

DEFAULT_K = 10
LARGE = 50_000  # items from which the best are sought by groups


@dataclass(frozen=True)
class Parts:
    """What a trained model hands over to be served.

    Args:
        item_ids: id of item i + 1 at place i.
        item_vectors: float32 [N+1, d] unit vectors; row 0 zeros.
        text_vectors: float32 [N+1, t] unit vectors, or None without text.
        popularity: float32 [N+1], the scores for a user of whom nothing is known.
        stored_history: last items of each known user, oldest first: values [E], and offsets [U+2] of user indices.
        user_index: strings -> int32 indices, 0 = unknown.
        user_vector: (item vectors [B, L, d], mask bool [B, L], user index [B]) -> [B, d].
        knows_users: whether user_vector tells users without history apart.
        item_columns: raw columns that embed an item, with their types.
        embed_item: (item index [B], raw columns) -> {"embedding": [B, d], "text_embedding": [B, t]}; an index
            beyond N is an item that training did not know.
        embed_query: texts [B] -> [B, t], or None without text.
        variables: every variable that the functions above read.
        tables: every lookup table that they read.
        history_length: L, the last items that user_vector reads.
        drop_history: whether recommend leaves out what is in the history.
        blend: (cosines [B, M+1], history [B, H], text vectors [M+1, ·] or None) -> scores [B, M+1], where M ≥ N as a
            catalogue grows; None = the cosines.
        blend_history: the last items that the blend reads.
        blend_texts: float32 [N+1, t'], the text vectors that the blend compares; None = text_vectors.
        whitening: makes blend_texts of text_vectors; None = new items have no text to the blend.
        blend_at: the blend at chosen items, where there is an item_plan.
        item_plan: how the nearest item vectors are found; None = all scores are computed.
        text_plan: the same of text vectors.
        available: bool [N+1], what may be returned; None = everything.
        cascade: what stands between retrieval and an answer; None = nothing.
    """

    item_ids: Sequence[str]
    item_vectors: np.ndarray
    text_vectors: np.ndarray | None
    popularity: np.ndarray
    stored_history: tuple[np.ndarray, np.ndarray]
    user_index: Callable[[tf.Tensor], tf.Tensor]
    user_vector: Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]
    knows_users: bool
    item_columns: Mapping[str, tf.DType]
    embed_item: Callable[[tf.Tensor, Mapping[str, tf.Tensor]], dict[str, tf.Tensor]]
    embed_query: Callable[[tf.Tensor], tf.Tensor] | None
    variables: Sequence[tf.Variable]
    tables: Sequence[Any]
    history_length: int
    drop_history: bool
    blend: Callable[[tf.Tensor, tf.Tensor, tf.Tensor | None], tf.Tensor] | None = None
    blend_history: int = 1000
    blend_texts: np.ndarray | None = None
    whitening: Whitening | None = None
    blend_at: BlendAt | None = None
    item_plan: Plan | None = None
    text_plan: Plan | None = None
    available: np.ndarray | None = None
    cascade: CascadeParts | None = None


class Recommender(tf.Module):
    """Signatures over :class:`Parts`.

    Holds raw variables and tables only: the C++ loader of TF Serving does not find the variables of a Keras
    layer that is an attribute, although Python does.
    """

    def __init__(self, parts: Parts):
        super().__init__(name="recommender")
        self.variables_, self.tables_ = list(parts.variables), list(parts.tables)
        self.item_ids = tf.Variable(["", *parts.item_ids], dtype=tf.string, shape=[None], trainable=False)
        self.items = ItemTable(self.item_ids)
        self.is_large = len(parts.item_ids) >= LARGE
        # A delisted item keeps its row, as histories refer to it, and is never returned.
        available = np.arange(len(parts.item_ids) + 1) > 0
        if parts.available is not None:
            available &= parts.available
        self.available = tf.Variable(available, dtype=tf.bool, shape=[None], trainable=False)
        self.item_vectors = _grows(parts.item_vectors)
        self.text_vectors = None if parts.text_vectors is None else _grows(parts.text_vectors)
        self.blend_texts = None if parts.blend_texts is None else _grows(parts.blend_texts)
        if parts.whitening is not None:  # for reindex; no signature reads it
            self.whitening_centre, self.whitening_directions = (
                tf.Variable(part, trainable=False) for part in parts.whitening
            )
        self.popularity = _grows(parts.popularity)
        self.item_index = indexed.make_index(parts.item_plan, self.item_vectors, self.available)
        self.text_index = indexed.make_index(parts.text_plan, self.text_vectors, self.available)
        self.blended = None
        if parts.item_plan and parts.item_plan.approximate and parts.blend_at is not None:
            texts = (self.text_index, parts.text_plan)
            of_items = (self.item_vectors, self.text_vectors, self.compared, parts.popularity, self.available)
            self.blended = BlendedSearch(parts.blend_at, self.item_index, texts, *of_items)
        values, offsets = parts.stored_history
        self.stored_items = tf.Variable(values, dtype=tf.int32, trainable=False)
        self.stored_offsets = tf.Variable(offsets, dtype=tf.int64, trainable=False)

    @property
    def compared(self) -> tf.Variable | None:
        """The text vectors that a blend compares."""
        return self.text_vectors if self.blend_texts is None else self.blend_texts

    def stored_history(self, user: tf.Tensor) -> tf.Tensor:
        """Stored items of users [B], oldest first, 0 on the left, int32 [B, H] with H that of the longest."""
        start, end = tf.gather(self.stored_offsets, user), tf.gather(self.stored_offsets, user + 1)
        longest = tf.maximum(tf.reduce_max(end - start), 0)
        place = end[:, None] + tf.range(-longest, 0)[None]
        items = tf.gather(self.stored_items, tf.maximum(place, 0))
        return tf.where(place >= start[:, None], items, 0)

    def best(self, scores: tf.Tensor, dropped: tf.Tensor, count: tf.Tensor, allowed: Allowed | None = None) -> Found:
        """Scores and items [B, ≤ count], the best first; what may not be returned has the lowest float32.

        Args:
            scores: float32 [B, N+1].
            dropped: int32 [B, M] items that may not be returned; 0 is none.
            count: int32 scalar.
            allowed: items int32 [B, C] -> bool [B, C].
        """
        if allowed is not None:
            shape = tf.shape(scores)
            scores = tf.where(allowed(tf.broadcast_to(tf.range(shape[1])[None], shape)), scores, LOWEST)
        scores = lower(tf.where(self.available[None], scores, LOWEST), dropped)
        if self.is_large:
            return top_k(scores, count)
        found, items = tf.math.top_k(scores, tf.minimum(count, tf.shape(scores)[1]))
        return found, items

    def nearest(
        self,
        index: Any,
        table: tf.Variable,
        query: tf.Tensor,
        dropped: tf.Tensor,
        k: tf.Tensor,
        nprobe: Any,
        allowed: Allowed | None = None,
    ) -> Found:
        """The rows of ``table`` with the largest products with the query [B, d], by its index if it has one."""
        count = tf.maximum(tf.reduce_max(k), 0)
        if index is None:
            return self.best(tf.matmul(query, table, transpose_b=True), dropped, count, allowed)
        return indexed.search(index, query, dropped, count, nprobe, allowed)

    def answer(self, found: tf.Tensor, items: tf.Tensor, k: tf.Tensor) -> dict[str, tf.Tensor]:
        """The first k items of each row by id, padded with "" and the lowest float32.

        Args:
            found: float32 [B, C] scores, the best first; the lowest float32 is none.
            items: int32 [B, C].
            k: int32 scalar or [B].
        """
        rows = tf.shape(found)[0]
        tf.debugging.assert_positive(k, message="k must be at least 1")
        widest = tf.maximum(tf.reduce_max(k), 0)
        k = one_a_row(k, rows, "k")
        found, items = found[:, :widest], items[:, :widest]
        missing = widest - tf.shape(found)[1]
        found = tf.pad(found, [[0, 0], [0, missing]], constant_values=LOWEST)
        items = tf.pad(items, [[0, 0], [0, missing]])
        kept = (tf.range(widest)[None] < k[:, None]) & (found > LOWEST)
        return {
            "item_ids": tf.gather(self.item_ids, tf.where(kept, items, 0)),
            "scores": tf.where(kept, found, LOWEST),
        }


def _grows(value: np.ndarray) -> tf.Variable:
    # Rows are open, so that a later version can hold more items without training code.
    return tf.Variable(value, dtype=tf.float32, shape=[None, *value.shape[1:]], trainable=False)


def _compact(index: tf.Tensor) -> tf.Tensor:
    """Moves unknown items (0) to the left and keeps the order of the others: [0, 5, 0, 7] -> [0, 0, 5, 7]."""
    return tf.gather(index, known_first(index), batch_dims=1)


class _Asked:
    """Who asks, and what they like, as the signatures of a recommender read it."""

    def __init__(self, module: Recommender, parts: Parts):
        self.module, self.parts = module, parts
        self.scores_all = module.item_index is None or (parts.blend is not None and module.blended is None)

    def read(self, user_id: tf.Tensor, history: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """User index [B] and the items [B, M] that count as seen, oldest first, 0 on the left."""
        given, asked = tf.shape(history)[0], tf.shape(user_id)[0]
        rows = tf.where(asked == 1, given, asked)
        user = self.parts.user_index(_rows(user_id, rows, "user_id"))
        seen = self.module.items.lookup(_rows(history, rows, "history"))
        empty = ~tf.reduce_any(seen > 0, axis=1, keepdims=True)
        return user, _compact(tf.concat([seen, tf.where(empty, self.module.stored_history(user), 0)], axis=1))

    def vectors(self, user: tf.Tensor, seen: tf.Tensor) -> tf.Tensor:
        used = _last(seen, self.parts.history_length)
        return self.parts.user_vector(take(self.module.item_vectors, used), used > 0, user)

    def is_known(self, user: tf.Tensor, seen: tf.Tensor) -> tf.Tensor:
        return tf.reduce_any(seen > 0, axis=1) | (self.parts.knows_users & (user > 0))

    def blended(self, seen: tf.Tensor) -> tf.Tensor:
        """What the blend reads of what counts as seen."""
        return seen[:, -self.parts.blend_history :]

    def cosines(self, user: tf.Tensor, seen: tf.Tensor) -> tf.Tensor:
        return tf.matmul(self.vectors(user, seen), self.module.item_vectors, transpose_b=True)  # [B, N+1]

    def retrieved(self, user: tf.Tensor, seen: tf.Tensor) -> Retrieved:
        """What retrieval says, by the index if there is one."""
        if not self.scores_all:
            return ByIndex(self.module, self.vectors(user, seen), self.blended(seen), self.is_known(user, seen))
        cosines, seen_last, texts = self.cosines(user, seen), self.blended(seen), whole(self.module.compared)
        if self.parts.cascade is not None:
            found = self.parts.cascade.evidence(cosines, seen_last, texts)
        else:
            blend = self.parts.blend
            found = {RETRIEVAL: cosines if blend is None else blend(cosines, seen_last, texts)}
        known, popular = self.is_known(user, seen)[:, None], self.module.popularity[None]
        return OfAll(self.module, found | {RETRIEVAL: tf.where(known, found[RETRIEVAL], popular)})

    def person(self, user_id: tf.Tensor, history: tf.Tensor) -> Person:
        """What a cascade reads of a request."""
        user, seen = self.read(user_id, history)
        return Person(user, seen, self.retrieved(user, seen), self.is_known(user, seen))


def build(parts: Parts) -> tuple[Recommender, dict[str, Any]]:
    """The module and its signatures, name -> tf.function."""
    module = Recommender(parts)
    index, asked = module.item_index, _Asked(module, parts)
    strings, matrix = tf.TensorSpec([None], tf.string), tf.TensorSpec([None, None], tf.string)
    last = {"exclude": matrix, "k": tf.TensorSpec(None, tf.int32)}  # unknown rank: a scalar, or one a row

    def recommend(
        user_id: tf.Tensor, history: tf.Tensor, exclude: tf.Tensor, k: tf.Tensor, nprobe: Any = None
    ) -> dict[str, tf.Tensor]:
        user, seen = asked.read(user_id, history)
        dropped = module.items.lookup(_rows(exclude, tf.shape(user)[0], "exclude"))
        if parts.drop_history:
            dropped = tf.concat([dropped, seen], axis=1)
        return module.answer(*asked.retrieved(user, seen).best(dropped, tf.maximum(tf.reduce_max(k), 0), nprobe), k)

    def similar(item_id: tf.Tensor, exclude: tf.Tensor, k: tf.Tensor, nprobe: Any = None) -> dict[str, tf.Tensor]:
        item = module.items.lookup(item_id)
        dropped = module.items.lookup(_rows(exclude, tf.shape(item)[0], "exclude"))
        dropped, vectors = tf.concat([dropped, item[:, None]], axis=1), take(module.item_vectors, item)
        scores, items = module.nearest(index, module.item_vectors, vectors, dropped, k, nprobe)
        return module.answer(tf.where(item[:, None] > 0, scores, LOWEST), items, k)

    @tf.function(input_signature=[strings, matrix, matrix])
    def rank(user_id: tf.Tensor, history: tf.Tensor, item_ids: tf.Tensor) -> dict[str, tf.Tensor]:
        user, seen = asked.read(user_id, history)
        item = module.items.lookup(_rows(item_ids, tf.shape(user)[0], "item_ids"))
        scores = asked.retrieved(user, seen).at(item)[RETRIEVAL]
        return {"scores": tf.where(take(module.available, item), scores, LOWEST)}

    @tf.function(input_signature=[strings, matrix])
    def embed_user(user_id: tf.Tensor, history: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"embedding": asked.vectors(*asked.read(user_id, history))}

    @tf.function
    def embed_item(item_id: tf.Tensor, **raw: tf.Tensor) -> dict[str, tf.Tensor]:
        rows = tf.reduce_max([tf.shape(column)[0] for column in raw.values() or [item_id]])
        columns = {name: _rows(column, rows, name) for name, column in raw.items()}
        return parts.embed_item(module.items.lookup(_rows(item_id, rows, "item_id")), columns)

    columns = {name: tf.TensorSpec([None], dtype, name=name) for name, dtype in parts.item_columns.items()}
    item_spec = tf.TensorSpec([None], tf.string, name="item_id")

    signatures = {
        **indexed.signatures("recommend", recommend, {"user_id": strings, "history": matrix} | last, index),
        **indexed.signatures("similar", similar, {"item_id": strings} | last, index),
        "rank": rank,
        "embed_user": embed_user,
        "embed_item": embed_item.get_concrete_function(item_id=item_spec, **columns),
    }
    if parts.embed_query is not None:
        signatures |= _text_signatures(module, parts)
    if parts.cascade is not None:
        signatures |= cascade.signatures(module, parts.cascade, asked.person, parts.drop_history, parts.embed_query)
    return module, signatures | {"serving_default": signatures["recommend"]}


def _text_signatures(module: Recommender, parts: Parts) -> dict[str, Any]:
    embed, text_vectors = parts.embed_query, module.text_vectors
    assert embed is not None and text_vectors is not None
    strings, matrix = tf.TensorSpec([None], tf.string), tf.TensorSpec([None, None], tf.string)

    def search(query: tf.Tensor, exclude: tf.Tensor, k: tf.Tensor, nprobe: Any = None) -> dict[str, tf.Tensor]:
        dropped = module.items.lookup(_rows(exclude, tf.shape(query)[0], "exclude"))
        return module.answer(*module.nearest(module.text_index, text_vectors, embed(query), dropped, k, nprobe), k)

    @tf.function(input_signature=[strings])
    def embed_query(query: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"text_embedding": embed(query)}

    specs = {"query": strings, "exclude": matrix, "k": tf.TensorSpec(None, tf.int32)}
    return {**indexed.signatures("search", search, specs, module.text_index), "embed_query": embed_query}


def defaults(signature: str, parts: Parts) -> dict[str, Any]:
    """Values of the optional inputs of a signature, as SignatureDef.defaults carry them."""
    nothing, one, ten = np.empty((1, 0), object), np.array([""], object), np.int32(DEFAULT_K)
    optional: dict[str, dict[str, Any]] = {
        "recommend": {"user_id": one, "history": nothing, "exclude": nothing, "k": ten},
        "search": {"exclude": nothing, "k": ten},
        "similar": {"exclude": nothing, "k": ten},
        "rank": {"user_id": one, "history": nothing},
        "embed_user": {"user_id": one, "history": nothing},
        "embed_item": {"item_id": one},
    }
    for names, plan in ((("recommend", "similar"), parts.item_plan), (("search",), parts.text_plan)):
        if plan and plan.approximate:
            optional |= {name + indexed.PROBING: optional[name] | {"nprobe": np.int32(plan.nprobe)} for name in names}
    optional["serving_default"] = optional["recommend"]
    return optional.get(signature, {})
