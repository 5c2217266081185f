"""The cascade's stretch of the road: what retrieval gives → a ranker → what both are worth together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfrec import serving
from tfrec.data import offers
from tfrec.earlier import EARLIER, earlier
from tfrec.evaluation import bootstrap, ragged
from tfrec.evaluation.holdouts import last_items, make_holdout
from tfrec.evaluation.ranks import Holdout, Scorer
from tfrec.models.ranking.body import Sizes
from tfrec.models.ranking.fields import Field
from tfrec.models.ranking.pairs import Followers, Words
from tfrec.models.ranking.signals import PREFIX, RETRIEVAL, Catalogue, evidence_of, scaled, signals
from tfrec.ranker_config import ATTENTIVE
from tfrec.ranking import field_of
from tfrec.runs import Run, read_json, write_arrays, write_json
from tfrec.training import cascade
from tfrec.training.cascade import Requests, RequestScorer, joined
from tfrec.training.item_statistics import item_statistics
from tfrec.training.pairs import followers, item_words
from tfrec.training.ranking import RankingTables
from tfrec.training.validation import RetrievalScorer

_AT_ONCE = 64
_CHOSEN, _UNSEEN = "cascade.json", "cascade_valid.npz"
Moments = dict[str, tuple[float, float]]
LOWEST = np.finfo(np.float32).min


class Chosen(NamedTuple):
    """What training chose: weights of the value formula, moments of signals, epochs, and NDCG after each epoch."""

    weights: dict[str, float]
    moments: Moments
    epochs: int
    curve: list[float]


def read_chosen(run: Run) -> Chosen:
    """What training wrote.

    Raises:
        ConfigError: the run holds none.
    """
    tree = read_json(run.folder / _CHOSEN)
    return Chosen(**tree | {"moments": {name: tuple(pair) for name, pair in tree["moments"].items()}})


class Columns(NamedTuple):
    """Columns of the items that a shop's roles name.

    Args:
        prices: float32 [N+1], NaN = unknown; None without the role.
        categories: int32 [N+1, c], each once an item, 0 = none; None without the role.
        names: of category i + 1 at place i.
    """

    prices: np.ndarray | None
    categories: np.ndarray | None
    names: list[str]


def columns_of(run: Run) -> Columns:
    """Prices and categories of a prepared run's items; a feature's separator splits categories."""
    roles, items = run.config.data.roles, run.prepared.items
    prices = None
    if roles.price:
        prices = np.concatenate([np.array([np.nan], np.float32), offers.prices(items[roles.price])])
    if not roles.category:
        return Columns(prices, None, [])
    separators = {feature.name: feature.separator for feature in run.config.features.columns}
    lists = [[], *offers.categories(items[roles.category], separators.get(roles.category))]
    names = sorted({name for own in lists for name in own})
    return Columns(prices, offers.category_table(lists, names, max(map(len, lists)) or 1), names)


def pairs_of(run: Run, which: str) -> tuple[Words | None, Followers | None]:
    """Words of the items, and what follows them in the past that a stage may know; None of what is not asked for."""
    words, after = None, None
    if "words" in run.config.cascade.pairs and run.tokenizer:
        ids, weights, size = item_words(run.features("item")["tokens"])
        words = Words(tf.Variable(ids, trainable=False), tf.Variable(weights, trainable=False), size)
    if "follows" in run.config.cascade.pairs:
        found = followers(run.prepared.events, len(run.prepared.item_ids), (0, 1) if which == "final" else (0,))
        after = Followers(*(tf.Variable(x, trainable=False) for x in found))
    return words, after


def holdout_of(run: Run, split: int) -> Holdout:
    """The queries of one split, 1 (valid) or 2 (test)."""
    return make_holdout(run.prepared.events, len(run.prepared.user_ids), split, run.config.evaluate.repeats)


def ndcg_of(holdout: Holdout, answers: np.ndarray) -> np.ndarray:
    """NDCG@K of answered items int32 [Q, K], best first, 0 = none, float64 [Q]."""
    owner, width = ragged.owners(holdout.targets), int(answers.max(initial=0)) + int(holdout.targets[0].max()) + 1
    wanted = owner * width + holdout.targets[0]
    hits = np.isin(np.arange(len(holdout))[:, None] * width + answers, wanted) & (answers > 0)
    discounts = 1 / np.log2(np.arange(2, answers.shape[1] + 2))
    ideal = np.cumsum(discounts)[np.minimum(ragged.lengths(holdout.targets), answers.shape[1]) - 1]
    return hits @ discounts / ideal


class Retriever:
    """What retrieval of a run says of held-out queries.

    Args:
        run: trained.
        which: "selected", which has not seen valid, or "final".
    """

    def __init__(self, run: Run, which: str):
        self.run, self.which = run, which
        self._scorer, blend = RetrievalScorer(run.model(which)), run.blend(which)
        texts = run.item_text_vectors() if run.config.model.text == "frozen" else None
        roles = columns_of(run)
        vectors = self._scorer.item_vectors()
        tensors = [None if x is None else tf.constant(x) for x in (vectors, texts, roles.prices, roles.categories)]
        words, after = pairs_of(run, which)
        catalogue = Catalogue(*tensors)._replace(words=words, followers=after)
        specs = [tf.TensorSpec([None, None], tf.float32), tf.TensorSpec([None, None], tf.int32)]
        self._evidence = tf.function(
            lambda cosine, history: evidence_of(blend, cosine, history, None), input_signature=specs, autograph=False
        )
        self._signals = tf.function(
            lambda own, history, items: signals(own, history, items, catalogue), reduce_retracing=True, autograph=False
        )
        seen = (0, 1) if which == "final" else (0,)
        self._popularity = serving.popularity(run.prepared.events, len(run.prepared.item_ids), seen)

    def holdout(self) -> Holdout:
        """Queries whose held-out items this retrieval has not seen."""
        return holdout_of(self.run, 2 if self.which == "final" else 1)

    def evidence(self, holdout: Holdout) -> Iterator[tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]]:
        """Queries, what is read of their histories [b, L], and retrieval's scores [b, N+1] by name, block by block."""
        score, config = self._scorer.scorer(holdout), self.run.config
        longest = int(ragged.lengths(holdout.history).max(initial=1))
        read = last_items(holdout.history, min(config.model.blend_history, longest))
        for low in range(0, len(holdout), _AT_ONCE):
            rows = np.arange(low, min(low + _AT_ONCE, len(holdout)))
            history = read[rows]
            history = history[:, int(np.argmax(np.append(history.any(axis=0), True))) :]  # no padding of every row
            found = {name: x.numpy() for name, x in self._evidence(score(rows), history).items()}
            if not serving.knows_users(self.run):
                known = history.any(axis=1, keepdims=True) if history.shape[1] else np.zeros((len(rows), 1), bool)
                found[RETRIEVAL] = np.where(known, found[RETRIEVAL], self._popularity)
            yield rows, history, found

    def requests(self, holdout: Holdout, most: int) -> Requests:
        """The best ``most`` candidates of every query, with signals as they are."""
        return joined([self._block(holdout, most, *block) for block in self.evidence(holdout)])

    def _block(
        self, holdout: Holdout, most: int, rows: np.ndarray, history: np.ndarray, found: dict[str, np.ndarray]
    ) -> Requests:
        first, last = rows[0], rows[-1] + 1
        wanted, mask = (ragged.span(lists, first, last) for lists in (holdout.targets, holdout.mask))
        place = ragged.owners(wanted), wanted[0]
        scores = found[RETRIEVAL].copy()
        kept = scores[place]
        scores[ragged.owners(mask), mask[0]] = LOWEST
        scores[place] = kept
        scores[:, 0] = LOWEST
        items = np.argsort(-scores, axis=1, kind="stable")[:, :most].astype(np.int32)
        retrieval = np.take_along_axis(scores, items, axis=1)
        items[retrieval == LOWEST] = 0
        own = {name: np.take_along_axis(x, items, axis=1) for name, x in found.items()}
        numbers = {name: x.numpy() for name, x in self._signals(own, history, items).items()}
        length = max(self.run.config.model.history_length, 1)
        read = last_items(ragged.span(holdout.history, first, last), length)
        columns = {"user": holdout.users[rows], "item": items, "history": read, **numbers}
        labels = self._labels(holdout.users[rows], wanted, items)
        return Requests(columns, retrieval, labels, ragged.lengths(wanted))

    def _labels(self, users: np.ndarray, wanted: ragged.Ragged, items: np.ndarray) -> np.ndarray:
        """1 for what was taken, and what the columns of the other tasks say of it, float32 [b, C, T]."""
        tasks = self.run.config.ranker.tasks
        labels = np.zeros((len(users), len(self.run.prepared.item_ids) + 1, len(tasks)), np.float32)
        owner = ragged.owners(wanted)
        labels[owner, wanted[0], 0] = 1
        for i, task in enumerate(tasks[1:], start=1):
            values = self._values(task.column, task.positive)
            pairs = users[owner].astype(np.int64) * (len(self.run.prepared.item_ids) + 1) + wanted[0]
            labels[owner, wanted[0], i] = [values.get(int(pair), np.nan) for pair in pairs]
        return np.take_along_axis(labels, items[..., None], axis=1)

    def _values(self, column: str, positive: float | None) -> dict[int, float]:
        """The mean of a column over the held-out events of a user and item, or whether it is positive."""
        events, split = self.run.prepared.events, 2 if self.which == "final" else 1
        rows = events["split"] == split
        pair = events["user"][rows].astype(np.int64) * (len(self.run.prepared.item_ids) + 1) + events["item"][rows]
        pairs, place = np.unique(pair, return_inverse=True)
        mean = np.bincount(place, events[column][rows].astype(np.float64)) / np.bincount(place)
        return dict(zip(pairs.tolist(), mean if positive is None else (mean >= positive).astype(float), strict=True))


def moments_of(requests: Requests) -> Moments:
    """Mean and deviation of every signal over candidates."""
    there = requests.columns["item"] > 0
    names = [name for name in requests.columns if name not in ("user", "item", "history")]
    found = {name: requests.columns[name][there].astype(np.float64) for name in names}
    return {name: (float(x.mean()), float(x.std()) if x.std() > 1e-6 else 1.0) for name, x in found.items()}


def with_scaled(requests: Requests, moments: Moments) -> Requests:
    """The signals as the ranker reads them."""
    others = {name: requests.columns[name] for name in ("user", "item", "history")}
    numbers = {name: x.astype(np.float32) for name, x in scaled(requests.columns, moments).items()}
    return Requests({**others, **numbers}, requests.retrieval, requests.labels, requests.wanted)


def statistics_of(run: Run, which: str) -> dict[str, np.ndarray]:
    """Of the items, name -> float32 [N+1], from what a stage of a run may know."""
    splits = (0, 1) if which == "final" else (0,)
    return item_statistics(run.prepared.events, len(run.prepared.item_ids), splits)


def with_statistics(requests: Requests, statistics: Mapping[str, np.ndarray]) -> Requests:
    """Statistics of the candidates beside them, which a ranker reads in place of those that it holds: each position
    has a past of its own."""
    own = {name: column[requests.columns["item"]] for name, column in statistics.items()}
    return Requests({**requests.columns, **own}, requests.retrieval, requests.labels, requests.wanted)


def tables_of(run: Run, which: str, names: Sequence[str]) -> RankingTables:
    """Stored features of one stage of a run.

    Args:
        run: prepared.
        which: "selected" or "final": what item statistics may know.
        names: of the signals.
    """
    config, prepared, rows = run.config, run.prepared, run.preprocessor.rows()
    items = run.features("item")
    items.pop("tokens", None)
    statistics = statistics_of(run, which)
    settings, schema = config.ranker, config.features.schema_
    fields = [Field("user", "user", "index", len(prepared.user_ids) + 1)] if settings.user_id else []
    fields += [Field("item", "item", "index", len(prepared.item_ids) + 1)] if settings.item_id else []
    fields += [field_of(feature, rows) for feature in (*schema.side("user"), *schema.side("item"))]
    fields += [Field(name, "item", "number", 1) for name in (*statistics, *(PREFIX + name for name in names))]
    reads = config.cascade.kind in ATTENTIVE or settings.history
    length = config.model.history_length if reads else 0
    sizes = Sizes(tuple(fields), settings.history_fields, length=length, prior=PREFIX + RETRIEVAL)
    return RankingTables(sizes, run.features("user"), {**items, **statistics})


def train(run: Run, say: Callable[[str], None], callbacks: Callable[[], Sequence[keras.callbacks.Callback]]) -> None:
    """Trains the ranker on what retrieval, trained on train, gave for the validation items."""
    positions = {"selected": run} | ({EARLIER: earlier(run)} if run.config.cascade.positions > 1 else {})
    raw = {which: _requests(past, which) for which, past in positions.items()}
    moments = moments_of(joined(list(raw.values())))
    learned = [
        with_statistics(with_scaled(requests, moments), statistics_of(positions[which], which))
        for which, requests in raw.items()
    ]
    fitted = cascade.fit(
        run.config,
        learned[0],
        tables_of(run, "selected", list(moments)),
        run.folder / "checkpoints" / "cascade",
        callbacks,
        learned[1:],
    )
    say(f"cascade: {fitted.epochs} epochs, value = {_formula(fitted.weights)}")
    run.save_model(fitted.model, "ranker_selected")
    fitted.model.item_table.fill(tables_of(run, "final", list(moments)).item_columns)
    run.save_model(fitted.model, "ranker")
    write_arrays(run.folder / _UNSEEN, {"scores": fitted.scores})
    chosen = Chosen(fitted.weights, moments, fitted.epochs, fitted.curve)
    write_json(run.folder / _CHOSEN, chosen._asdict())


def _requests(run: Run, which: str) -> Requests:
    retriever = Retriever(run, which)
    return retriever.requests(retriever.holdout(), run.config.cascade.candidates)


def _formula(weights: Mapping[str, float]) -> str:
    return " + ".join(f"{weight:.4g} {name}" for name, weight in weights.items())


class Judged(NamedTuple):
    """Held-out queries with the value of every candidate, float32 [Q, C], by a ranker that had not seen them."""

    requests: Requests
    values: np.ndarray


def judge(run: Run, which: str) -> Judged:
    """What the cascade makes of the queries that retrieval has not seen.

    Args:
        run: trained.
        which: "selected" for valid, whose scores training kept, or "final" for test.
    """
    chosen, retriever = read_chosen(run), Retriever(run, which)
    raw = retriever.requests(retriever.holdout(), run.config.cascade.candidates)
    requests = with_scaled(raw, chosen.moments)
    if which == "final":
        scores = RequestScorer(run.model("ranker")).score(requests)
    else:
        with np.load(run.folder / _UNSEEN) as stored:
            scores = stored["scores"]
    return Judged(requests, values_of(run, chosen, requests, scores))


def values_of(run: Run, chosen: Chosen, requests: Requests, scores: np.ndarray) -> np.ndarray:
    """The value formula over scores of the tasks [Q, C, T], float32 [Q, C]; retrieval's where nothing is known."""
    values = np.zeros_like(requests.retrieval)
    for i, task in enumerate(run.config.ranker.tasks):
        values += np.float32(chosen.weights[task.name]) * scores[..., i]
    there = requests.columns["item"] > 0
    values += np.float32(chosen.weights[RETRIEVAL]) * np.where(there, requests.retrieval, 0)
    known = requests.columns["history"].any(axis=1, keepdims=True) | serving.knows_users(run)
    return np.where(there & known, values, requests.retrieval)


def reranked(base: Scorer, judged: Judged) -> Scorer:
    """Candidates in the order of their values before everything else in the order of retrieval."""
    items, values = judged.requests.columns["item"], judged.values

    def score(rows: np.ndarray) -> np.ndarray:
        scores = base(rows)
        scores = scores - scores.max(axis=1, keepdims=True)  # at most 0
        query, place = np.nonzero(items[rows])
        own = values[rows]
        least = np.where(items[rows] > 0, own, np.inf).min(axis=1, keepdims=True)
        scores[query, items[rows][query, place]] = (1 + own - least)[query, place]
        return scores

    return score


def report(run: Run, judged: Mapping[str, Judged]) -> dict[str, Any]:
    """Recall lost at retrieval and what the ranker wins, for several numbers of candidates; the bootstrap on test.

    Args:
        run: trained.
        judged: "valid" and "test".
    """
    config, chosen = run.config, read_chosen(run)
    k = int(config.train.monitor.rpartition("@")[2])
    found: dict[str, Any] = {"weights": chosen.weights, "epochs": chosen.epochs, "curve": chosen.curve}
    for name, (requests, values) in judged.items():
        numbers = sorted({n for n in (*config.cascade.sweep, requests.retrieval.shape[1]) if n <= values.shape[1]})
        found[name] = [_at(n, requests, values, k) for n in numbers]
    if config.evaluate.bootstrap:
        requests, values = judged["test"]
        ours, theirs = (cascade.ndcg(requests, scores, k) for scores in (values, requests.retrieval))
        found["against_retrieval"] = difference(run, f"ndcg@{k}", ours, theirs)
    return found


def _at(candidates: int, requests: Requests, values: np.ndarray, k: int) -> dict[str, float]:
    columns = {**requests.columns, "item": requests.columns["item"][:, :candidates]}
    labels, retrieval = requests.labels[:, :candidates], requests.retrieval[:, :candidates]
    cut = Requests(columns, retrieval, labels, requests.wanted)
    recall = labels[..., 0].sum(axis=1) / requests.wanted
    numbers = {"recall": recall, f"retrieval_ndcg@{k}": cascade.ndcg(cut, retrieval, k)}
    numbers |= {f"ndcg@{k}": cascade.ndcg(cut, values[:, :candidates], k)}
    return {"candidates": candidates, **{name: float(x.mean()) for name, x in numbers.items()}}


def difference(run: Run, metric: str, ours: np.ndarray, theirs: np.ndarray) -> dict[str, Any]:
    """The paired bootstrap of two metrics of the same queries, and the difference relative to the second."""
    found = bootstrap.paired(ours, theirs, run.config.evaluate.bootstrap, seed=run.config.run.seed)
    values = {"metric": metric, "cascade": float(ours.mean()), RETRIEVAL: float(theirs.mean())}
    return values | found._asdict() | {"relative": found.mean / max(float(theirs.mean()), 1e-12)}


def results_table(report: Mapping[str, Any]) -> str:
    """Numbers of candidates and what they lose and win, as text."""
    names = list(report["test"][0])
    lines = [" ".join(f"{name:>17}" for name in names)]
    lines += [" ".join(f"{row[name]:>17.4g}" for name in names) for row in report["test"]]
    for name in ("against_retrieval", "artefact"):
        if d := report.get(name):
            lines.append(
                f"{name}: {d['metric']} {d['mean']:+.4f} [{d['low']:+.4f}, {d['high']:+.4f}], {d['relative']:+.1%}"
            )
    return "\n".join(lines)
