"""What every benchmark needs: alternating measurements, medians, and a file of results."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

RESULTS = Path(__file__).parent / "results.json"


class Cost(NamedTuple):
    """Seconds of all threads together, and of the clock."""

    cpu: float
    wall: float


Measure = Callable[[], Cost]


def cost_of(work: Callable[[], object]) -> Cost:
    """What one call of ``work`` costs this process."""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return Cost(time.process_time() - cpu, time.perf_counter() - wall)


def median_seconds(calls: int, call: Callable[[], object]) -> float:
    """The median time of so many calls by the clock."""
    return statistics.median(cost_of(call).wall for _ in range(calls))


def alternate(ours: Measure, peer: Measure, rounds: int) -> tuple[Cost, Cost]:
    """Medians of measurements taken in turn, so that a busy machine is busy for both; the first round warms up."""
    pairs = [(ours(), peer()) for _ in range(rounds + 1)][1:]
    first, second = zip(*pairs, strict=True)
    return _median(first), _median(second)


def _median(costs: Sequence[Cost]) -> Cost:
    return Cost(statistics.median(c.cpu for c in costs), statistics.median(c.wall for c in costs))


class Worker:
    """A side of a comparison in a process of its own, which measures once whenever it is asked.

    Args:
        command: a program that calls :func:`answer`.
        environment: what to change in its environment.
    """

    def __init__(self, command: Sequence[str], **environment: str):
        self.process = subprocess.Popen(
            list(command), env=os.environ | environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self) -> Cost:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write("measure\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.process.args} must answer a measurement; it ended with {self.process.wait()}")
        return Cost(*json.loads(line))

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait()


def answer(measure: Measure) -> None:
    """The life of a worker: one line in, one measurement out."""
    for _ in sys.stdin:
        print(json.dumps(measure()), flush=True)


def arguments(description: str, example: str, rounds: int | None = 5) -> argparse.ArgumentParser:
    """A parser with --rounds, unless there are none, and --results."""
    parser = argparse.ArgumentParser(
        description=description, epilog=f"example: {example}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    if rounds:
        parser.add_argument("--rounds", type=int, default=rounds, help="measurements of each side; the median counts")
    parser.add_argument("--results", type=Path, default=RESULTS, help="JSON file to append to")
    return parser


def report(
    results: Path, name: str, ratio: float, ours: float, peer: float, unit: str, packages: Sequence[str], wall: float
) -> None:
    """Prints a result and appends it to the file.

    Args:
        results: a JSON list; made when absent.
        name: of the ratio.
        ratio: of CPU time or bytes, as the goal is stated.
        ours, peer: what was divided.
        unit: of both.
        packages: whose versions matter.
        wall: the same ratio by the clock.
    """
    versions = {package: importlib.metadata.version(package) for package in packages}
    numbers = {"ratio": ratio, "ours": ours, "peer": peer}
    entry = {"name": name, **{key: float(f"{value:.4g}") for key, value in numbers.items()}, "unit": unit}
    entry |= {"wall_ratio": float(f"{wall:.4g}"), "versions": versions}
    print(json.dumps(entry, indent=2))
    entries = json.loads(results.read_text(encoding="utf-8")) if results.exists() else []
    with tempfile.NamedTemporaryFile("w", dir=results.parent, delete=False, encoding="utf-8") as file:
        json.dump([*entries, entry], file, indent=2)
    os.replace(file.name, results)
