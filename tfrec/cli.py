"""The command line: one sub-command a stage; a stage is imported only when it runs."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tfrec import __version__
from tfrec import config as settings
from tfrec.errors import ArtifactError, ConfigError, RestartError, TfrecError
from tfrec.startup import import_tensorflow

_AGAIN = 75  # saved, run again
_MOST = 2**31 - 1  # k is an int32 in every signature
_TRACE = re.compile(r"\s*($|\[\[|File \"|Graph execution error:|Detected at node|\d+ root error)")
STAGES = {
    "prepare": "clean, split and encode tables into runs/NAME",
    "train": "prepare what is lacking, train, evaluate and export",
    "evaluate": "measure the trained model beside baselines",
    "export": "write, verify and publish exports/NAME/VERSION",
    "serve": "serve exports/NAME over gRPC and REST until interrupted",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0 done, 1 failed, 2 bad usage or settings, 75 saved: run it again."""
    arguments = _parse(argv)
    # TensorFlow's start-up lines say nothing to a user of this command.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    try:
        return arguments.run(arguments)
    except TfrecError as error:
        return _fail(arguments, str(error), error.exit_code)
    except KeyboardInterrupt:
        return _fail(arguments, "interrupted; the last checkpoint is kept, run the same command to continue", 1)
    except (OSError, MemoryError) as error:
        return _fail(arguments, f"{type(error).__name__}: {error}", 1)
    except UnicodeError as error:
        return _fail(arguments, f"a text must be UTF-8: {error}", 1)
    except json.JSONDecodeError as error:
        return _fail(arguments, f"a JSON file must be whole: {error}", 1)
    except _tensorflow_errors() as error:
        return _fail(arguments, f"TensorFlow failed: {type(error).__name__}: {_tensorflow_words(error)}", 1)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Takes overrides on both sides of options, which argparse alone refuses."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    if rest and ("overrides" not in arguments or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        arguments.overrides += rest
    return arguments


def _fail(arguments: argparse.Namespace, message: str, code: int) -> int:
    if arguments.debug:
        traceback.print_exc()
    print(f"tfrec: {message}", file=sys.stderr)
    return code


def _tensorflow_errors() -> tuple[type[Exception], ...]:
    """What TensorFlow's ops raise; nothing as long as no stage imported TensorFlow."""
    errors = getattr(sys.modules.get("tensorflow"), "errors", None)
    return (errors.OpError,) if errors else ()


def _tensorflow_words(error: Exception) -> str:
    """The line in which an op says what went wrong, without the graph nodes and Python frames around it."""
    text = re.sub(r"\{\{.*?\}\}|\[Op:[^\]]*\]", "", str(error))
    lines = [line.strip() for line in text.splitlines() if not _TRACE.match(line)]
    return lines[0] if lines else "no reason given"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tfrec", description="From interaction tables to a recommender that TensorFlow Serving runs."
    )
    parser.add_argument("--version", action="version", version=f"tfrec {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, purpose in STAGES.items():
        command = _command(commands, name, purpose, f"tfrec {name} configs/ml100k.toml run.seed=2")
        _takes_settings(command)
        if name == "train":
            command.add_argument("--no-export", action="store_true", help="end after training")
        if name in ("train", "export"):
            command.add_argument("--force", action="store_true", help="publish below the bounds of [export] too")
        command.set_defaults(run=_stage, stage=name)
    verify = _command(commands, "verify", "run an export as TensorFlow Serving does", "tfrec verify exports/ml100k/1")
    verify.add_argument("export", metavar="EXPORT", type=Path, help="a version folder, or its parent for the newest")
    verify.add_argument(
        "--tf-serving", type=_version, default="2.18", metavar="VERSION", help="oldest server that must run it"
    )
    verify.set_defaults(run=_verify)
    _tune_command(commands)
    _life_commands(commands)
    _query_command(commands)
    return parser


def _command(commands: Any, name: str, purpose: str, example: str) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=purpose, description=purpose, epilog=f"example: {example}")
    command.add_argument("--debug", action="store_true", help="a traceback when it fails")
    return command


def _takes_settings(command: argparse.ArgumentParser) -> None:
    command.add_argument("config", metavar="CONFIG", help="a TOML file of settings")
    command.add_argument("overrides", metavar="key=value", nargs="*", help="settings that replace those of the file")
    command.add_argument("--quiet", action="store_true", help="no progress on stderr")


def _tune_command(commands: Any) -> None:
    purpose = "search settings by validation data; killed and started again it continues, started twice it is shared"
    command = _command(commands, "tune", purpose, "tfrec tune configs/ml100k_tune.toml tune.trials=30")
    _takes_settings(command)
    command.set_defaults(run=_tune)


def _life_commands(commands: Any) -> None:
    example = "tfrec reindex exports/shop new_items.parquet --remove 17,23"
    reindex = _command(commands, "reindex", "add, change or delist items of an export, without training", example)
    reindex.add_argument("export", metavar="EXPORT", type=Path, help="exports/NAME, whose newest version is taken")
    reindex.add_argument("items", metavar="ITEMS", nargs="?", help="new and changed items: Parquet, CSV or JSONL")
    reindex.add_argument(
        "--remove", default="", metavar="FILE|ID,ID", help="items that are not returned any more: a file, or ids"
    )
    reindex.add_argument("--force", action="store_true", help="publish although golden answers differ too much")
    reindex.add_argument("--quiet", action="store_true", help="no progress on stderr")
    reindex.set_defaults(run=_reindex)
    example = "tfrec promote exports/shop 3 --label stable --config models.config"
    promote = _command(commands, "promote", "let a TensorFlow Serving model config serve a version", example)
    promote.add_argument("export", metavar="EXPORT", type=Path, help="exports/NAME")
    promote.add_argument("version", metavar="VERSION", type=int, help="a published version")
    promote.set_defaults(run=_promote)
    example = "tfrec rollback exports/shop --label stable --config models.config"
    rollback = _command(commands, "rollback", "go back to the version before in a model config", example)
    rollback.add_argument("export", metavar="EXPORT", type=Path, help="exports/NAME")
    rollback.set_defaults(run=_rollback)
    for command in (promote, rollback):
        command.add_argument("--config", required=True, metavar="FILE", type=Path, help="the model config file")
        command.add_argument("--label", default="", metavar="NAME", help="what clients ask for, as stable")
        command.add_argument("--server", metavar="HOST:PORT", help="a running server to be told, by its gRPC")
        command.add_argument("--timeout", type=_seconds, default=300.0, metavar="SECONDS", help="until it has loaded")


def _query_command(commands: Any) -> None:
    example = 'tfrec query localhost:8500/ml100k --user 196 -k 5   or   --search "space opera"   or   --similar 50'
    query = _command(commands, "query", "ask a running server", example)
    query.add_argument("target", metavar="[http://]HOST:PORT/MODEL", help="a server over gRPC, or REST, and a model")
    query.add_argument("--user", default="", metavar="ID", help="recommend for this user")
    query.add_argument("--history", default="", metavar="ID,ID", help="recommend after these items, oldest first")
    query.add_argument("--search", metavar="TEXT", help="search by text")
    query.add_argument("--similar", metavar="ID", help="items like this one")
    query.add_argument("--rank", default="", metavar="ID,ID", help="put these items in order")
    query.add_argument("--exclude", default="", metavar="ID,ID", help="items that must not be returned")
    query.add_argument("-k", type=_count, default=10, help="how many")
    query.add_argument("--items", metavar="FILE", help="items table, or a glob, to print titles from")
    query.add_argument("--title", default="title", metavar="COLUMN", help="its column of titles")
    query.add_argument("--json", action="store_true", help="a list of objects, scores in full")
    query.add_argument("--timeout", type=_seconds, default=10.0, metavar="SECONDS", help="until it fails")
    query.set_defaults(run=_query)


def _version(text: str) -> str:
    if not re.fullmatch(r"\d+\.\d+", text):
        raise argparse.ArgumentTypeError(f"a version must be two numbers, as 2.18; got {text!r}")
    return text


def _count(text: str) -> int:
    if not re.fullmatch(r"\d{1,10}", text) or not 1 <= int(text) <= _MOST:
        raise argparse.ArgumentTypeError(f"k must be a whole number from 1 to {_MOST}; got {text!r}")
    return int(text)


def _seconds(text: str) -> float:
    if not re.fullmatch(r"\d{1,6}(\.\d+)?", text) or not float(text):
        raise argparse.ArgumentTypeError(f"a timeout must be seconds above 0; got {text!r}")
    return float(text)


def _stage(arguments: argparse.Namespace) -> int:
    config = settings.load(arguments.config, arguments.overrides)
    import_tensorflow()
    from tfrec import pipeline

    say = (lambda line: None) if arguments.quiet else pipeline.say
    if arguments.stage == "train":
        return _train(arguments, config, say)
    if arguments.stage == "serve":
        return pipeline.serve(config, say)
    return _run_stages(arguments, config, say, [arguments.stage])


def _train(arguments: argparse.Namespace, config: Any, say: Any) -> int:
    from tfrec import pipeline
    from tfrec.training.cluster import joined

    with _sigterm_breaks_off(), joined(config) as peers:
        if not peers.trains:
            return 0
        run = pipeline.train(config, say if peers.leads else lambda line: None, peers=peers)
        if not peers.leads:
            return 0
        print(run.folder)
        return _run_stages(arguments, config, say, [] if arguments.no_export else ["evaluate", "export"])


@contextmanager
def _sigterm_breaks_off() -> Iterator[None]:
    def break_off(number: int, frame: Any) -> None:
        raise RestartError(
            "SIGTERM ended the command; what was written is whole", advice="Run the same command to continue"
        )

    if threading.current_thread() is not threading.main_thread():  # only that one may set handlers
        yield
        return
    before = signal.signal(signal.SIGTERM, break_off)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _run_stages(arguments: argparse.Namespace, config: Any, say: Any, stages: list[str]) -> int:
    from tfrec import pipeline

    for stage in stages:
        options = {"force": arguments.force} if stage == "export" else {}
        result = getattr(pipeline, stage)(config, say, **options)
        print(pipeline.results_table(result) if stage == "evaluate" else getattr(result, "folder", result))
    return 0


def _tune(arguments: argparse.Namespace) -> int:
    config = settings.load(arguments.config, arguments.overrides)
    import_tensorflow()
    from tfrec import pipeline, tuning

    best = tuning.tune(config, (lambda line: None) if arguments.quiet else pipeline.say)
    print(f"{best.path} {best.metric} {best.value:.6f}")
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    import_tensorflow()
    from tfrec.artifact import export, verify

    folder = arguments.export
    if not folder.name.isdecimal() and (published := export.versions(folder)):
        folder = folder / str(published[-1])
    report = verify.verify(folder, arguments.tf_serving)
    if not report.ok:
        raise ArtifactError(f"an artefact must pass verification; do not serve this one:\n{report}")
    print(report)
    return 0


def _reindex(arguments: argparse.Namespace) -> int:
    if arguments.items is None and not arguments.remove:
        raise ConfigError("reindex needs ITEMS, --remove or both")
    import_tensorflow()
    from tfrec import lifecycle
    from tfrec.pipeline import say

    progress = (lambda line: None) if arguments.quiet else say
    print(lifecycle.reindex(arguments.export, arguments.items, arguments.remove, arguments.force, progress))
    return 0


def _promote(arguments: argparse.Namespace) -> int:
    def point() -> tuple[int, bool]:
        from tfrec.server.promote import promote

        return arguments.version, promote(arguments.config, arguments.export, arguments.version, arguments.label)

    return _move(arguments, point)


def _rollback(arguments: argparse.Namespace) -> int:
    def point() -> tuple[int, bool]:
        from tfrec.server.promote import rollback

        return rollback(arguments.config, arguments.export, arguments.label)

    return _move(arguments, point)


def _move(arguments: argparse.Namespace, point: Callable[[], tuple[int, bool]]) -> int:
    """Changes the model config and tells the server; twice where a version must be loaded before its label moves."""
    import_tensorflow()
    version, done = point()
    if arguments.server:
        from tfrec.server.live import reload

        tell = (arguments.server, arguments.config, arguments.export.resolve().name, version, arguments.timeout)
        reload(*tell)
        if not done:
            _, done = point()
            reload(*tell)
    if not done:
        text = f"{arguments.config} loads version {version} first; run this again once the server has loaded it"
        print(f"tfrec: {text}, or name it with --server", file=sys.stderr)
        return _AGAIN
    print(version)
    return 0


def _query(arguments: argparse.Namespace) -> int:
    from tfrec import client

    address, model = _target(arguments.target)
    results = client.query(
        address,
        model,
        timeout=arguments.timeout,
        user_id=arguments.user,
        history=_ids(arguments.history),
        text=arguments.search or "",
        item_id=arguments.similar or "",
        item_ids=_ids(arguments.rank),
        exclude=_ids(arguments.exclude),
        k=arguments.k,
    )
    titles = _titles(arguments, [result.item_id for result in results])
    rows = [(result.score, result.item_id, titles.get(result.item_id)) for result in results]
    print(_as_json(rows) if arguments.json else _as_table(rows), end="")
    return 0


def _target(text: str) -> tuple[str, str]:
    """The address, with its scheme, and the model of ``[http[s]://]HOST:PORT/MODEL``."""
    scheme, mark, rest = text.rpartition("://")
    address, slash, model = rest.rpartition("/")
    if not slash or not address or not model:
        raise ConfigError("a target must be host:port/model or http://host:port/model", text)
    return scheme + mark + address, model


def _titles(arguments: argparse.Namespace, item_ids: list[str]) -> dict[str, str]:
    if not arguments.items:
        return {}
    from tfrec.data.titles import read_titles

    return read_titles(arguments.items, item_ids, arguments.title)


def _as_table(rows: list[tuple[float, str, str | None]]) -> str:
    width = max((len(item) for _, item, _ in rows), default=0)
    lines = [f"{score:9.4f}  {item:{width}}  {title or ''}".rstrip() for score, item, title in rows]
    return "".join(f"{line}\n" for line in lines)


def _as_json(rows: list[tuple[float, str, str | None]]) -> str:
    objects = [
        {"item_id": item, "score": score} | ({"title": title} if title is not None else {})
        for score, item, title in rows
    ]
    return json.dumps(objects, ensure_ascii=False, indent=1) + "\n"


def _ids(text: str) -> list[str]:
    return [item for item in text.split(",") if item]


if __name__ == "__main__":
    sys.exit(main())
