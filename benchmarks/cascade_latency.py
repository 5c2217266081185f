"""What the cascade costs above its arithmetic: ``recommend`` by the matmuls of retrieval and ranker alone.

A catalogue of 10,000 items in 128 dimensions, 500 candidates, a DCN-v2 ranker over features, item statistics and
signals, prices and categories, 50 items of history, one request at a time. The peer multiplies the same shapes: the
user by the catalogue, and the candidates by every kernel of the ranker; nothing is looked up, filtered or sorted. Both
are SavedModels in a ``tf.compat.v1.Session``, asked in turn.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from common import arguments, median_seconds, report

from tfrec.artifact.cascade import CascadeParts
from tfrec.artifact.export import write_model
from tfrec.artifact.recommender import Parts
from tfrec.cascade_serving import ranker_scores, variables_of
from tfrec.data.preprocess import index_table
from tfrec.models.ranking.body import Sizes
from tfrec.models.ranking.fields import Field
from tfrec.models.ranking.pairs import Followers, Words
from tfrec.models.ranking.ranker import Ranker
from tfrec.models.ranking.signals import RETRIEVAL, evidence_of
from tfrec.ranker_config import Ranker as Settings
from tfrec.training.pairs import FOLLOWERS, WORDS

ITEMS, WIDTH, CANDIDATES, HISTORY, CALLS = 10_000, 128, 500, 50, 100
SIGNALS = (
    *(RETRIEVAL, "times", "length", "variety", "fade_0", "fade_1", "item_last", "item_near"),
    *("price", "price_distance", "category"),
    *("words_last", "words_near", "words_mean", "follows_last", "follows"),
)
BRANDS, NAMES, COUNTRIES, STATISTICS, VOCABULARY = 500, 50, 30, 4, 8_000
EXAMPLE = "python benchmarks/cascade_latency.py --rounds 5"


def main() -> None:
    parser = arguments(str(__doc__), EXAMPLE)
    parser.add_argument("--members", type=int, default=1, help="networks of the ranker, on both sides")
    options = parser.parse_args()
    random = np.random.default_rng(0)
    ranker = make_ranker(random, options.members)
    with tempfile.TemporaryDirectory() as folder:
        write_model(make_parts(ranker, random), Path(folder) / "cascade", {})
        history = np.array([[f"item {i}".encode() for i in random.integers(0, ITEMS, HISTORY)]], object)
        ours = asked(Path(folder) / "cascade", {"history": history, "k": np.int32(10)}, ("item_ids", "scores"))
        peer = asked(save_matmuls(ranker, Path(folder) / "peer"), {"user": random.normal(size=(1, WIDTH))}, ("y",))
        rounds = [(median_seconds(CALLS, ours), median_seconds(CALLS, peer)) for _ in range(options.rounds + 1)][1:]
    cascade, matmuls = (statistics.median(column) for column in zip(*rounds, strict=True))
    print(f"recommend {cascade * 1e3:.2f} ms, matmuls {matmuls * 1e3:.2f} ms")
    ratio = cascade / matmuls
    name = "cascade_latency" if options.members == 1 else f"cascade_latency_{options.members}_members"
    report(options.results, name, ratio, cascade, matmuls, "seconds", ["tensorflow", "keras"], ratio)


def make_ranker(random: np.random.Generator, members: int) -> Ranker:
    """DCN-v2 over two features of items, one of users, four statistics and the signals; it need not be trained."""
    fields = [Field("brand", "item", "index", BRANDS + 1), Field("kind", "item", "index", NAMES + 1)]
    fields.append(Field("country", "user", "index", COUNTRIES + 1))
    names = [f"stat.{i}" for i in range(STATISTICS)]
    fields += [Field(name, "item", "number", 1) for name in (*names, *(f"signal.{name}" for name in SIGNALS))]
    columns = {name: ((ITEMS + 1,), "float32") for name in names}
    columns |= {name: ((ITEMS + 1, 1), "int32") for name in ("brand", "kind")}
    settings = Settings(embedding=16, hidden=(128, 64), members=members)
    model = Ranker(
        "dcn", Sizes(tuple(fields), prior=f"signal.{RETRIEVAL}"), settings, {"country": ((2, 1), "int32")}, columns
    )
    model.build()
    table = {name: random.normal(size=ITEMS + 1).astype(np.float32) for name in names}
    table["brand"] = random.integers(0, BRANDS, (ITEMS + 1, 1))
    model.item_table.fill(table | {"kind": random.integers(0, NAMES, (ITEMS + 1, 1))})
    return model


def make_parts(ranker: Ranker, random: np.random.Generator) -> Parts:
    """A recommender whose user is the mean of the history, with every stage behind it."""
    vectors = random.normal(size=(ITEMS + 1, WIDTH)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    users, names = index_table(["someone"], "users"), index_table([f"kind {i}" for i in range(NAMES)], "names")

    def user_vector(items: tf.Tensor, mask: tf.Tensor, user: tf.Tensor) -> tf.Tensor:
        return tf.math.l2_normalize(tf.reduce_sum(items * tf.cast(mask, tf.float32)[..., None], axis=1), axis=1)

    def embed_item(item: tf.Tensor, raw: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        return {"embedding": raw["price"][:, None] * tf.ones([1, WIDTH])}

    pairs = make_pairs(random)
    cascade = CascadeParts(
        candidates=CANDIDATES,
        weights={"like": 1.0, RETRIEVAL: 0.5},
        evidence=lambda *given: evidence_of(None, *given),
        scores=ranker_scores(ranker, dict.fromkeys(SIGNALS, (0.0, 1.0)), ITEMS, HISTORY, False, pairs),
        prices=random.uniform(1, 100, ITEMS + 1).astype(np.float32),
        categories=random.integers(1, NAMES + 1, (ITEMS + 1, 1)).astype(np.int32),
        category_index=names.lookup,
        category_names=NAMES,
        variables=[*(variable.value for variable in ranker.variables), *variables_of(pairs)],
        tables=[names],
    )
    return Parts(
        item_ids=[f"item {i}" for i in range(ITEMS)],
        item_vectors=vectors,
        text_vectors=None,
        popularity=np.ones(ITEMS + 1, np.float32),
        stored_history=(np.zeros(0, np.int32), np.zeros(3, np.int64)),
        user_index=users.lookup,
        user_vector=user_vector,
        knows_users=False,
        item_columns={"price": tf.float32},
        embed_item=embed_item,
        embed_query=None,
        variables=[],
        tables=[users],
        history_length=HISTORY,
        drop_history=True,
        cascade=cascade,
    )


def make_pairs(random: np.random.Generator) -> tuple[Words, Followers]:
    """Words and followers of every item, as many as training keeps."""

    def table(most: int, width: int) -> tuple[tf.Variable, tf.Variable]:
        ids = random.integers(1, most + 1, (ITEMS + 1, width)).astype(np.int32)
        weights = random.random((ITEMS + 1, width)).astype(np.float32)
        return tf.Variable(ids, trainable=False), tf.Variable(weights, trainable=False)

    return Words(*table(VOCABULARY, WORDS), VOCABULARY), Followers(*table(ITEMS, FOLLOWERS))


class Matmuls(tf.Module):
    """The products of the catalogue and of every kernel of a ranker with inputs of the right shape."""

    def __init__(self, ranker: Ranker):
        super().__init__()
        random = np.random.default_rng(0)
        self.catalogue = tf.Variable(random.normal(size=(ITEMS, WIDTH)), dtype=tf.float32)
        kernels = [v.value for v in ranker.trainable_variables if v.path.endswith("kernel") and v.shape[0] > 1]
        self.kernels = [tf.Variable(kernel) for kernel in kernels]
        self.inputs = [tf.Variable(random.normal(size=(CANDIDATES, k.shape[0])), dtype=tf.float32) for k in kernels]

    @tf.function(input_signature=[tf.TensorSpec([1, WIDTH], tf.float32, name="user")])
    def run(self, user: tf.Tensor) -> dict[str, tf.Tensor]:
        products = [tf.matmul(user, self.catalogue, transpose_b=True)]
        products += [tf.matmul(x, kernel) for x, kernel in zip(self.inputs, self.kernels, strict=True)]
        return {"y": tf.stack([product[0, 0] for product in products])}


def save_matmuls(ranker: Ranker, path: Path) -> Path:
    """The peer's SavedModel."""
    module = Matmuls(ranker)
    tf.saved_model.save(module, str(path), signatures={"serving_default": module.run})
    return path


def asked(path: Path, inputs: Mapping[str, Any], outputs: tuple[str, ...]) -> Callable[[], object]:
    """A run of the default signature by TensorFlow's own session; inputs that are left out have their defaults."""
    session = tf.compat.v1.Session(graph=tf.Graph())
    with session.graph.as_default():
        loader = tf.compat.v1.saved_model.loader.load(session, ["serve"], str(path))
    signature = loader.signature_def["serving_default"]
    given = {name: tf.make_ndarray(value) for name, value in signature.defaults.items()} | dict(inputs)
    names = list(signature.inputs)
    run = session.make_callable([signature.outputs[n].name for n in outputs], [signature.inputs[n].name for n in names])
    values = [given[name] for name in names]
    return lambda: run(*values)


if __name__ == "__main__":
    main()
