"""The command line: exit codes, one clear sentence on stderr, results on stdout."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tables
import tensorflow as tf
from conftest import Shop
from tables import block

from tfrec import cli
from tfrec.artifact.verify import Failure, Report

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def config(tmp_path: Path, cache: Path) -> str:
    """Tables and settings of the small shop, nothing prepared."""
    return tables.shop(tmp_path)


def fails(capsys: pytest.CaptureFixture[str], code: int, *argv: str) -> str:
    """The one sentence that a failing command prints."""
    assert cli.main(argv) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "Traceback" not in printed.err
    assert printed.err.startswith("tfrec: ")
    assert printed.err.count("\n") == 1, printed.err
    return printed.err


# Usage


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["trian", "x.toml"],
        ["train"],
        ["train", "x.toml", "--fast"],
        ["verify"],
        ["verify", "a", "b"],
        ["verify", "a", "--quiet"],
        ["query"],
        ["query", "h:1/m", "--quiet"],
    ],
)
def test_wrong_usage_ends_with_2(capsys: pytest.CaptureFixture[str], argv: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(argv)
    assert caught.value.code == 2
    assert "usage: tfrec" in capsys.readouterr().err


@pytest.mark.parametrize("version", ["abc", "2", "2.18.1", "2.x", ""])
def test_a_version_is_two_numbers(capsys: pytest.CaptureFixture[str], version: str) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["verify", "absent", "--tf-serving", version])
    assert caught.value.code == 2
    assert f"a version must be two numbers, as 2.18; got {version!r}" in capsys.readouterr().err


@pytest.mark.parametrize("k", ["0", "-1", "2147483648", "99999999999", "ten", "1.5"])
def test_k_is_a_positive_int32(capsys: pytest.CaptureFixture[str], k: str) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["query", "127.0.0.1:1/shop", "-k", k])
    assert caught.value.code == 2
    assert f"k must be a whole number from 1 to 2147483647; got {k!r}" in capsys.readouterr().err


@pytest.mark.parametrize("name", [*cli.STAGES, "tune", "verify", "reindex", "promote", "rollback", "query"])
def test_every_command_has_help_with_an_example(capsys: pytest.CaptureFixture[str], name: str) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([name, "--help"])
    assert caught.value.code == 0
    assert f"example: tfrec {name} " in re.sub(r"\s+", " ", capsys.readouterr().out)


def test_overrides_may_stand_on_both_sides_of_options(capsys: pytest.CaptureFixture[str], config: str) -> None:
    error = fails(capsys, 2, "train", config, "train.epochs=1", "--quiet", "train.epochs=no")
    assert "train.epochs: Input should be a valid integer; got 'no'" in error


# Bad settings and bad tables: exit code, words of the sentence, overrides


@pytest.mark.parametrize(
    ("code", "message", "overrides"),
    [
        (2, "train.epoch is not a setting; the nearest is epochs", ["train.epoch=3"]),
        (2, "an override must be section.key=value; got 'epochs'", ["epochs"]),
        (2, "data.source must be one of .* The nearest is ml-100k", ["data={source='ml-10k'}"]),
        (1, "a table must be a file.*absent.csv", ["data.interactions=absent.csv"]),
        (1, "a table must end in one of", ["data.interactions=/dev/null"]),
        (1, "the interactions must have a column 'user_id'", ["data.interactions={folder}/items.csv"]),
        (1, "the items must have a column 'item_id'", ["data.items={folder}/users.parquet"]),
        (1, "broken.parquet must be readable", ["data.interactions={folder}/broken.parquet"]),
        (1, "some interactions must be left", ["data.interactions={folder}/empty.csv"]),
        (1, "train, valid and test must each have events", ["data.interactions={folder}/one.csv"]),
        (1, 'split "given" needs a column split', ["data.split.kind=given"]),
        (1, "the items must have a column 'colour'", ["features.text.columns=['colour']"]),
        (1, "a text encoder's folder must exist", ["features.text.encoder={folder}/absent"]),
        (1, "must hold model.safetensors", ["features.text.encoder={folder}/without_weights"]),
        (2, "a run must hold config.json.*Train it first", ["train.init_from={folder}/absent"]),
    ],
)
def test_bad_input_ends_with_one_sentence(
    capsys: pytest.CaptureFixture[str], config: str, code: int, message: str, overrides: list[str]
) -> None:
    folder = Path(config).parent
    (folder / "broken.parquet").write_bytes(b"PAR1 not really")
    (folder / "empty.csv").write_text("user_id,item_id,timestamp\n")
    (folder / "one.csv").write_text("user_id,item_id,timestamp\nu,fruit-1,1\n")
    (folder / "without_weights").mkdir()
    for file in (folder / "encoder").iterdir():
        if file.suffix != ".safetensors":
            (folder / "without_weights" / file.name).write_bytes(file.read_bytes())
    overrides = [override.replace("{folder}", str(folder)) for override in overrides]
    stage = "train" if "train.init_from" in str(overrides) else "prepare"
    error = fails(capsys, code, stage, config, "--quiet", *overrides)
    assert re.search(message, error), error


def test_features_of_users_need_a_table_of_users(capsys: pytest.CaptureFixture[str], config: str) -> None:
    without = Path(config).read_text(encoding="utf-8").replace("users = ", "# users = ")
    Path(config).write_text(without, encoding="utf-8")
    assert "columns of users need a table of users; got ['country', 'age']" in fails(capsys, 1, "prepare", config)


def test_an_absent_or_unreadable_config_is_one_sentence(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "a config must be a readable TOML file" in fails(capsys, 2, "train", str(tmp_path / "absent.toml"))
    assert "a config must be a readable TOML file" in fails(capsys, 2, "train", str(tmp_path))
    (tmp_path / "binary.toml").write_bytes(b"\x00\xff\xfe")
    assert "must be TOML" in fails(capsys, 2, "train", str(tmp_path / "binary.toml"))


def test_a_folder_that_cannot_be_written_is_one_sentence(capsys: pytest.CaptureFixture[str], config: str) -> None:
    assert "Not a directory" in fails(capsys, 1, "prepare", config, f"run.folder={config}")


def test_debug_shows_where_it_failed(capsys: pytest.CaptureFixture[str], config: str) -> None:
    assert cli.main(["train", config, "train.epoch=3", "--debug"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("Traceback")
    assert error.splitlines()[-1].startswith("tfrec: train.epoch is not a setting")


def tensorflow_error() -> None:
    tf.gather([1, 2], [5])


def graph_error() -> None:
    def ask(row: tf.Tensor) -> tf.Tensor:
        tf.debugging.assert_less(row, 2)
        return row

    tf.function(ask)(tf.constant(5))


def unreadable_text() -> None:
    b"caf\xe9".decode()


def unspeakable_text() -> None:
    "\udcff".encode()  # an argument that is not UTF-8 comes to Python like this


def damaged_json() -> None:
    json.loads('{"a": ')


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (tensorflow_error, r"TensorFlow failed: InvalidArgumentError: indices\[0\] = 5 is not in \[0, 2\)"),
        (graph_error, r"TensorFlow failed: InvalidArgumentError: assertion failed: .*Condition x < y did not hold"),
        (unreadable_text, "a text must be UTF-8: .*can't decode byte 0xe9"),
        (unspeakable_text, "a text must be UTF-8: .*can't encode character"),
        (damaged_json, "a JSON file must be whole: Expecting value: line 1 column 7"),
    ],
)
def test_what_libraries_raise_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fault: Callable[[], None], message: str
) -> None:
    monkeypatch.setattr("tfrec.client.query", lambda *_, **__: fault())
    assert re.search(message, fails(capsys, 1, "query", "h:1/m"))
    assert cli.main(["query", "h:1/m", "--debug"]) == 1
    assert capsys.readouterr().err.startswith("Traceback")


def test_a_mistake_of_the_program_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tfrec.client.query", lambda *_, **__: {}["absent"])
    with pytest.raises(KeyError):
        cli.main(["query", "h:1/m"])


def test_any_text_can_be_prepared(capsys: pytest.CaptureFixture[str], config: str) -> None:
    odd = [
        "",
        " ",
        "x" * 10_000,
        "🍮" * 500,
        "خوخ",
        "שזיף",
        "梅",
        "สาม",
        "'\"; DROP TABLE items",
        "a\nb\tc",
        "\u202eevil",
    ]
    rows = tables.items()
    for row, title in zip(rows, odd, strict=False):
        row["title"] = title
    tables.write(Path(config).with_name("items.parquet"), rows)
    path = Path(config).with_name("items.parquet")
    with pytest.warns(UserWarning, match="unknown to the text encoder"):
        assert cli.main(["prepare", config, f"data.items={path}"]) == 0
    printed = capsys.readouterr()
    assert "unknown tokens" in printed.err
    assert printed.out.strip() == str(Path(config).parent / "runs" / "shop")


def test_prepare_is_skipped_when_nothing_changed(capsys: pytest.CaptureFixture[str], config: str) -> None:
    assert cli.main(["prepare", config]) == 0
    assert "prepared 40 users" in capsys.readouterr().err
    assert cli.main(["prepare", config]) == 0
    assert capsys.readouterr().err == ""
    assert cli.main(["prepare", config, "data.split.kind=random"]) == 0
    assert "prepared 40 users" in capsys.readouterr().err


# verify and query


def test_verify_takes_a_version_or_the_model(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["verify", str(shop.exports)]) == 0
    assert re.search(r"shop/\d+ runs in TensorFlow Serving 2\.18", capsys.readouterr().out)


def test_a_report_of_several_lines_is_printed_as_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failures = (Failure("ops", "op A", "it's absent"), Failure("C API", "process", "ended"))
    monkeypatch.setattr("tfrec.artifact.verify.verify", lambda path, version: Report(path, version, {}, 1, failures))
    assert cli.main(["verify", "exports/shop/1"]) == 1
    first, *rest = capsys.readouterr().err.splitlines()
    assert first == "tfrec: an artefact must pass verification; do not serve this one:"
    assert rest == ["ops: op A: it's absent", "C API: process: ended"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["verify", "absent"], "verify needs the folder of an exported version"),
        (["verify", ".", "--tf-serving", "1.0"], "the TensorFlow Serving version must be at least"),
        (["query", "127.0.0.1:1/shop", "--user", "u"], "UNAVAILABLE"),
    ],
)
def test_what_cannot_be_asked_is_one_sentence(
    capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    assert message in fails(capsys, 1, *argv)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["query", "127.0.0.1:8500"], "a target must be host:port/model"),
        (["query", "h:1/m", "--search", "a", "--similar", "b"], "a query takes one of text, item_id and item_ids"),
    ],
)
def test_a_query_that_makes_no_sense_is_refused(
    capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    assert message in fails(capsys, 2, *argv)


# Second processes, real gRPC


@pytest.fixture(scope="module")
def server(shop: Shop) -> Iterator[tuple[subprocess.Popen[str], str]]:
    command = [sys.executable, "-m", "tfrec", "serve", shop.config, "serve.port=0"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        said = ""
        for line in process.stderr:
            said += line
            if found := re.search(r"serving shop version \d+ on (\S+:\d+)", line):
                break
        else:
            pytest.fail(f"the server ended with {process.wait()}")
        assert "tensorflow_model_server is not on PATH: starting the embedded server" in said
        yield process, f"{found[1]}/shop"
    finally:
        process.kill()
        process.communicate()


def answers(capsys: pytest.CaptureFixture[str]) -> list[tuple[float, str]]:
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    return [(float(score), item) for score, item in lines]


def test_query_asks_a_served_export(
    server: tuple[subprocess.Popen[str], str], shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    target = server[1]
    assert cli.main(["query", target, "--user", "tool-user-1", "-k", "4"]) == 0
    found = answers(capsys)
    assert [block(item) for _, item in found] == ["tool"] * 4
    assert found == sorted(found, reverse=True)
    assert cli.main(["query", target, "--history", "fruit-1,fruit-2", "--exclude", found[0][1], "-k", "3"]) == 0
    assert {block(item) for _, item in answers(capsys)} == {"fruit"}
    assert cli.main(["query", target, "--search", "steel tool", "-k", "2"]) == 0
    assert {block(item) for _, item in answers(capsys)} == {"tool"}
    assert cli.main(["query", target, "--similar", "fruit-1", "-k", "2"]) == 0
    assert {block(item) for _, item in answers(capsys)} == {"fruit"}
    assert "NOT_FOUND" in fails(capsys, 1, "query", f"{target}s", "--user", "u")


def test_the_server_ends_when_it_is_told_to(server: tuple[subprocess.Popen[str], str]) -> None:
    process, _ = server
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 0
