"""Load on a Predict target over gRPC: requests leave at random times, whether or not the answers come back.

An open loop: Poisson arrivals at a fixed rate, and each latency counts from the time at which its request should have
left, so that a server that stalls is charged for all who waited meanwhile. With ``--in-flight`` the loop is closed
instead: so many requests at any time, each answer sends the next, which measures capacity. Run it in another process
than the server. The requests are those of a warm-up file, which every export carries. Imports no TensorFlow. (locust
waits for answers and ghz is no Python package: neither does this over gRPC after a pip install.)
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import struct
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import numpy as np

from tfrec.messages import message_classes

PREDICT = "/tensorflow.serving.PredictionService/Predict"
WARMUP = "assets.extra/tf_serving_warmup_requests"
TIMEOUT = 20.0
EXAMPLE = """example:
  python benchmarks/load.py 127.0.0.1:8500 exports/shop/1 --model shop --signature recommend --rate 200 --seconds 30"""
# Only the numbers on the way to the name of a request's model matter.
_LOGS = message_classes(
    "load",
    {
        "ModelSpec": {1: "string name", 3: "string signature_name"},
        "PredictRequest": {1: "ModelSpec model_spec", 2: "repeated bytes inputs"},
        "PredictLog": {1: "PredictRequest request"},
        "PredictionLog": {6: "PredictLog predict_log"},
    },
)


class Outcome(NamedTuple):
    """One request.

    Args:
        due: when it should have left, on the monotonic clock, which processes of a machine share.
        late: seconds after that when it left.
        latency: seconds from due to the answer.
        code: of the answer.
    """

    due: float
    late: float
    latency: float
    code: str


def read_requests(file: Path, model: str, signatures: Sequence[str] = ()) -> list[bytes]:
    """The serialized PredictRequests of a warm-up file.

    Args:
        model: the name under which it is served.
        signatures: those wanted; empty = all.
    """
    found = []
    for record in _records(file):
        request = _LOGS["PredictionLog"].FromString(record).predict_log.request
        if not signatures or request.model_spec.signature_name in signatures:
            request.model_spec.name = model
            found.append(request.SerializeToString())
    if not found:
        raise SystemExit(f"{file} must hold requests for {', '.join(signatures) or 'Predict'}")
    return found


def _records(file: Path) -> Iterator[bytes]:
    """The records of a TFRecord file: length, its checksum, data, its checksum."""
    data, at = file.read_bytes(), 0
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        yield data[at + 12 : at + 12 + length]
        at += 16 + length


async def open_loop(target: str, requests: Sequence[bytes], rate: float, seconds: float, seed: int) -> list[Outcome]:
    """Sends requests at the times of a Poisson process; SIGTERM ends it early."""
    generator = np.random.default_rng(seed)
    gaps = generator.exponential(1 / rate, int(rate * seconds * 2) + 10)
    due = np.cumsum(gaps)
    due, chosen = due[due < seconds], generator.integers(0, len(requests), len(due))
    async with grpc.aio.insecure_channel(target) as channel:
        call = channel.unary_unary(PREDICT)
        await call(requests[0], timeout=TIMEOUT)  # connects
        stop, start, tasks = asyncio.Event(), time.monotonic(), []
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        for offset, choice in zip(due.tolist(), chosen.tolist(), strict=False):
            await asyncio.sleep(max(0.0, start + offset - time.monotonic()))
            if stop.is_set():
                break
            tasks.append(asyncio.create_task(_ask(call, requests[choice], start + offset)))
        return list(await asyncio.gather(*tasks))


async def closed_loop(
    target: str, requests: Sequence[bytes], in_flight: int, seconds: float, count: int, seed: int
) -> list[Outcome]:
    """Keeps so many requests under way for some seconds, or until so many are sent."""
    left, end = count, time.monotonic() + seconds

    async def client(number: int) -> list[Outcome]:
        nonlocal left
        chooser, outcomes = random.Random(seed + number), []
        while left > 0 and time.monotonic() < end:
            left -= 1
            outcomes.append(await _ask(call, chooser.choice(requests), time.monotonic()))
        return outcomes

    async with grpc.aio.insecure_channel(target) as channel:
        call = channel.unary_unary(PREDICT)
        await call(requests[0], timeout=TIMEOUT)
        each = await asyncio.gather(*(client(number) for number in range(in_flight)))
        return [outcome for outcomes in each for outcome in outcomes]


async def _ask(call: Any, request: bytes, due: float) -> Outcome:
    late, code = time.monotonic() - due, "OK"
    try:
        await call(request, timeout=TIMEOUT)
    except grpc.aio.AioRpcError as error:
        code = error.code().name
    return Outcome(due, late, time.monotonic() - due, code)


def summary(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Counts, requests per second and percentiles in milliseconds; a failed request counts with its latency."""
    ends = [outcome.due + outcome.latency for outcome in outcomes]
    seconds = max(ends) - min(outcome.due for outcome in outcomes)
    failed = Counter(outcome.code for outcome in outcomes if outcome.code != "OK")
    latencies = np.array([outcome.latency for outcome in outcomes]) * 1e3
    percentiles = {f"p{p}_ms": float(np.percentile(latencies, p)) for p in (50, 95, 99)}
    late = float(np.percentile([outcome.late for outcome in outcomes], 99)) * 1e3
    rounded = {**percentiles, "worst_ms": float(latencies.max()), "generator_late_p99_ms": late}
    return {
        "requests": len(outcomes),
        "failed": dict(failed),
        "per_second": round(len(outcomes) / seconds, 1),
        **{name: round(value, 3) for name, value in rounded.items()},
    }


def main() -> None:
    options = _arguments().parse_args()
    file = options.requests / WARMUP if options.requests.is_dir() else options.requests
    requests = read_requests(file, options.model, options.signature)
    if options.in_flight:
        count = options.count or sys.maxsize
        work = closed_loop(options.target, requests, options.in_flight, options.seconds, count, options.seed)
    else:
        work = open_loop(options.target, requests, options.rate, options.seconds, options.seed)
    outcomes = asyncio.run(work)
    if options.outcomes:
        options.outcomes.write_text(json.dumps(outcomes), encoding="utf-8")
    print(json.dumps(summary(outcomes)))


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target", help="host:port")
    parser.add_argument("requests", type=Path, help="an exported version, or a TFRecord file of PredictionLogs")
    parser.add_argument("--model", required=True, help="name under which it is served")
    parser.add_argument("--signature", action="append", default=[], help="send requests for this one; may be repeated")
    parser.add_argument("--rate", type=float, default=100.0, help="requests per second of the open loop")
    parser.add_argument("--in-flight", type=int, default=0, help="requests at a time; closes the loop")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long requests are sent")
    parser.add_argument("--count", type=int, default=0, help="requests of the closed loop; 0 = as many as fit")
    parser.add_argument("--seed", type=int, default=0, help="of times and choices")
    parser.add_argument("--outcomes", type=Path, help="JSON file for [due, late, latency, code] of every request")
    return parser


if __name__ == "__main__":
    main()
