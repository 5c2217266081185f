"""Queries per CPU-second of evaluating two towers on the whole catalogue: ranks by counting against FactorizedTopK.

Both get the same vectors, of width 32, of the 943 users of MovieLens 100K, and one held-out item a user. Ours is what
``tfrec evaluate`` runs: ``ranks.rank`` with users @ items.T, the items of a history of 50 masked, and HR, NDCG, MRR,
recall and MAP at five Ks. The peer is ``tfrs.metrics.FactorizedTopK`` with the same Ks, which gives HR alone and masks
nothing, compiled, with all queries at once. Its candidates are a data set in batches of 128 that looks vectors up, as
its documentation shows; ``--candidates brute_force`` takes its ``BruteForce`` layer instead, which keeps all scores in
memory. Each side has a process and one thread: a thread of a matrix library that waits for work costs CPU time.
``evaluate_2k`` has the 1,682 items of MovieLens, ``evaluate_100k`` has 100,000.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
from common import Cost, Measure, Worker, alternate, answer, arguments, cost_of, report

WIDTH, HISTORY, KS = 32, 50, (1, 5, 10, 50, 100)
CATALOGUES = {"evaluate_2k": (1_682, 943, 10), "evaluate_100k": (100_000, 943, 1)}  # items, queries, times
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}
EXAMPLE = "python benchmarks/evaluate.py --rounds 7"


def main() -> None:
    parser = arguments(str(__doc__), EXAMPLE)
    parser.add_argument("--only", choices=CATALOGUES, nargs="+", default=list(CATALOGUES), help="which catalogues")
    parser.add_argument("--candidates", choices=["dataset", "brute_force"], default="dataset", help="of the peer")
    parser.add_argument("--side", choices=["ours", "tfrs"], help="be this side of the comparison of --only")
    options = parser.parse_args()
    if options.side:
        [name] = options.only
        answer(ours(name) if options.side == "ours" else tfrs(name, options.candidates))
        return
    command = [sys.executable, __file__, "--candidates", options.candidates, "--only"]
    for name in options.only:
        with (
            Worker([*command, name, "--side", "ours"], **ONE_THREAD) as own_side,
            Worker([*command, name, "--side", "tfrs"], TF_USE_LEGACY_KERAS="1", **ONE_THREAD) as peer_side,
        ):
            own, peer = alternate(own_side, peer_side, options.rounds)
        unit, packages = "queries per CPU-second", ["numpy", "tensorflow", "tensorflow-recommenders"]
        wall = peer.wall / own.wall
        report(options.results, name, peer.cpu / own.cpu, 1 / own.cpu, 1 / peer.cpu, unit, packages, wall)


def ours(name: str) -> Measure:
    """Measures ranking and all metrics."""
    from tfrec.evaluation import metrics
    from tfrec.evaluation.ranks import Holdout, rank

    users, items, targets = vectors(name)
    random = np.random.default_rng(1)
    one, offsets = np.arange(len(users) + 1), np.arange(len(users) + 1) * HISTORY
    history = random.integers(1, len(items), len(users) * HISTORY).astype(np.int32), offsets
    holdout = Holdout(one[1:].astype(np.int32), history, (targets, one), history)
    batch = 256
    scores = np.empty((batch, len(items)), np.float32)  # one array for all blocks: rank works on copies

    def score(rows: np.ndarray) -> np.ndarray:
        return np.matmul(users[rows], items.T, out=scores[: len(rows)])

    def evaluate() -> dict[str, float]:
        ranks = rank(score, holdout, len(items) - 1, batch, top=0)
        return {name: values.mean() for name, values in metrics.per_query(ranks, KS).items()}

    return per_query(evaluate, name)


def tfrs(name: str, candidates: str) -> Measure:
    """Measures FactorizedTopK."""
    import tensorflow as tf
    import tensorflow_recommenders as tfrs

    users, items, targets = vectors(name)
    table = tf.constant(items)
    rows = tf.data.Dataset.range(1, len(items)).batch(128).map(lambda ids: tf.gather(table, ids))
    if candidates == "brute_force":
        rows = tfrs.layers.factorized_top_k.BruteForce().index(tf.constant(items[1:]))
    metric = tfrs.metrics.FactorizedTopK(candidates=rows, ks=KS)

    @tf.function
    def update(query: tf.Tensor, target: tf.Tensor) -> None:
        metric.update_state(query, target)

    queries, wanted = tf.constant(users), tf.constant(items[targets])

    def evaluate() -> list[float]:
        metric.reset_states()
        update(queries, wanted)
        return [float(value) for value in metric.result()]

    return per_query(evaluate, name)


def vectors(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Users float32 [Q, d], items float32 [N+1, d] and the held-out item of each user, int32 [Q]."""
    catalogue, queries, _ = CATALOGUES[name]
    random = np.random.default_rng(0)
    draw = lambda rows: random.normal(size=(rows, WIDTH)).astype(np.float32)  # noqa: E731
    return draw(queries), draw(catalogue + 1), random.integers(1, catalogue + 1, queries).astype(np.int32)


def per_query(evaluate: Callable[[], object], name: str) -> Measure:
    """Measures evaluations, divided by their queries."""
    _, queries, times = CATALOGUES[name]

    def measure() -> Cost:
        cost = cost_of(lambda: [evaluate() for _ in range(times)])
        return Cost(cost.cpu / queries / times, cost.wall / queries / times)

    return measure


if __name__ == "__main__":
    main()
