"""A BERT of a few kilobytes with a vocabulary of one's own, in Hugging Face layout."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
HIDDEN, INNER, POSITIONS = 32, 64, 64


def tiny_encoder(path: str | Path, words: Iterable[str], *, lowercase: bool = True, **settings: Any) -> str:
    """Writes the folder and returns its name.

    Args:
        path: folder; made where it is absent.
        words: word pieces after the five special ones.
        lowercase: what its tokenizer_config.json says.
        **settings: further entries of tokenizer_config.json.
    """
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = [*SPECIAL, *words]
    config = {
        "model_type": "bert",
        "vocab_size": len(vocabulary),
        "hidden_size": HIDDEN,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": INNER,
        "max_position_embeddings": POSITIONS,
    }
    tokenizer = {"do_lower_case": lowercase, **settings}
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    save_file(_weights(len(vocabulary)), str(folder / "model.safetensors"))
    return str(folder)


def _weights(vocabulary: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    weights = {
        "embeddings.word_embeddings.weight": random.normal(size=(vocabulary, HIDDEN)),
        "embeddings.position_embeddings.weight": random.normal(size=(POSITIONS, HIDDEN)),
        "embeddings.token_type_embeddings.weight": random.normal(size=(2, HIDDEN)),
    }
    layer = "encoder.layer.0"
    shapes = {f"{layer}.attention.self.{name}": (HIDDEN, HIDDEN) for name in ("query", "key", "value")}
    shapes |= {f"{layer}.attention.output.dense": (HIDDEN, HIDDEN), "pooler.dense": (HIDDEN, HIDDEN)}
    shapes |= {f"{layer}.intermediate.dense": (INNER, HIDDEN), f"{layer}.output.dense": (HIDDEN, INNER)}
    for name, (outer, inner) in shapes.items():
        weights[f"{name}.weight"] = random.normal(size=(outer, inner)) / np.sqrt(inner)
        weights[f"{name}.bias"] = random.normal(size=outer) / 10
    for name in ("embeddings", f"{layer}.attention.output", f"{layer}.output"):
        weights[f"{name}.LayerNorm.weight"] = 1 + random.normal(size=HIDDEN) / 10
        weights[f"{name}.LayerNorm.bias"] = random.normal(size=HIDDEN) / 10
    return {name: value.astype(np.float32) for name, value in weights.items()}
