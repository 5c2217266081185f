"""Counters and histograms under TensorFlow Serving's names, as a Prometheus page.

Reference: tensorflow_serving/util/prometheus_exporter.cc and servables/tensorflow/util.cc.
"""

from __future__ import annotations

import bisect
import re
import threading
from collections.abc import Sequence

_FACTOR, _FIRST, _BUCKETS = 1.8, 10.0, 33


class Counter:
    """A number per combination of label values, which only grows."""

    kind = "counter"

    def __init__(self, name: str, labels: Sequence[str]):
        self.name, self.labels = name, tuple(labels)
        self._cells: dict[tuple[str, ...], int] = {}
        self._lock = threading.Lock()

    def add(self, *values: str, by: int = 1) -> None:
        """Counts; one value per label."""
        with self._lock:
            self._cells[values] = self._cells.get(values, 0) + by

    def lines(self) -> list[str]:
        """The page's lines below the type."""
        with self._lock:
            cells = list(self._cells.items())
        return [f"{_metric(self.name)}{{{_pairs(self.labels, values)}}} {count}" for values, count in cells]


class Histogram:
    """A distribution per combination of label values.

    Args:
        limits: upper ends of the buckets; a last one without end is added.
    """

    kind = "histogram"

    def __init__(self, name: str, labels: Sequence[str], limits: Sequence[float]):
        self.name, self.labels, self._limits = name, tuple(labels), list(limits)
        self._cells: dict[tuple[str, ...], list[float]] = {}  # a count per bucket, then the sum
        self._lock = threading.Lock()

    def add(self, value: float, *labels: str) -> None:
        """Counts a value; one text per label."""
        with self._lock:
            cell = self._cells.get(labels)
            if cell is None:
                cell = self._cells[labels] = [0] * (len(self._limits) + 1) + [0.0]
            cell[bisect.bisect_right(self._limits, value)] += 1
            cell[-1] += value

    def lines(self) -> list[str]:
        """The page's lines below the type."""
        with self._lock:
            cells = [(labels, list(cell)) for labels, cell in self._cells.items()]
        lines, name = [], _metric(self.name)
        for labels, cell in cells:
            pairs, count = _pairs(self.labels, labels), 0
            for limit, number in zip([*(f"{limit:g}" for limit in self._limits), "+Inf"], cell[:-1], strict=True):
                count += int(number)
                lines.append(f'{name}_bucket{{{pairs}{"," if pairs else ""}le="{limit}"}} {count}')
            lines += [f"{name}_sum{{{pairs}}} {cell[-1]:g}", f"{name}_count{{{pairs}}} {count}"]
        return lines


def exponential(first: float, factor: float, count: int) -> list[float]:
    """Limits of buckets, each ``factor`` times the one before."""
    return [first * factor**i for i in range(count)]


class Metrics:
    """What a server measures; latencies are in microseconds."""

    def __init__(self) -> None:
        latencies = exponential(_FIRST, _FACTOR, _BUCKETS - 1)
        examples = exponential(1, 2, 14)
        prefix = "/tensorflow/serving/"
        self.requests = Counter(prefix + "request_count", ["model_name", "status"])
        self.latency = Histogram(prefix + "request_latency", ["model_name", "API", "entrypoint"], latencies)
        self.warmup = Histogram(prefix + "model_warmup_latency", ["model_path", "status"], latencies)
        self.example_counts = Histogram(prefix + "request_example_counts", ["model"], examples)
        self.example_total = Counter(prefix + "request_example_count_total", ["model"])
        self.loads = Counter("/tensorflow/cc/saved_model/load_attempt_count", ["model_path", "status"])
        self.load_latency = Counter("/tensorflow/cc/saved_model/load_latency", ["model_path"])
        self._all = (
            *(self.loads, self.load_latency, self.warmup, self.requests, self.latency),
            *(self.example_counts, self.example_total),
        )

    def page(self) -> str:
        """Everything in Prometheus' text format."""
        lines: list[str] = []
        for metric in self._all:
            lines += [f"# TYPE {_metric(metric.name)} {metric.kind}", *metric.lines()]
        return "\n".join(lines) + "\n"


def _metric(name: str) -> str:
    return re.sub(r"[^a-zA-Z0-9_]", ":", name)


def _pairs(labels: Sequence[str], values: Sequence[str]) -> str:
    texts = (value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") for value in values)
    return ",".join(f'{label}="{text}"' for label, text in zip(labels, texts, strict=True))
