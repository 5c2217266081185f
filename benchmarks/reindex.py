"""What a new version costs beyond embedding its items: 10,000 new ones into an artefact of 100,000, with a real BERT.

``tfrec reindex`` writes the version with its golden requests and verifies it in clean processes; the peer is the
artefact's own ``embed_item`` on the same rows in the same batches, before and after. Both are CPU-seconds of this
process; the seconds of the verification, which are not in them, are printed. One embedding differs from the next by a
tenth: the median of several rounds counts.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import Cost, arguments, cost_of, report
from shop import titles, train_shop

from tfrec.artifact import reindex as artefact
from tfrec.artifact.export import read_card
from tfrec.artifact.variables import read_variables, write_variables

EXAMPLE = "python benchmarks/reindex.py --new 10000"
PACKAGES = ["tensorflow", "keras-hub"]


def main() -> None:
    parser = arguments(str(__doc__), EXAMPLE)
    parser.add_argument("--export", type=Path, help="exports/MODEL with a text; absent = a small shop is trained first")
    parser.add_argument("--items", type=int, default=100_000, help="items of the artefact")
    parser.add_argument("--new", type=int, default=10_000, help="items that are added")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = options.export or train_shop(folder)
        version = _grown(source / "1", folder / "grown" / source.name, options.items)
        items = _items(options.new)
        settings = read_card(version)["settings"]["export"] | {"least_golden_overlap": 0.0}
        verification = _Timed(artefact.verify.verify)
        artefact.verify.verify = verification
        rounds = [_round(version, items, settings, verification) for _ in range(options.rounds)]
    costs = [[statistics.median(side) for side in zip(*part, strict=True)] for part in zip(*rounds, strict=True)]
    (cpu, wall), (whole, written) = costs
    report(options.results, "reindex", whole / cpu, whole, cpu, "CPU-seconds", PACKAGES, written / wall)


def _round(version: Path, items: dict[str, Any], settings: dict[str, Any], verification: _Timed) -> tuple[Cost, Cost]:
    """What embedding costs, the mean of before and after, and what reindexing does, without verification's seconds."""
    verification.seconds = 0.0
    before = cost_of(lambda: artefact._embedded(version, items))
    whole = cost_of(lambda: artefact.reindex(version.parent, items, [], settings))
    after = cost_of(lambda: artefact._embedded(version, items))
    shutil.rmtree(version.parent / "2")  # for the next round to write
    print(f"embedding {before}, {after}; reindex {whole}, of which verification took {verification.seconds:.1f} s")
    embedding = Cost((before.cpu + after.cpu) / 2, (before.wall + after.wall) / 2)
    return embedding, Cost(whole.cpu, whole.wall - verification.seconds)


class _Timed:
    """A function that knows how long it took."""

    def __init__(self, function: Any):
        self._function, self.seconds = function, 0.0

    def __call__(self, *given: Any) -> Any:
        begun = time.perf_counter()
        try:
            return self._function(*given)
        finally:
            self.seconds += time.perf_counter() - begun


def _grown(source: Path, folder: Path, count: int) -> Path:
    """A copy of a version with so many items, whose vectors are random."""
    random = np.random.default_rng(0)
    rows = read_variables(source, ("item_ids", "item_vectors", "text_vectors", "popularity", "available"))
    more = count + 1 - len(rows["item_ids"])
    for name, value in rows.items():
        if value.ndim == 2:
            vectors = random.normal(size=(more, value.shape[1])).astype(np.float32)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            rows[name] = np.concatenate([value, vectors])
        elif name == "item_ids":
            rows[name] = np.concatenate([value, np.array([f"grown {i}".encode() for i in range(more)], object)])
        else:
            rows[name] = np.concatenate([value, np.ones(more, value.dtype)])
    folder.mkdir(parents=True)
    shutil.copytree(source, folder / "1", ignore=shutil.ignore_patterns("variables", "fingerprint.pb"))
    write_variables(source, folder / "1", rows)
    return folder / "1"


def _items(count: int) -> dict[str, np.ndarray]:
    ids = np.array([f"new {i}".encode() for i in range(count)], object)
    return {"item_id": ids, "title": np.array([title.encode() for title in titles(count, seed=1)], object)}


if __name__ == "__main__":
    main()
