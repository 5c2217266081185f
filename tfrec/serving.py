"""Joins a trained run and the served graph: what an artefact is made of, and its golden requests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import tensorflow as tf

from tfrec.artifact.export import Requests
from tfrec.artifact.planning import Wish, make_plan
from tfrec.artifact.recommender import LOWEST, Parts
from tfrec.evaluation import ragged
from tfrec.evaluation.holdouts import last_items
from tfrec.evaluation.whitening import Whitening
from tfrec.models.blend import Blend
from tfrec.models.blend_at import BlendAt
from tfrec.models.ranking.signals import evidence_of
from tfrec.models.text import embed, said
from tfrec.models.two_tower import TwoTower
from tfrec.runs import Run
from tfrec.training.retrieval import RetrievalData, stored_histories
from tfrec.training.validation import RetrievalScorer

GOLDEN_USERS = 8
RECALL_QUERIES = 500
_COMPARED, _SAME_PRODUCT = 500, 1e-4  # rows by which whitened texts are known, and how well


def plan_indexes(run: Run, model: TwoTower, parts: Parts) -> tuple[Parts, dict[str, Any]]:
    """The parts with indexes as the settings wish, and what the card says of them.

    Recall is measured on vectors of users' stored histories, and on texts of items.
    """
    settings = run.config.export
    wish = Wish(settings.index, settings.recall, settings.index_storage)
    item_plan, of_items = make_plan(parts.item_vectors, _some_users(run, model, parts.item_vectors), wish)
    about, text_plan = {"items": of_items}, None
    if parts.text_vectors is not None:
        said = np.flatnonzero(parts.text_vectors.any(axis=1))
        asked = np.random.default_rng(0).permutation(said)[:RECALL_QUERIES]
        text_plan, about["texts"] = make_plan(parts.text_vectors, parts.text_vectors[asked], wish)
    return replace(parts, item_plan=item_plan, text_plan=text_plan), about


def _some_users(run: Run, model: TwoTower, vectors: np.ndarray) -> np.ndarray:
    """Vectors of users with a history, float32 [≤ 500, d]."""
    lists = stored_histories(run.retrieval_data(), run.config.model.history_length)
    users = np.flatnonzero(ragged.lengths(lists))
    users = np.sort(np.random.default_rng(0).permutation(users)[:RECALL_QUERIES]).astype(np.int32)
    read = last_items(ragged.take(lists, users), run.config.model.history_length)
    return model.user_vectors(tf.gather(vectors, read), tf.constant(read > 0), users)[:, -1].numpy()


def make_parts(run: Run, model: TwoTower) -> Parts:
    """Tables, vectors and functions of a trained run, as the served graph wants them."""
    config, prepared, preprocessor = run.config, run.prepared, run.preprocessor
    data = run.retrieval_data()
    text, chosen = _Text(run, model, data), run.blend()
    catalogue = text.catalogue()
    blend = ServedBlend(chosen, catalogue) if chosen else None
    schema = config.features.schema_
    numeric = {feature.name for feature in schema.side("item") if feature.kind == "numeric"}

    def embed_item(item: tf.Tensor, raw: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        trained = tf.where(item <= len(prepared.item_ids), item, 0)
        inputs = {"item": trained, **preprocessor.features("item", raw)}
        texts = text.of_items(raw)
        outputs = {"text_embedding": texts["text_embedding"]} if texts else {}
        return {"embedding": model.item_tower({**inputs, **texts}), **outputs}

    return Parts(
        item_ids=list(prepared.item_ids),
        item_vectors=RetrievalScorer(model).item_vectors(),
        text_vectors=catalogue,
        popularity=popularity(data.events, data.items),
        stored_history=stored_histories(data, config.export.stored_history),
        user_index=preprocessor.users.lookup,
        user_vector=lambda items, mask, user: model.user_vectors(items, mask, user)[:, -1],
        knows_users=knows_users(run),
        item_columns={n: tf.float32 if n in numeric else tf.string for n in schema.item_columns() if n != "item_id"},
        embed_item=embed_item,
        embed_query=text.of_texts if text.encoder else None,
        variables=_variables(text, model) + (blend.variables() if blend else []),
        tables=[table for table in preprocessor.tables if table is not preprocessor.items],
        history_length=config.model.history_length,
        drop_history=config.export.drop_history,
        blend=blend,
        blend_at=blend.at_items() if blend else None,
        blend_history=config.model.blend_history,
        blend_texts=blend.texts if blend else None,
        whitening=blend.whitening if blend else None,
        available=run.in_stock(),
    )


def _variables(text: _Text, model: TwoTower) -> list[Any]:
    layers = (model.user_tower, model.user_table, model.item_tower)
    encoder = model.item_tower.encoder
    replaced = {id(variable) for variable in encoder.variables} if encoder else set()
    kept = (variable for layer in layers for variable in layer.variables if id(variable) not in replaced)
    return [*text.variables(), *(variable.value for variable in kept)]


class ServedBlend:
    """The run's blend in the graph, and the texts that it compares there.

    Args:
        blend: fitted.
        catalogue: text vectors of the artefact, float32 [N+1, t]; None without text.
    """

    def __init__(self, blend: Blend, catalogue: np.ndarray | None):
        self._blend = blend
        self.texts: np.ndarray | None = None
        self.whitening: Whitening | None = None
        if "text" in blend.weight_of:
            self.texts, self.whitening = _compared(np.asarray(blend.texts), catalogue)

    def variables(self) -> list[tf.Variable]:
        """All but the texts, of which the artefact has a table that grows."""
        replaced = self._blend.texts if "text" in self._blend.weight_of else None
        return [variable.value for variable in self._blend.variables if variable is not replaced]

    @property
    def keeps_texts(self) -> bool:
        """Whether it compares texts among which a reindex can put none of new items."""
        return self.texts is not None and self.whitening is None

    def at_items(self) -> BlendAt:
        """The same at chosen items."""
        return BlendAt(self._blend)

    def __call__(self, cosines: tf.Tensor, history: tf.Tensor, texts: tf.Tensor | None) -> tf.Tensor:
        return self._blend(cosines, history, None if texts is None else tf.convert_to_tensor(texts))

    def evidence(self, cosines: tf.Tensor, history: tf.Tensor, texts: tf.Tensor | None) -> dict[str, tf.Tensor]:
        """Its sum and parts, float32 [B, M+1] each."""
        return evidence_of(self._blend, cosines, history, None if texts is None else tf.convert_to_tensor(texts))


def _compared(texts: np.ndarray, catalogue: np.ndarray | None) -> tuple[np.ndarray | None, Whitening | None]:
    """What a blend of these texts compares beside those of the catalogue, and what makes it of them.

    An encoder that has learnt since, or one that the artefact does not carry, makes neither.
    """
    if catalogue is None or not catalogue.any():
        return texts, None
    if np.array_equal(texts, catalogue):
        return None, None
    whitening = Whitening.fit(catalogue)
    own = whitening(catalogue)
    some, others = (table[np.flatnonzero(catalogue.any(axis=1))[:_COMPARED]] for table in (own, texts))
    same = np.allclose(some @ some.T, others @ others.T, atol=_SAME_PRODUCT)  # a basis may be turned
    return (own, whitening) if same else (texts, None)


class _Text:
    """Raw text → unit vectors in the graph; nothing when the model reads no text."""

    def __init__(self, run: Run, model: TwoTower, data: RetrievalData):
        self._run, self._data, self._learns = run, data, model.item_tower.encoder is not None
        reads_text = run.config.model.text != "none"
        self.encoder: Any = (model.item_tower.encoder or run.encoder) if reads_text else None
        self._fast: Any = self.encoder.fast() if self.encoder else None

    def variables(self) -> list[tf.Variable]:
        return self._fast.variables if self._fast else []

    def catalogue(self) -> np.ndarray | None:
        """float32 [N+1, t]."""
        if self.encoder is None:
            return None
        if not self._learns:
            return self._data.item_columns["text"]
        tokens = self._data.item_columns["tokens"]
        return embed(self.encoder, tokens) * (np.count_nonzero(tokens, axis=1) > 2)[:, None]

    def of_texts(self, texts: tf.Tensor) -> tf.Tensor:
        return self._embed(self._run.preprocessor.tokens(texts))

    def of_items(self, raw: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        if self.encoder is None:
            return {}
        tokens = self._run.preprocessor.tokens(self._run.preprocessor.text(raw))
        vectors = self._embed(tokens)
        # An encoder that learns has learnt with what it says of an empty text.
        return {"text": self._fast(tokens) if self._learns else vectors, "text_embedding": vectors}

    def _embed(self, tokens: tf.Tensor) -> tf.Tensor:
        return said(self._fast, tokens)


def knows_users(run: Run) -> bool:
    """Whether the user tower tells users without history apart."""
    return run.config.model.user_id or bool(run.config.features.schema_.side("user"))


def popularity(events: Mapping[str, np.ndarray], items: int, splits: tuple[int, ...] = (0, 1)) -> np.ndarray:
    """Share of the most popular item's events, float32 [N+1]."""
    kept = np.isin(events["split"], splits)
    counts = np.bincount(events["item"][kept], minlength=items + 1).astype(np.float32)
    return counts / max(counts.max(), 1.0)


def golden_requests(run: Run, parts: Parts) -> Requests:
    """Requests that touch every signature and every rule: known and unknown, empty, padded, several k."""
    users = [str(u) for u in run.prepared.user_ids[:GOLDEN_USERS]]
    items = [str(i) for i in run.prepared.item_ids[:GOLDEN_USERS]]
    unknown = "no such id"
    strings, nothing, ten = _strings, np.empty((1, 0), object), np.int32(10)
    history = strings([["", unknown, items[0], items[-1]], ["", "", "", items[-1]]])
    two = strings([users[0], unknown])
    empty = np.empty((2, 0), object)
    recommend: list[dict[str, Any]] = [
        {"user_id": strings(users), "history": np.empty((len(users), 0), object), "exclude": nothing, "k": ten},
        {"user_id": two, "history": history, "exclude": strings([items[:1], [unknown]]), "k": np.int32(3)},
        {"user_id": two, "history": empty, "exclude": empty, "k": np.array([1, 5], np.int32)},
        {"user_id": strings([""]), "history": history, "exclude": nothing, "k": np.int32(len(parts.item_ids) + 5)},
    ]
    requests: list[tuple[str, dict[str, Any]]] = []
    for name in ("serving_default", "recommend"):
        requests += [(name, request) for request in recommend]
    requests += [
        ("similar", {"item_id": strings([items[0], unknown]), "exclude": strings([[items[-1]], [""]]), "k": ten}),
        ("rank", {"user_id": two, "history": history, "item_ids": strings([[*items, unknown, ""]] * 2)}),
        ("embed_user", {"user_id": two, "history": history}),
        ("embed_item", {"item_id": strings([items[0], unknown]), **_raw_rows(run, 2)}),
    ]
    if parts.embed_query is not None:
        texts = ["", "Crème brûlée 🍮", "x " * 5_000]
        requests += [
            ("search", {"query": strings(texts), "exclude": nothing, "k": np.array([1, 2, 3], np.int32)}),
            ("embed_query", {"query": strings(texts)}),
        ]
    return requests


def _raw_rows(run: Run, rows: int) -> dict[str, np.ndarray]:
    raw = {name: column[:rows] for name, column in run.raw("item").items() if name != "item_id"}
    return {name: np.resize(column, rows) for name, column in raw.items()}


def _strings(values: Any) -> np.ndarray:
    array = np.array(values, dtype=object)
    return np.vectorize(lambda text: text.encode(), otypes=[object])(array) if array.size else array


def reference_scores(run: Run, model: TwoTower, users: int, k: int) -> np.ndarray:
    """The Keras model's own best k scores of the first users, from their stored history, float32 [≤ users, ≤ k]."""
    data = run.retrieval_data()
    length = run.config.model.history_length
    lists = stored_histories(data, run.config.export.stored_history)
    lists = ragged.take(lists, np.arange(1, min(users + 1, len(lists[1]) - 1)))
    stored = last_items(lists, max(int(ragged.lengths(lists).max(initial=0)), 1))
    read, seen = last_items(lists, length), last_items(lists, run.config.model.blend_history)
    index = np.arange(1, len(stored) + 1, dtype=np.int32)
    vectors = model({"history": read, "user": index}).numpy()[:, -1]
    known = np.logical_or(read.any(axis=1), knows_users(run))
    liking, blend = vectors @ RetrievalScorer(model).item_vectors().T, run.blend()
    liking = blend(liking, seen).numpy() if blend else liking
    scores = np.where(known[:, None], liking, popularity(data.events, data.items))
    scores[:, 0] = LOWEST
    if (stock := run.in_stock()) is not None:
        scores[:, ~stock] = LOWEST
    if run.config.export.drop_history:
        scores[index[:, None] - 1, stored] = LOWEST
    return -np.sort(-scores, axis=1)[:, :k]
