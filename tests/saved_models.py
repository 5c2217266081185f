"""Small SavedModels for tests: a shop of five items with a recommender's signatures, and some that must be refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import keras_hub
import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

ITEMS = ("apple", "pear", "hammer", "nail", "saw")
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "fruit", "tool", "sweet", "##s")
LOWEST = float(np.finfo(np.float32).min)
# Fruit lies on the first axis, tools on the second; the third orders items of one kind. Row 0 is padding.
ITEM_VECTORS = np.array([[0, 0, 0], [1, 0, 0.5], [1, 0, 0.25], [0, 1, 0.5], [0, 1, 0.25], [0, 1, 0.125]], np.float32)
WORD_VECTORS = np.zeros((len(WORDS), 3), np.float32)
WORD_VECTORS[WORDS.index("fruit")] = WORD_VECTORS[WORDS.index("sweet")] = [1, 0, 0.5]
WORD_VECTORS[WORDS.index("tool")] = [0, 1, 0.5]
POPULARITY = np.array([0, 5, 4, 3, 2, 1], np.float32)

_STRINGS = tf.TensorSpec([None], tf.string)
_LISTS = tf.TensorSpec([None, None], tf.string)
_K = tf.TensorSpec(None, tf.int32)


class Shop(tf.Module):
    """Raw variables and a lookup table only: what a TF Serving session can restore."""

    def __init__(self) -> None:
        super().__init__()
        self.items = tf.Variable(ITEM_VECTORS, name="items")
        self.words = tf.Variable(WORD_VECTORS, name="words")
        self.popularity = tf.Variable(POPULARITY, name="popularity")
        initializer = tf.lookup.KeyValueTensorInitializer(ITEMS, tf.range(1, len(ITEMS) + 1), tf.string, tf.int32)
        self.rows = tf.lookup.StaticHashTable(initializer, 0)

    def answer(self, vectors: Any, bias: Any, banned: list[Any], k: Any) -> dict[str, tf.Tensor]:
        """The k best items by dot product plus bias; the banned score the lowest float32 and are named ""."""
        batch = tf.shape(vectors)[0]
        # A default has one row, whatever the batch.
        banned = tf.concat([tf.broadcast_to(ids, [batch, tf.shape(ids)[1]]) for ids in banned], 1)
        with tf.control_dependencies([tf.debugging.assert_positive(k, "k must be at least 1")]):
            k = tf.minimum(tf.reduce_max(k), len(ITEMS) + 1)
        rows = tf.concat([tf.zeros([batch, 1], tf.int32), self.rows.lookup(banned)], 1)
        forbidden = tf.reduce_max(tf.one_hot(rows, len(ITEMS) + 1), 1) > 0
        best = tf.math.top_k(tf.where(forbidden, LOWEST, vectors @ tf.transpose(self.items) + bias), k)
        names = tf.gather(["", *ITEMS], tf.where(best.values > LOWEST, best.indices, 0))
        return {"item_ids": names, "scores": best.values}

    def users(self, history: tf.Tensor) -> tf.Tensor:
        return tf.reduce_sum(tf.gather(self.items, self.rows.lookup(history)), 1)  # [B, d]


def save_shop(path: Path, defaults: bool = True) -> Path:
    """Writes the shop; with defaults, ``exclude`` and ``k`` = 3 may be left out of a request."""
    shop, tokens = Shop(), _tokenizer()

    @tf.function(input_signature=[_STRINGS, _LISTS, _LISTS, _K])
    def recommend(user_id: Any, history: Any, exclude: Any, k: Any) -> dict[str, Any]:
        return shop.answer(shop.users(history), shop.popularity / 100.0, [history, exclude], k)

    @tf.function(input_signature=[_STRINGS, _LISTS, _K])
    def search(query: Any, exclude: Any, k: Any) -> dict[str, Any]:
        return shop.answer(tf.reduce_sum(tf.gather(shop.words, tokens(query)), 1), 0.0, [exclude], k)

    @tf.function(input_signature=[_STRINGS, _LISTS, _K])
    def similar(item_id: Any, exclude: Any, k: Any) -> dict[str, Any]:
        return shop.answer(shop.users(item_id[:, None]), 0.0, [item_id[:, None], exclude], k)

    @tf.function(input_signature=[_STRINGS, _LISTS, _LISTS])
    def rank(user_id: Any, history: Any, item_ids: Any) -> dict[str, Any]:
        rows = shop.rows.lookup(item_ids)
        scores = tf.einsum("bd,bnd->bn", shop.users(history), tf.gather(shop.items, rows))
        return {"scores": tf.where(rows > 0, scores, LOWEST)}

    signatures = {"serving_default": recommend, "recommend": recommend, "search": search, "similar": similar}
    tf.saved_model.save(shop, str(path), signatures={**signatures, "rank": rank})
    if defaults:
        _add_defaults(path)
    return path


def save_untracked_variable(path: Path) -> Path:
    """A module that holds a Keras layer: it loads everywhere and cannot run in a TF Serving session."""
    module = tf.Module()
    module.dense = keras.layers.Dense(2)
    module.dense.build((None, 3))

    @tf.function(input_signature=[tf.TensorSpec([None, 3], tf.float32)])
    def embed(x: Any) -> dict[str, Any]:
        return {"embedding": module.dense(x)}

    tf.saved_model.save(module, str(path), signatures={"embed": embed})
    return path


def save_packed_segments(path: Path) -> Path:
    """Packs tokens with an op that TF Serving 2.18 and 2.19 lack (``TFText>RoundRobinTrim``)."""
    tokenizer = keras_hub.tokenizers.BertTokenizer(vocabulary=list(WORDS), lowercase=True)
    packer = keras_hub.layers.MultiSegmentPacker(
        8, start_value=tokenizer.cls_token_id, end_value=tokenizer.sep_token_id, pad_value=tokenizer.pad_token_id
    )

    @tf.function(input_signature=[_STRINGS])
    def search(query: Any) -> dict[str, Any]:
        return {"tokens": packer((tokenizer(query), tokenizer(query)))[0]}

    tf.saved_model.save(tf.Module(), str(path), signatures={"search": search})
    return path


def shop_requests() -> list[tuple[str, dict[str, np.ndarray]]]:
    """A request per signature of the shop, and some more: empty lists, several rows, one k per row."""
    k = np.array(2, np.int32)
    none = strings([[]])
    return [
        ("recommend", {"user_id": strings(["u"]), "history": strings([["pear"]]), "exclude": none, "k": k}),
        ("recommend", {"user_id": strings(["u"]), "history": none, "exclude": none, "k": k}),
        ("recommend", {"user_id": strings(["u", ""]), "history": strings([["saw", ""], ["nail", "x"]])}),
        ("serving_default", {"user_id": strings([""]), "history": none, "exclude": strings([["apple"]]), "k": k}),
        (
            "search",
            {"query": strings(["Tools!", "früits"]), "exclude": strings([[], []]), "k": np.array([1, 2], np.int32)},
        ),
        ("similar", {"item_id": strings(["apple"]), "exclude": strings([["pear"]]), "k": np.array(9, np.int32)}),
        ("rank", {"user_id": strings(["u"]), "history": strings([["saw"]]), "item_ids": strings([["nail", "?"]])}),
    ]


def strings(values: list[Any]) -> np.ndarray:
    """An object array of UTF-8 bytes, also of shape [B, 0]."""
    text = np.array(values, dtype=object)
    return np.array([v.encode() for v in text.ravel()], dtype=object).reshape(text.shape)


def _tokenizer() -> Callable[[tf.Tensor], tf.Tensor]:
    tokenizer = keras_hub.tokenizers.BertTokenizer(vocabulary=list(WORDS), lowercase=True, strip_accents=True)
    packer = keras_hub.layers.StartEndPacker(
        8, start_value=tokenizer.cls_token_id, end_value=tokenizer.sep_token_id, pad_value=tokenizer.pad_token_id
    )
    return lambda texts: packer(tokenizer(texts))


def _add_defaults(path: Path) -> None:
    file = path / "saved_model.pb"
    model = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    values = {"exclude": tf.make_tensor_proto([[]], tf.string), "k": tf.make_tensor_proto(3, tf.int32)}
    for name in ("serving_default", "recommend", "search", "similar"):
        signature = model.meta_graphs[0].signature_def[name]
        for alias, value in values.items():
            signature.defaults[alias].CopyFrom(value)
    file.write_bytes(model.SerializeToString())
