"""Whether a new version may take the place of the newest published one: bounds on metrics and golden answers."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tensorflow_serving.apis.prediction_log_pb2 import PredictLog

from tfrec.errors import ArtifactError
from tfrec.server.tensors import to_array

TOP = 10


@dataclass(frozen=True)
class Verdict:
    """What the gate says.

    Args:
        passed: whether the bounds hold.
        reason: what was compared, and how it came out.
    """

    passed: bool
    reason: str


def compare_metric(
    before: Mapping[str, Any] | None, now: Mapping[str, float], metric: str, largest_loss: float
) -> Verdict:
    """Holds a test metric to that of the newest published version.

        (before − now) / before ≤ largest_loss

    Args:
        before: its card; None when nothing is published.
        now: test metrics of the new version.
        metric: the name of the one that is compared.
        largest_loss: relative, in [0, 1].
    """
    if before is None:
        return Verdict(True, "nothing was published before")
    old = before.get("metrics", {}).get("test", {}).get(metric)
    if old is None:
        return Verdict(True, f"the version before has no test {metric}")
    if metric not in now:
        return Verdict(False, f"test {metric} is not measured; it was {old:.4f}: run tfrec evaluate")
    loss = (old - now[metric]) / old if old else 0.0
    words = f"test {metric} went from {old:.4f} to {now[metric]:.4f}, a loss of {loss:.1%}; {largest_loss:.1%} may be"
    return Verdict(bool(loss <= largest_loss), words)


def compare_answers(
    before: Sequence[PredictLog], now: Sequence[PredictLog], delisted: Collection[bytes], least_overlap: float
) -> Verdict:
    """Holds golden answers to those of the version before.

        mean over rows of |old ∩ new| / |old|,   old, new: the first 10 ids, without what was delisted from old

    Args:
        before: its golden requests with their answers.
        now: the same requests with the answers of the new version, in the same order.
        delisted: ids that the new version may not return.
        least_overlap: in [0, 1].
    """
    shares = [
        share
        for old, new in zip(before, now, strict=True)
        if "item_ids" in old.response.outputs
        for share in _shares(old, new, set(delisted))
    ]
    if not shares:
        return Verdict(True, "no golden request lists items")
    mean = float(np.mean(shares))
    words = f"the first {TOP} golden answers keep {mean:.1%} of their items in {len(shares)} rows"
    return Verdict(mean >= least_overlap, f"{words}; {least_overlap:.1%} must be kept")


def decide(verdict: Verdict, force: bool) -> dict[str, Any]:
    """What the card says of the verdict.

    Raises:
        ArtifactError: the bounds do not hold and nobody forces the version.
    """
    if not verdict.passed and not force:
        raise ArtifactError(
            "a version must stay within the bounds of the newest published one; nothing was published",
            verdict.reason,
            "Find out why, or publish it all the same with --force",
        )
    return {"passed": verdict.passed, "forced": not verdict.passed, "reason": verdict.reason}


def _shares(old: PredictLog, new: PredictLog, delisted: set[bytes]) -> list[float]:
    rows = zip(_ids(old), _ids(new), strict=True)
    pairs = [({*was[:TOP]} - {b""} - delisted, {*now[:TOP]}) for was, now in rows]
    return [len(was & now) / len(was) for was, now in pairs if was]


def _ids(log: PredictLog) -> list[list[bytes]]:
    ids: list[list[bytes]] = to_array(log.response.outputs["item_ids"]).tolist()
    return ids
