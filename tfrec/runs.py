"""A run on disk: runs/NAME with settings, prepared tables, features, checkpoints and models."""

from __future__ import annotations

import functools
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
import pyarrow as pa
import tensorflow as tf

from tfrec.config import Config, validate
from tfrec.data import embedding_cache, encoders, fetch, preprocess
from tfrec.data import prepare as tables
from tfrec.data.tokens import Tokenizer
from tfrec.errors import ConfigError, DataError
from tfrec.models.blend import Blend
from tfrec.models.text import TextEncoder, embed
from tfrec.schema import Side
from tfrec.training.peers import Peers
from tfrec.training.retrieval import RetrievalData

_TOKENIZE_AT_ONCE = 4096


def write_json(path: Path, value: Any) -> None:
    """Writes beside, then renames, so that a reader finds the old or the new file."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}", delete=False, encoding="utf-8") as f:
        json.dump(value, f, indent=1, ensure_ascii=False)
    os.replace(f.name, path)


def read_json(path: Path) -> Any:
    """A JSON file of a run.

    Raises:
        ConfigError: it is absent or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"a run must hold {path.name}", str(path.parent), "Train it first") from error
    except ValueError as error:
        raise ConfigError(
            "a run's settings must be JSON", f"{path}: {error}", "Train under another run.name"
        ) from error


class Run:
    """Paths and parts of one run; each part is read once.

    Args:
        config: the settings; ``folder`` follows from them.
        writes: whether this process saves what is trained, or another one that trains with it.
    """

    def __init__(self, config: Config, writes: bool = True):
        self.config, self.writes = config, writes
        self.folder = config.run_folder

    @classmethod
    def open(cls, folder: str | Path) -> Run:
        """A run from its folder.

        Raises:
            ConfigError: the folder holds no run.
        """
        tree = read_json(Path(folder) / "config.json")
        tree["run"] |= {"folder": str(Path(folder).parent), "name": Path(folder).name}
        return cls(validate(tree))

    def with_config(self, config: Config) -> Run:
        """The same folder read under other settings."""
        return Run(config, self.writes)

    def save_config(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / "config.json", self.config.model_dump(mode="json"))

    @property
    def features_folder(self) -> Path:
        return self.folder / "features"

    @property
    def statistics_path(self) -> Path:
        return self.features_folder / "statistics.json"

    @property
    def reads_text(self) -> bool:
        return bool(self.config.features.text.columns) and self.config.model.text != "none"

    def model_path(self, which: str) -> Path:
        """Of "selected" (chosen on valid) or "final"."""
        return self.folder / "models" / f"{which}.keras"

    @functools.cached_property
    def prepared(self) -> tables.Prepared:
        """The prepared tables; a retrieval model's events may be those of a sample of users."""
        bounded = self.config.model.kind == "two_tower"
        memory = int(self.config.train.memory * 2**30) if bounded else None
        return tables.load(self.folder / "prepared", memory, self.config.run.seed)

    @functools.cached_property
    def preset(self) -> str:
        return encoders.resolve(self.config.features.text.encoder)

    @functools.cached_property
    def tokenizer(self) -> Tokenizer | None:
        return Tokenizer(self.preset, self.config.features.text.tokens) if self.reads_text else None

    @functools.cached_property
    def preprocessor(self) -> preprocess.Preprocessor:
        return self._preprocessor(preprocess.Statistics.load(self.statistics_path))

    def _preprocessor(self, statistics: preprocess.Statistics) -> preprocess.Preprocessor:
        schema, prepared = self.config.features.schema_, self.prepared
        return preprocess.Preprocessor(schema, prepared.user_ids, prepared.item_ids, statistics, self.tokenizer)

    @functools.cached_property
    def encoder(self) -> TextEncoder:
        """The pretrained encoder, learning as the settings say."""
        return self._encoder(self.config.model.text)

    @functools.cached_property
    def frozen_encoder(self) -> TextEncoder:
        return self.encoder if self.config.model.text == "frozen" else self._encoder("frozen")

    def _encoder(self, how: Any) -> TextEncoder:
        rank, precision = self.config.model.lora_rank, self.config.features.text.precision
        return TextEncoder.from_preset(self.preset, how, rank, precision=precision, dtype="float32")

    def raw(self, side: Side) -> dict[str, np.ndarray]:
        """Raw columns of the items or users table, or of the events, as a request would carry them."""
        schema = self.config.features.schema_
        names = schema.item_columns() if side == "item" else tuple(f.name for f in schema.side(side))
        events = {name: self.prepared.events[name] for name in names} if side == "context" else {}
        table = {"item": self.prepared.items, "user": self.prepared.users, "context": pa.table(events)}[side]
        numeric = [f.name for f in schema.side(side) if f.kind == "numeric"]
        return preprocess.raw_columns(table, names, numeric)

    def make_features(self) -> None:
        """Fits statistics and fills the feature tensors of every item and user."""
        schema = self.config.features.schema_
        raw = {side: self.raw(side) for side in ("item", "user")}
        counts = {"item": self.prepared.items["count"].to_numpy(), "user": self.prepared.users["count"].to_numpy()}
        parts = [preprocess.fit(schema, side, raw[side], counts[side]) for side in ("item", "user")]
        parts.append(self._fit_context())
        statistics = preprocess.joined(parts)
        preprocessor = self._preprocessor(statistics)
        folder = self.features_folder
        folder.mkdir(parents=True, exist_ok=True)
        for side in ("item", "user"):
            columns = {
                name: _with_unknown(value.numpy()) for name, value in preprocessor.features(side, raw[side]).items()
            }
            if side == "item" and self.tokenizer:
                columns["tokens"] = _with_unknown(_tokens(preprocessor, preprocessor.text(raw["item"])))
            write_arrays(folder / f"{side}.npz", columns)
        raw["context"] = self.raw("context")
        context = {name: value.numpy() for name, value in preprocessor.features("context", raw["context"]).items()}
        texts, rows = _distinct_texts(preprocessor, raw["context"])
        write_arrays(folder / "context.npz", context | rows)
        write_arrays(folder / "context_texts.npz", texts)
        statistics.save(self.statistics_path)

    def _fit_context(self) -> preprocess.Statistics:
        train = (self.prepared.events["split"] == 0).astype(np.int64)
        return preprocess.fit(self.config.features.schema_, "context", self.raw("context"), train)

    def agree(self, peers: Peers) -> None:
        """Waits until the first process has prepared, then checks that all read what it wrote.

        Raises:
            ConfigError: in every process, when one reads other tables or none.
            RestartError: one of them is gone.
        """
        peers.wait()
        hashes = self.prepared.report["hashes"] if self.statistics_path.exists() else {}
        rule = "all processes of a training must read the same tables, in one shared run.folder"
        peers.agree(rule, {f"the hash of {name}": value for name, value in hashes.items()})

    def features(self, part: Side | Literal["context_texts"]) -> dict[str, np.ndarray]:
        """Tensors of every item, user or event; of an event's texts rows of ``context_texts``, their token ids."""
        try:
            with np.load(self.features_folder / f"{part}.npz", allow_pickle=False) as stored:
                return {name: stored[name] for name in stored.files}
        except OSError as error:
            raise DataError("a run must hold features", str(self.features_folder), "Run tfrec prepare") from error

    def text_vectors(self, tokens: np.ndarray) -> np.ndarray:
        """Unit text vectors float32 [N+1, t] of token ids [N+1, S]; zeros for an item without text."""
        folder = fetch.cache_folder() / "embeddings"
        encoder = self.frozen_encoder
        vectors = embedding_cache.cached(lambda ids: embed(encoder, ids), tokens[1:], encoder.identity(), folder)
        # [CLS] [SEP] and nothing else is an empty text: no direction is better than an arbitrary one.
        return _with_unknown(vectors * (np.count_nonzero(tokens[1:], axis=1) > 2)[:, None]).astype(np.float32)

    def item_text_vectors(self) -> np.ndarray | None:
        """Unit text vectors of the pretrained encoder [N+1, t]; None without text."""
        return self.text_vectors(self.features("item")["tokens"]) if self.tokenizer else None

    def context_text_vectors(self) -> dict[str, np.ndarray]:
        """Unit vectors of the texts of events, name -> float32 [T+1, t], as :meth:`text_vectors`."""
        names = self.config.features.schema_.texts()
        return {n: self.text_vectors(tokens) for n, tokens in self.features("context_texts").items()} if names else {}

    def retrieval_data(self, **more: Any) -> RetrievalData:
        """What training reads."""
        items = self.features("item")
        how = self.config.model.text
        if how == "frozen":
            items["text"] = self.text_vectors(items["tokens"])
        if how in ("none", "frozen"):
            items.pop("tokens", None)
        return RetrievalData(
            self.prepared.events,
            len(self.prepared.user_ids),
            len(self.prepared.item_ids),
            self.features("user"),
            items,
            self.preprocessor.rows(),
            self.encoder if how in ("lora", "full") else None,
            counts={
                "item": _with_unknown(self.prepared.items["count"].to_numpy()),
                "user": _with_unknown(self.prepared.users["count"].to_numpy()),
            },
            groups=None if self.prepared.fits else self.prepared.groups,
            **more,
        )

    def in_stock(self) -> np.ndarray | None:
        """What the column of the role "available" does not deny, bool [N+1]; None without one."""
        column = self.config.data.roles.available
        if column is None:
            return None
        values = self.prepared.items[column].fill_null(True).to_numpy(zero_copy_only=False)
        return np.concatenate([[False], values.astype(bool)])

    def row_names(self) -> dict[str, Any]:
        """What the rows of each embedding stand for, row 1 first."""
        ids = {"item": self.prepared.item_ids, "user": self.prepared.user_ids}
        return {**self.preprocessor.statistics.vocabularies, **ids}

    def save_model(self, model: keras.Model, which: str) -> None:
        if not self.writes:
            return
        path = self.model_path(which)
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}")
        model.save(beside.with_suffix(".partial.keras"))
        os.replace(beside.with_suffix(".partial.keras"), path)

    def model(self, which: str = "final") -> Any:
        """The trained model: a :class:`TwoTower` or a :class:`Ranker`.

        Raises:
            DataError: the run is not trained.
        """
        path = self.model_path(which)
        if not path.exists():
            raise DataError("a run must be trained first", str(path), "Run tfrec train")
        return keras.saving.load_model(path)

    def save_blend(self, blend: Blend, which: str) -> None:
        path = self.model_path(which).with_suffix(".blend.npz")
        beside = path.with_name(f".{path.name}.partial.npz")
        blend.save(beside)
        os.replace(beside, path)

    def blend(self, which: str = "final") -> Blend | None:
        """What is added to the model's cosines; None when nothing is."""
        path = self.model_path(which).with_suffix(".blend.npz")
        return Blend.load(path) if path.exists() else None


def _with_unknown(rows: np.ndarray) -> np.ndarray:
    """A row of zeros in front."""
    return np.concatenate([np.zeros((1, *rows.shape[1:]), rows.dtype), rows])


def _tokens(preprocessor: preprocess.Preprocessor, texts: tf.Tensor) -> np.ndarray:
    parts = [
        preprocessor.tokens(texts[i : i + _TOKENIZE_AT_ONCE]).numpy() for i in range(0, len(texts), _TOKENIZE_AT_ONCE)
    ]
    return np.concatenate(parts).astype(np.int32)


def _distinct_texts(
    preprocessor: preprocess.Preprocessor, raw: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Token ids of the context's texts, each once, int32 [T+1, S], and which of them each event has, int32 [E]."""
    texts, rows = {}, {}
    for name in preprocessor.schema.texts():
        distinct, place = np.unique(raw[name], return_inverse=True)
        texts[name] = _with_unknown(_tokens(preprocessor, tf.constant(distinct, tf.string)))
        rows[name] = (place + 1).astype(np.int32)
    return texts, rows


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes an .npz file beside, then renames it."""
    beside = path.with_name(f".{path.name}")
    with beside.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    os.replace(beside, path)
