"""Peak memory and rows per CPU-second of preparing 10 million interactions with 1 million items: tfrec against pandas.

Both read one Parquet file, drop repeated pairs and rare users and items (until nothing changes), hold out each user's
last two events, number ids by first appearance and write the same tables, which are compared. Each side is a process
of its own; pandas works in memory with its Arrow strings, in the fewest passes that we know. ``prepare_10m_memory``
divides our largest resident size by pandas', ``prepare_10m`` our rows per CPU-second by pandas'.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from common import Cost, arguments, cost_of, report
from train_memory import peak

LEAST_USER, LEAST_ITEM = 3, 2
AT_ONCE = 1_000_000
EXAMPLE = "python benchmarks/prepare_10m.py --rounds 1, or in seconds: --rows 300000"
PACKAGES = ["ibis-framework", "duckdb", "pandas", "pyarrow"]
GOAL = 1.5e9


def main() -> None:
    parser = arguments(str(__doc__), EXAMPLE)
    parser.add_argument("--rows", type=int, default=10_000_000, help="interactions; items and users are a tenth")
    parser.add_argument("--side", choices=["tfrec", "pandas"], help="be one side of the comparison")
    parser.add_argument("--folder", type=Path, help="of the tables that a side reads and writes")
    options = parser.parse_args()
    if options.side:
        print(json.dumps(run_side(options.side, options.folder)))
        return
    with tempfile.TemporaryDirectory(prefix="tfrec-benchmark-") as folder:
        synthesize(Path(folder) / "interactions.parquet", options.rows)
        pairs = [(child("tfrec", folder), child("pandas", folder)) for _ in range(options.rounds)]
        check_equal(Path(folder))
    (own_peak, own), (peer_peak, peer) = (median([pair[side] for pair in pairs]) for side in (0, 1))
    wall = peer.wall / own.wall
    report(options.results, "prepare_10m_memory", own_peak / peer_peak, own_peak, peer_peak, "bytes", PACKAGES, wall)
    unit, rows = "rows per CPU-second", options.rows
    report(options.results, "prepare_10m", peer.cpu / own.cpu, rows / own.cpu, rows / peer.cpu, unit, PACKAGES, wall)
    if own_peak > GOAL:
        print(f"prepare must stay below {GOAL:.3g} bytes; got {own_peak:.4g}", file=sys.stderr)


def child(side: str, folder: str) -> tuple[float, Cost]:
    command = [sys.executable, __file__, "--side", side, "--folder", folder]
    size, cpu, wall = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return size, Cost(cpu, wall)


def median(runs: list[tuple[float, Cost]]) -> tuple[float, Cost]:
    columns = zip(*((size, *cost) for size, cost in runs), strict=True)
    size, cpu, wall = (statistics.median(column) for column in columns)
    return size, Cost(cpu, wall)


def synthesize(path: Path, rows: int) -> None:
    """Users and items of very unequal activity, in order of time, a few of the pairs repeated."""
    schema = pa.schema({"user_id": pa.string(), "item_id": pa.string(), "timestamp": pa.int64()})
    random = np.random.default_rng(0)
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, rows, AT_ONCE):
            size = min(AT_ONCE, rows - start)
            # Powers of uniform numbers: the first tenth of the users has a quarter, of the items half of the rows.
            user = (random.random(size) ** 1.7 * (rows // 10)).astype(np.int64)
            item = (random.random(size) ** 3.3 * (rows // 10)).astype(np.int64)
            time = 1_600_000_000 + np.sort(random.integers(start, start + size, size))
            columns = [[f"user-{u:07x}" for u in user], [f"item-{i:07x}" for i in item], time]
            writer.write_table(pa.table(columns, schema=schema))


def run_side(side: str, folder: Path) -> tuple[float, float, float]:
    """Largest resident bytes of this process, CPU-seconds and seconds."""
    make = {"tfrec": with_tfrec, "pandas": with_pandas}[side]
    cost = cost_of(lambda: make(folder))
    return peak(), *cost


def with_tfrec(folder: Path) -> None:
    from tfrec.config import validate
    from tfrec.data.prepare import prepare

    data = {"source": "tables", "interactions": str(folder / "interactions.parquet")}
    data |= {"min_user_interactions": LEAST_USER, "min_item_interactions": LEAST_ITEM}
    prepare(validate({"run": {"name": "benchmark"}, "model": {"text": "none"}, "data": data}), folder / "tfrec")


def with_pandas(folder: Path) -> None:
    import pandas as pd

    events = pd.read_parquet(folder / "interactions.parquet").dropna()
    events["user"], users = pd.factorize(events.pop("user_id"))
    events["item"], items = pd.factorize(events.pop("item_id"))
    # A stable sort: ties keep the order of the file.
    events = events.sort_values("timestamp", kind="stable").drop_duplicates(["user", "item"])
    before = -1
    while before != len(events):
        before = len(events)
        for key, least in (("user", LEAST_USER), ("item", LEAST_ITEM)):
            events = events[events[key].map(events[key].value_counts()) >= least]
    age = events.groupby("user").cumcount(ascending=False)
    ages = events["user"].map(events["user"].value_counts())
    events["split"] = np.where((ages < 3) | (age > 1), 0, 2 - age).astype(np.int8)
    out = folder / "pandas"
    out.mkdir(exist_ok=True)
    for key, names in (("user", users), ("item", items)):
        # Codes count first appearances in the file; those that are left keep their order.
        left = np.sort(events[key].unique())
        events[key] = (np.searchsorted(left, events[key]) + 1).astype(np.int32)
        counts = np.bincount(events[key][events["split"] == 0], minlength=len(left) + 1)[1:]
        table = pd.DataFrame({f"{key}_id": names[left], "count": counts})
        table.to_parquet(out / f"{key}s.parquet", compression="zstd", index=False)
    events = events.sort_values("user", kind="stable")[["user", "item", "split", "timestamp"]]
    events.to_parquet(out / "events.parquet", compression="zstd", index=False)


def check_equal(folder: Path) -> None:
    """Raises unless both sides wrote the same tables."""
    for name in ("events", "users", "items"):
        ours, theirs = (pq.read_table(folder / side / f"{name}.parquet") for side in ("tfrec", "pandas"))
        theirs = theirs.select(ours.column_names).cast(ours.schema)
        if not ours.equals(theirs):
            raise RuntimeError(f"both sides must write the same {name}; {len(ours)} and {len(theirs)} rows differ")


if __name__ == "__main__":
    main()
