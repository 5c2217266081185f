"""One process of parameter servers: the chief trains and prints the losses as JSON, the others serve."""

from __future__ import annotations

import json

import mirrored_check
import world

from tfrec.training.cluster import joined

SETTINGS = {"optimizer": "adam", "learning_rate": 0.02, "clip_norm": 1.0, "accumulate": 2}


def main() -> None:
    servers = {"strategy": "parameter_server", "peer_seconds": 120.0}
    with joined(world.settings(mirrored_check.PLAIN, **servers, **SETTINGS, batch=4)) as peers:
        if not peers.trains:
            return
        trainer, history = mirrored_check.train(mirrored_check.PLAIN, {**servers, **SETTINGS}, 6)
        again, continued = mirrored_check.train(mirrored_check.PLAIN, {**servers, **SETTINGS}, 6, folder=trainer.folder)
        report = {
            "losses": [log["loss"] for log in history],
            "same": continued == history and world.largest_difference(trainer.model, again.model) == 0,
            "devices": sorted({v.value.device for v in trainer.model.trainable_variables}),
        }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
