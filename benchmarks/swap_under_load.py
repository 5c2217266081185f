"""Requests while versions swap: an export with a real BERT is promoted and rolled back under half the capacity.

The load comes from a process of its own (load.py): first as fast as the server answers eight at a time, which gives the
capacity, then an open loop at half of it. Under that load ``tfrec promote`` and ``tfrec rollback`` rewrite the model
config file, which the server polls; each change loads a version, warms it up and unloads the other. A request belongs
to a swap when it was due between the change of the file and the end of the old version, and is compared with those
of the seconds before each swap.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from common import arguments, report
from load import Outcome, summary
from serving import PACKAGES, Process
from shop import train_shop
from tensorflow_serving.apis.get_model_status_pb2 import GetModelStatusRequest, ModelVersionStatus
from tensorflow_serving.apis.model_service_pb2_grpc import ModelServiceStub

from tfrec.server.promote import promote, rollback

CALM = 6.0  # seconds before each swap
LONGEST = 60.0  # seconds that a swap may take
CLIENTS = 8
EXAMPLE = "python benchmarks/swap_under_load.py --rounds 3 --signature recommend --signature search"
Span = tuple[float, float]


def main() -> None:
    options = _options()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        exports = _two_versions(options.export or train_shop(folder), folder / "served" / "shop")
        config = folder / "models.config"
        promote(config, exports, 1)
        flags = ["--model_config_file", str(config), "--model_config_file_poll_wait_seconds", "1"]
        with Process(["-m", "tfrec.server.grpc_server", "--port", "0", *flags, *options.flag]) as server:
            capacity = _capacity(server.target, exports / "1", options.signature)
            outcomes, swaps = _under_load(server.target, exports, config, capacity / 2, options)
    _report(outcomes, swaps, options)


def _two_versions(source: Path, exports: Path) -> Path:
    first = min((child for child in source.iterdir() if child.name.isdecimal()), key=lambda child: int(child.name))
    for version in ("1", "2"):
        shutil.copytree(first, exports / version)
    return exports


def _load(target: str, version: Path, signatures: Sequence[str], *flags: str) -> list[str]:
    wanted = [word for signature in signatures for word in ("--signature", signature)]
    file = str(Path(__file__).with_name("load.py"))
    return [sys.executable, file, target, str(version), "--model", "shop", *wanted, *flags]


def _capacity(target: str, version: Path, signatures: Sequence[str]) -> float:
    command = _load(target, version, signatures, "--in-flight", str(CLIENTS), "--seconds")
    subprocess.run([*command, "3"], check=True, capture_output=True)  # warms up
    found = json.loads(subprocess.run([*command, "8"], check=True, capture_output=True).stdout)
    print(f"capacity at {CLIENTS} in flight: {found}")
    return float(found["per_second"])


def _under_load(
    target: str, exports: Path, config: Path, rate: float, options: argparse.Namespace
) -> tuple[list[Outcome], list[Span]]:
    """Every request, and when each swap began and ended."""
    file, swaps = config.with_name("outcomes.json"), []
    flags = ["--rate", str(rate), "--seconds", str(options.rounds * 2 * (CALM + LONGEST)), "--outcomes", str(file)]
    with (
        grpc.insecure_channel(target) as channel,
        subprocess.Popen(_load(target, exports / "1", options.signature, *flags), stdout=subprocess.DEVNULL) as load,
    ):
        time.sleep(CALM)  # the generator starts
        for number in range(options.rounds * 2):
            time.sleep(CALM)
            begun = time.monotonic()
            if number % 2:
                rollback(config, exports)
            else:
                promote(config, exports, 2)
            _await_only(channel, 1 if number % 2 else 2, begun + LONGEST)
            swaps.append((begun, time.monotonic()))
        load.terminate()
    return [Outcome(*outcome) for outcome in json.loads(file.read_text(encoding="utf-8"))], swaps


def _await_only(channel: grpc.Channel, version: int, deadline: float) -> None:
    """Until one version is available and no other is loaded."""
    request = GetModelStatusRequest()
    request.model_spec.name = "shop"
    status = ModelServiceStub(channel).GetModelStatus
    while True:
        states = {v.version: v.state for v in status(request, timeout=20).model_version_status}
        others = {state for number, state in states.items() if number != version}
        if states.get(version) == ModelVersionStatus.AVAILABLE and others <= {ModelVersionStatus.END}:
            return
        if time.monotonic() > deadline:
            raise SystemExit(f"version {version} must replace the other; states are {states}")
        time.sleep(0.1)


def _report(outcomes: Sequence[Outcome], swaps: Sequence[Span], options: argparse.Namespace) -> None:
    before = _within(outcomes, [(begun - CALM, begun) for begun, _ in swaps])
    during = _within(outcomes, swaps)
    sides: dict[str, dict[str, Any]] = {"before": summary(before), "during": summary(during), "all": summary(outcomes)}
    for name, side in sides.items():
        print(f"{name}: {side}")
    print(f"seconds of each swap: {[round(end - begun, 1) for begun, end in swaps]}")
    for outcome in sorted(outcomes, key=lambda outcome: -outcome.latency)[:5]:
        change = max((begun for begun, _ in swaps if begun <= outcome.due), default=outcome.due)
        print(f"slow: {outcome.latency * 1e3:.0f} ms, {outcome.due - change:.2f} s after a change")
    ours, peer = sides["during"]["p99_ms"], sides["before"]["p99_ms"]
    median = float(np.median([o.latency for o in during]) / np.median([o.latency for o in before]))
    report(options.results, "swap_p99", ours / peer, ours, peer, "ms, p99 during a swap and before", PACKAGES, median)
    if sides["all"]["failed"]:
        raise SystemExit(f"no request may fail; got {sides['all']['failed']}")


def _within(outcomes: Sequence[Outcome], spans: Sequence[Span]) -> list[Outcome]:
    return [outcome for outcome in outcomes if any(begun <= outcome.due < end for begun, end in spans)]


def _options() -> argparse.Namespace:
    parser = arguments(str(__doc__), EXAMPLE, rounds=2)
    parser.add_argument("--export", type=Path, help="exports/MODEL to serve; absent = a small shop is trained first")
    parser.add_argument("--signature", action="append", default=[], help="what is asked; may be repeated")
    parser.add_argument("--flag", action="append", default=[], help="of the server, as --flag=--num_load_threads=1")
    options = parser.parse_args()
    options.signature = options.signature or ["recommend"]
    return options


if __name__ == "__main__":
    main()
