"""Settings: what is wrong is refused in one sentence that says what to do."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfrec.config import Config, Train, load, validate
from tfrec.errors import ConfigError

LEAST = {"run": {"name": "x"}, "data": {"source": "ml-100k"}, "model": {"text": "none"}}
TOML = """
[run]
name = "x"
[data]
source = "ml-100k"
[features.text]
columns = ["title"]
"""


def merged(tree: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """A deep union; change wins."""
    both = {**tree, **change}
    for key in tree.keys() & change.keys():
        if isinstance(tree[key], dict) and isinstance(change[key], dict):
            both[key] = merged(tree[key], change[key])
    return both


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "x.toml"
    file.write_text(TOML, encoding="utf-8")
    return file


def test_the_least_settings_are_enough() -> None:
    config = validate(LEAST)
    assert config.run.name == "x"
    assert config.run_folder == Path("runs/x")


FEATURE = {"name": "genre", "side": "item", "kind": "categorical"}
MISTAKES: list[tuple[dict[str, Any], str]] = [
    # unknown keys
    ({"train": {"learnin_rate": 0.1}}, "train.learnin_rate is not a setting; the nearest is learning_rate"),
    ({"trian": {"epochs": 1}}, "trian is not a setting; the nearest is train"),
    ({"data": {"split": {"knd": "random"}}}, "data.split.knd is not a setting; the nearest is kind"),
    ({"features": {"columns": [{**FEATURE, "vocab": 3}]}}, "features.columns.0.vocab is not a setting; the nearest is"),
    # types
    ({"train": {"epochs": "10"}}, "train.epochs: Input should be a valid integer; got '10'"),
    ({"train": {"epochs": 2.5}}, "train.epochs: .*integer.*; got 2.5"),
    ({"train": {"refit": "no"}}, "train.refit: Input should be a valid boolean; got 'no'"),
    ({"train": {"batch": True}}, "train.batch: Input should be a valid integer; got True"),
    ({"train": {"learning_rate": "1e-3"}}, "train.learning_rate: Input should be a valid number; got '1e-3'"),
    ({"model": {"history": "decay"}}, "model.history: Input should be a valid.*; got 'decay'"),
    ({"run": 3}, "run: Input should be"),
    # ranges
    ({"train": {"learning_rate": 0}}, "train.learning_rate: Input should be greater than 0; got 0"),
    ({"train": {"learning_rate": float("nan")}}, "train.learning_rate: Input should be a finite number"),
    ({"train": {"weight_decay": float("inf")}}, "train.weight_decay: Input should be a finite number"),
    ({"model": {"dropout": 1.0}}, "model.dropout: Input should be less than 1; got 1.0"),
    ({"serve": {"port": 70000}}, "serve.port: Input should be less than or equal to 65535; got 70000"),
    ({"evaluate": {"k": []}}, r"evaluate.k: .*at least 1 item.*; got \[\]"),
    ({"evaluate": {"k": [10, 0]}}, "evaluate.k.1: Input should be greater than or equal to 1; got 0"),
    ({"data": {"split": {"test": 0.6}}}, "data.split.test: Input should be less than 0.5; got 0.6"),
    # choices and patterns
    ({"train": {"strategy": "tpus"}}, "train.strategy: Input should be 'none', .* or 'parameter_server'; got 'tpus'"),
    ({"train": {"monitor": "auc@10"}}, "train.monitor: String should match pattern .*; got 'auc@10'"),
    ({"run": {"name": "../x"}}, r"run.name: String should match pattern .*; got '../x'"),
    ({"export": {"tf_serving": "latest"}}, "export.tf_serving: String should match pattern .*; got 'latest'"),
    ({"features": {"columns": [{**FEATURE, "name": "a b"}]}}, "features.columns.0.name: .*; got 'a b'"),
    # missing
    ({"features": {"columns": [{"name": "genre", "side": "item"}]}}, "features.columns.0.kind must be set"),
    ({"data": {"source": "tables"}}, 'data: source "tables" needs data.interactions'),
    # settings that contradict one another
    ({"data": {"interactions": "x.csv"}}, 'data: data.interactions, items and users go with source = "tables"'),
    ({"model": {"dimension": 30, "heads": 4}}, "model: model.heads must divide model.dimension, 30"),
    ({"model": {"history": []}}, "model: a user tower needs model.history or model.user_id"),
    ({"model": {"item_id": False}}, "model: an item tower needs model.item_id or model.text"),
    ({"model": {"text": "frozen"}}, "features.text.columns must name item columns, or model.text be"),
    (
        {"model": {"text": "lora"}, "features": {"text": {"columns": ["title"]}}},
        'a text encoder that learns needs a train.loss other than "softmax"',
    ),
    ({"train": {"batch": 10, "accumulate": 4}}, "train: train.batch must be a multiple of train.accumulate"),
    ({"train": {"devices": 2}}, "train: train.devices goes with train.strategy"),
    ({"train": {"loss": "gbce"}}, "train: train.negatives goes with .*, and they need it"),
    ({"train": {"negatives": 8}}, "train: train.negatives goes with train.loss"),
    ({"train": {"negative_sampling": "mixed"}}, "train: .* needs train.loss = .sampled_softmax"),
    (
        {"train": {"loss": "gbce", "negatives": 8, "negative_sampling": "popularity"}},
        "train: .* needs train.loss = .sampled_softmax",
    ),
    ({"train": {"loss": "gbce", "negatives": 8, "calibration": 1.5}}, "train.calibration: .*; got 1.5"),
    ({"train": {"jit": True, "strategy": "mirrored"}}, "train: train.jit goes with train.strategy = .none"),
    ({"train": {"tpu": "pod", "strategy": "mirrored"}}, "train: train.tpu goes with train.strategy = .tpu"),
    ({"train": {"devices": 2, "strategy": "multi_worker"}}, "train: train.devices goes with train.strategy = .mirro"),
    (
        {"train": {"strategy": "parameter_server", "optimizer": "lazy_adam"}},
        "train: .*parameter_server. needs a dense train.optimizer, not lazy_adam",
    ),
    (
        {"train": {"strategy": "parameter_server", "precision": "mixed_float16"}},
        "train: .*parameter_server. needs train.precision",
    ),
    ({"features": {"columns": [FEATURE, FEATURE]}}, "features: features.columns must have distinct names"),
    ({"features": {"columns": [{**FEATURE, "name": "tokens"}]}}, "features: a feature cannot be named tokens"),
    ({"features": {"columns": [{**FEATURE, "name": "file"}]}}, "features: a feature cannot be named file"),
    (
        {"features": {"columns": [{**FEATURE, "name": "allow_pickle"}]}},
        "features: a feature cannot be named allow_pickle",
    ),
    ({"features": {"columns": [{**FEATURE, "name": "item_id"}]}}, "features: a feature cannot be named item_id"),
    ({"features": {"text": {"columns": ["item_id"]}}}, "features: an item's text cannot be its item_id"),
]


@pytest.mark.parametrize(("change", "message"), MISTAKES, ids=[message[:40] for _, message in MISTAKES])
def test_a_mistake_is_refused_in_one_clear_sentence(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(merged(LEAST, change))
    text = str(caught.value)
    assert re.match(message, text), text
    assert "\n" not in text
    assert caught.value.exit_code == 2


def test_every_mistake_is_told_at_once() -> None:
    with pytest.raises(ConfigError, match=r"model\.dimension: .*; train\.epoch is not"):
        validate(merged(LEAST, {"train": {"epoch": 1}, "model": {"dimension": 1}}))


def test_missing_sections_are_named() -> None:
    with pytest.raises(ConfigError, match=r"run must be set; data must be set"):
        validate({})


def test_the_setting_says_which_optimizers_decay() -> None:
    names = get_args(Train.model_fields["optimizer"].annotation)
    deaf = {"adam", "adagrad", "sgd"}
    description = Train.model_fields["weight_decay"].description or ""
    assert {name for name in names if re.search(rf"\b{name}\b", description.partition(";")[0])} == set(names) - deaf


def test_settings_cannot_be_changed() -> None:
    config = validate(LEAST)
    with pytest.raises(ValueError, match="frozen"):
        config.train.epochs = 3  # type: ignore[misc]


# Files and overrides


def test_a_file_is_read_and_overridden(path: Path) -> None:
    config = load(path, ["train.epochs=3", "run.name = y", "data.split.kind=temporal", "evaluate.k=[1, 2]"])
    assert (config.train.epochs, config.run.name, config.data.split.kind) == (3, "y", "temporal")
    assert config.evaluate.k == (1, 2)


@pytest.mark.parametrize(
    ("value", "wanted"),
    [("1e-3", 0.001), ("2", 2.0), ("0.5", 0.5)],
)
def test_numbers_are_read_as_toml_reads_them(path: Path, value: str, wanted: float) -> None:
    assert load(path, [f"train.learning_rate={value}"]).train.learning_rate == wanted


def test_what_is_not_toml_is_a_string(path: Path) -> None:
    overrides = ["data.source=tables", "data.interactions=/data/a=b/*.parquet", "data.items="]
    assert load(path, overrides).data.interactions == "/data/a=b/*.parquet"
    assert load(path, overrides).data.items == ""


@pytest.mark.parametrize(
    ("override", "wanted"),
    [
        ("export.tf_serving=2.19", "2.19"),
        ("export.tf_serving=2.20", "2.20"),
        ("export.tf_serving='2.19'", "2.19"),
        ("run.name=2024", "2024"),
        ("run.name=1979-05-27", "1979-05-27"),
        ("run.name=nan", "nan"),
        ("train.init_from=2024", "2024"),
        ("features.text.encoder=true", "true"),
    ],
)
def test_a_string_needs_no_quotes_on_the_command_line(path: Path, override: str, wanted: str) -> None:
    place, leaf = override.partition("=")[0].rsplit(".", 1)
    found: Any = load(path, [override])
    for section in place.split("."):
        found = getattr(found, section)
    assert getattr(found, leaf) == wanted


@pytest.mark.parametrize("line", ["name = 2024", "name = 2.5"])
def test_a_string_needs_quotes_in_the_file(tmp_path: Path, line: str) -> None:
    file = tmp_path / "x.toml"
    file.write_text(TOML.replace('name = "x"', line), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"run\.name: Input should be a valid string"):
        load(file)


def test_a_later_override_wins(path: Path) -> None:
    assert load(path, ["train.epochs=3", "train.epochs=4"]).train.epochs == 4


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("epochs", "an override must be section.key=value; got 'epochs'"),
        ("=3", "an override must be section.key=value; got '=3'"),
        ("run.name.first=x", "an override must name a key below a section; name is a value"),
        ("features.text.columns.0=x", "an override must name a key below a section; columns is a value"),
        ("train.epoch=3", "train.epoch is not a setting; the nearest is epochs"),
        ("train=3", "train: Input should be"),
        ("train.epochs=yes", "train.epochs: Input should be a valid integer; got 'yes'"),
        ("run={name=7}", "run.name: Input should be a valid string; got 7"),
        ("run.name=[7]", "run.name: String should match pattern"),
        (".train.epochs=1", " is not a setting"),
    ],
)
def test_a_wrong_override_is_refused(path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        load(path, [override])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[run\nname = 1", "must be TOML"),
        (b'[run]\nname = "\xff"', "must be TOML"),
        (b"[run]\nname = 'a'\nname = 'b'", "must be TOML"),
        (b"", "run must be set; data must be set"),
        (b"[run]\nname = 1979-05-27", r"run.name: String should match|data must be set"),
    ],
)
def test_a_file_that_is_not_a_config_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        load(path)


def test_an_absent_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a config must be a readable TOML file; got .*No such file"):
        load(tmp_path / "absent.toml")
    with pytest.raises(ConfigError, match="directory"):
        load(tmp_path)


def test_settings_come_back_from_json(path: Path) -> None:
    columns = [{**FEATURE, "separator": "|", "max_values": 4}]
    config = validate(merged(LEAST, {"features": {"columns": columns}, "train": {"clip_norm": 1}}))
    for one in (config, load(path)):
        assert validate(json.loads(json.dumps(one.model_dump(mode="json")))) == one


_values = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just([]) | st.just({})
_keys = st.sampled_from([f"{s}.{k}" for s, m in Config.model_fields.items() for k in m.annotation.model_fields])


@settings(max_examples=150, deadline=None)
@given(_keys, _values)
def test_any_value_is_taken_and_kept_or_refused_in_one_line(key: str, value: Any) -> None:
    section, name = key.split(".")
    tree = merged(LEAST, {section: {name: value}})
    try:
        config = validate(tree)
    except ConfigError as error:
        assert "\n" not in str(error)
        assert section in str(error)
    else:
        assert validate(config.model_dump(mode="json")) == config
