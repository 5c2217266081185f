"""faiss IVF-Flat or hnswlib as they are, one thread, one query at a time: python ann_peer.py NAME DATA.npz RECALL."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np

Search = Callable[[np.ndarray], np.ndarray]


def main() -> None:
    name, path, target = sys.argv[1:]
    data = np.load(path)
    vectors, queries, best = data["vectors"][1:], data["queries"], data["best"] - 1
    begun = time.perf_counter()
    for setting, search in {"faiss": faiss_ivf, "hnswlib": hnsw}[name](vectors):
        built = time.perf_counter() - begun
        found = [search(query[None]) for query in queries]
        recall = float(np.mean([np.isin(row, items).mean() for row, items in zip(best, found, strict=True)]))
        about = {"peer": name, "setting": setting, "recall": round(recall, 4), "build_s": round(built)}
        if recall >= float(target):
            break
    cpu, wall = time.process_time(), time.perf_counter()
    for query in queries:
        search(query[None])
    cost = {"cpu_ms": (time.process_time() - cpu) * 1e3, "wall_ms": (time.perf_counter() - wall) * 1e3}
    cost = {key: round(value / len(queries), 3) for key, value in cost.items()}
    print(json.dumps(about | cost))


def faiss_ivf(vectors: np.ndarray) -> Iterator[tuple[str, Search]]:
    """IVF-Flat of 4,096 lists, with more and more probes."""
    import faiss

    faiss.omp_set_num_threads(2)
    index = faiss.index_factory(vectors.shape[1], "IVF4096,Flat", faiss.METRIC_INNER_PRODUCT)
    index.train(vectors[:: max(len(vectors) // 200_000, 1)])
    index.add(vectors)
    faiss.omp_set_num_threads(1)
    for nprobe in (8, 16, 24, *range(32, 256, 16), *range(256, 1024, 64), 1024, 4096):
        index.nprobe = nprobe
        yield f"nprobe {nprobe}", lambda query: index.search(query, 100)[1][0]


def hnsw(vectors: np.ndarray) -> Iterator[tuple[str, Search]]:
    """M 16, ef_construction 100, with larger and larger ef."""
    import hnswlib

    index = hnswlib.Index("ip", vectors.shape[1])
    index.init_index(len(vectors), M=16, ef_construction=100)
    index.add_items(vectors, num_threads=2)
    index.set_num_threads(1)
    for ef in (100, 150, *range(200, 1000, 100), *range(1000, 2000, 200), *range(2000, 4001, 500)):
        index.set_ef(ef)
        yield f"ef {ef}", lambda query: index.knn_query(query, 100)[0][0]


if __name__ == "__main__":
    main()
