"""One of several workers: trains the named cases with the others, then, as the first, alone, and prints what differs
as JSON."""

from __future__ import annotations

import json
import sys
import warnings
from typing import Any

import mirrored_check
import tensorflow as tf
import world

from tfrec.training.cluster import joined


def compare(case: str, epochs: int, leads: bool) -> dict[str, Any]:
    model, settings = mirrored_check.CASES[case]
    together = {"strategy": "multi_worker", **settings}
    ours, losses = mirrored_check.train(model, together, epochs)
    report: dict[str, Any] = {"losses": [log["loss"] for log in losses], "replicas": ours.strategy.num_replicas_in_sync}
    if leads:
        alone, their_losses = mirrored_check.train(model, settings, epochs)
        report |= {
            "steps": [int(trainer.model.optimizer.iterations.numpy()) for trainer in (ours, alone)],
            "weights": world.largest_difference(ours.model, alone.model),
            "loss": max(abs(a["loss"] - b["loss"]) for a, b in zip(losses, their_losses, strict=True)),
        }
    return report


def main() -> None:
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", "__array__ implementation doesn't accept a copy keyword", DeprecationWarning)
    tf.config.experimental.enable_op_determinism()
    epochs, *cases = sys.argv[1:]
    with joined(world.settings(strategy="multi_worker", batch=4, peer_seconds=60)) as peers:
        report = {case: compare(case, int(epochs), peers.leads) for case in cases}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
