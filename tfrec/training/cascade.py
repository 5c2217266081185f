"""Fits the ranker of a cascade on what retrieval gave for held-out items that it had not seen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfrec.config import Config
from tfrec.errors import TrainingError
from tfrec.models.ranking.ranker import Ranker
from tfrec.models.ranking.signals import PREFIX, RETRIEVAL
from tfrec.training.candidates import Batch
from tfrec.training.fitting import train_once
from tfrec.training.objectives import Objective
from tfrec.training.ranking import RankingTables, filled_ranker, task_loss

COMPARING = ("bpr", "listwise")
_NEVER = -1e9  # a logit of what is no candidate
_AT_ONCE = 64
_PRIORS = np.geomspace(0.05, 20, 60)
_MIXED = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)


@dataclass(frozen=True)
class Requests:
    """What retrieval gives for held-out queries.

    Args:
        columns: of the ranker: "user" int32 [Q], "item" int32 [Q, C], best first, 0 = none, "history" int32 [Q, L],
            and signals float32 [Q, C].
        retrieval: scores float32 [Q, C]; the lowest float32 where there is no item.
        labels: float32 [Q, C, T].
        wanted: held-out items of each query, among the candidates or not, int64 [Q].
    """

    columns: Mapping[str, np.ndarray]
    retrieval: np.ndarray
    labels: np.ndarray
    wanted: np.ndarray

    def __len__(self) -> int:
        return len(self.wanted)

    def take(self, rows: np.ndarray) -> Requests:
        """The queries of these rows."""
        columns = {name: column[rows] for name, column in self.columns.items()}
        return Requests(columns, self.retrieval[rows], self.labels[rows], self.wanted[rows])


def joined(parts: Sequence[Requests]) -> Requests:
    """The queries of all, one after the other."""
    columns = {name: np.concatenate([part.columns[name] for part in parts]) for name in parts[0].columns}
    arrays = (np.concatenate([getattr(part, name) for part in parts]) for name in ("retrieval", "labels", "wanted"))
    return Requests(columns, *arrays)


class FittedRanker(NamedTuple):
    """What training chose.

    Args:
        model: trained on every query.
        epochs: that it was trained for.
        scores: of the tasks, float32 [Q, C, T], each query's by a ranker that had not seen its user.
        weights: of the value formula.
        curve: mean NDCG of queries that a ranker had not seen, after each epoch.
    """

    model: Ranker
    epochs: int
    scores: np.ndarray
    weights: dict[str, float]
    curve: list[float]


@dataclass(frozen=True)
class RequestBatches:
    """Batches of requests, in an order that is a function of seed and epoch alone; the last is filled up."""

    requests: Requests
    batch: int
    seed: int

    @cached_property
    def steps(self) -> int:
        """Batches of an epoch."""
        return -(-len(self.requests) // self.batch)

    def dataset(self, epoch: int, first_step: int = 0) -> tf.data.Dataset:
        """{column: [B, …], "label": [B, C, T]} from ``first_step`` on."""
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.requests))
        rows = np.resize(order, self.steps * self.batch).reshape(self.steps, self.batch)[first_step:]
        table = {**self.requests.columns, "label": self.requests.labels}
        tensors = {name: tf.constant(column) for name, column in table.items()}
        return tf.data.Dataset.from_tensor_slices(rows).map(
            lambda row: {
                name: tf.ensure_shape(tf.gather(x, row), [self.batch, *x.shape[1:]]) for name, x in tensors.items()
            }
        )


def fit(
    config: Config,
    requests: Requests,
    tables: RankingTables,
    folder: Path,
    callbacks: Callable[[], Sequence[keras.callbacks.Callback]] = list,
    earlier: Sequence[Requests] = (),
) -> FittedRanker:
    """Chooses epochs and weights by queries that a ranker has not seen, then trains on all.

    Users are cut into folds. Rankers of all folds but one say how many epochs are best; trained anew for so many,
    they score their own fold, on which the weights of the value formula are chosen. Queries of earlier positions are
    learned from and choose nothing.

    Args:
        config: the settings.
        requests: Q queries of as many users, of which retrieval has not seen the held-out items.
        tables: of the stage that retrieval was trained on.
        folder: of checkpoints; a killed fit continues from it.
        callbacks: makes further Keras callbacks, anew for each training.
        earlier: queries of the same users at earlier positions.

    Raises:
        TrainingError: a fold has no query whose held-out item is a candidate.
    """
    k = int(config.train.monitor.rpartition("@")[2])
    learned = joined([requests, *earlier])
    users, place = np.unique(learned.columns["user"], return_inverse=True)
    parts = (np.random.default_rng(config.run.seed).permutation(len(users)) % config.cascade.folds)[place]
    prior = likeliest_prior(learned)

    def train(known: np.ndarray, epochs: int, name: str, judged: np.ndarray | None = None) -> tuple[Ranker, list]:
        usable = learned.take(known[learned.labels[known, :, 0].max(axis=1) > 0])
        if not len(usable):
            raise TrainingError(
                "a ranker needs held-out items among the candidates", 0, "Set cascade.candidates higher"
            )
        validate = None if judged is None else _judge(config, requests.take(judged), k)
        return _train(config, usable, tables, prior, epochs, folder / name, callbacks(), validate)

    most = config.cascade.epochs
    folds = [
        (np.flatnonzero(parts != i), np.flatnonzero(parts[: len(requests)] == i)) for i in range(config.cascade.folds)
    ]
    fitted = [train(known, most, f"fold_{i}", judged) for i, (known, judged) in enumerate(folds)]
    curve = _mean_curve([[log["val_ndcg"] for log in logs] for _, logs in fitted], [len(judged) for _, judged in folds])
    epochs = int(np.argmax(curve)) + 1
    scores = np.zeros(requests.labels.shape, np.float32)
    for i, (known, judged) in enumerate(folds):
        model = fitted[i][0] if epochs == most else train(known, epochs, f"fold_{i}_again")[0]
        scores[judged] = RequestScorer(model).score(requests.take(judged))
    weights = choose_weights(config, requests, scores, prior, k)
    model, _ = train(np.arange(len(learned)), epochs, "all")
    return FittedRanker(model, epochs, scores, weights, curve)


def _mean_curve(curves: Sequence[Sequence[float]], sizes: Sequence[int]) -> list[float]:
    """The mean over queries of what folds of these sizes reach after each epoch."""
    return [float(value) for value in np.average(np.array(curves), axis=0, weights=sizes)]


def _train(
    config: Config,
    requests: Requests,
    tables: RankingTables,
    prior: float,
    epochs: int,
    folder: Path,
    callbacks: Sequence[keras.callbacks.Callback],
    validate: Callable[[Ranker], Callable[[], dict[str, float]]] | None,
) -> tuple[Ranker, list[dict[str, float]]]:
    settings, seed = config.cascade, config.run.seed
    keras.utils.set_random_seed(seed)
    batch = min(settings.batch, len(requests))
    changes = {"optimizer": "adamw", "learning_rate": settings.learning_rate, "weight_decay": settings.weight_decay}
    own = config.train.model_copy(update=changes | {"accumulate": 1, "checkpoint_steps": 0, "jit": False})
    return train_once(
        config.model_copy(update={"train": own}),
        RequestBatches(requests, batch, seed),
        lambda: build(config, tables, prior),
        objective,
        validate or (lambda model: dict),
        epochs,
        folder,
        callbacks,
    )


def build(config: Config, tables: RankingTables, prior: float) -> Ranker:
    """A fresh ranker that orders candidates as retrieval does.

    Args:
        config: the settings.
        tables: fill the stored features.
        prior: multiple of retrieval's score in the first logit.
    """
    model = filled_ranker(config, config.cascade.kind, tables)
    model.prior.assign(prior)
    for layer in (layer for _, head in model.members if head is not None for layer in head.towers.last):
        layer.kernel.assign(tf.zeros(layer.kernel.shape))
    return model


def objective(model: Ranker) -> Objective:
    """The weighted sum of the tasks' losses of every request; what is no candidate adds nothing."""
    tasks = model.settings.tasks

    def requests_loss(batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
        inputs = {name: value for name, value in batch.items() if name not in ("label", "clock")}
        there = batch["item"] > 0
        logits = model(inputs, training=True)
        total = tf.zeros(tf.shape(there)[:1])
        for i, task in enumerate(tasks):
            labels = tf.where(there, batch["label"][..., i], 0.0 if task.loss in COMPARING else float("nan"))
            members = model.of_members(logits[task.name])
            if task.loss in COMPARING:
                members = [tf.where(there, own, _NEVER) for own in members]
            total += task.weight * tf.add_n([task_loss(task, own, labels) for own in members]) / len(members)
        return tf.reduce_sum(total), tf.cast(tf.size(total), tf.float32)

    return requests_loss


class RequestScorer:
    """Scores of a ranker's tasks, one compiled function for its life."""

    def __init__(self, model: Ranker):
        self.model = model
        self._scores = tf.function(
            lambda inputs: list(model.scores(model(inputs)).values()), reduce_retracing=True, autograph=False
        )

    def score(self, requests: Requests) -> np.ndarray:
        """float32 [Q, C, T]."""
        parts = [
            np.stack([x.numpy() for x in self._scores(columns)], axis=-1)
            for columns in (
                {name: tf.constant(x[low : low + _AT_ONCE]) for name, x in requests.columns.items()}
                for low in range(0, len(requests), _AT_ONCE)
            )
        ]
        return np.concatenate(parts)


def _judge(config: Config, requests: Requests, k: int) -> Callable[[Ranker], Callable[[], dict[str, float]]]:
    def of_model(model: Ranker) -> Callable[[], dict[str, float]]:
        scorer = RequestScorer(model)
        return lambda: {"val_ndcg": float(ndcg(requests, scorer.score(requests)[..., 0], k).mean())}

    return of_model


def likeliest_prior(requests: Requests) -> float:
    """The multiple of retrieval's scores whose softmax over candidates gives the held-out ones the best chance."""
    some = requests.take(np.flatnonzero(requests.labels[..., 0].max(axis=1) > 0)) if len(requests) else requests
    if not len(some):
        return 1.0
    signal = some.columns[PREFIX + RETRIEVAL].astype(np.float64)
    shares = some.labels[..., 0] / some.labels[..., 0].sum(axis=1, keepdims=True)

    def loss(prior: float) -> float:
        logits = np.where(some.columns["item"] > 0, prior * signal, -np.inf)
        logits -= logits.max(axis=1, keepdims=True)
        chances = np.exp(logits)
        return -float(np.sum(shares * np.log(chances / chances.sum(axis=1, keepdims=True) + 1e-30)))

    return float(min(_PRIORS, key=loss))


def choose_weights(config: Config, requests: Requests, scores: np.ndarray, prior: float, k: int) -> dict[str, float]:
    """Weights of the value formula, of the first task and retrieval, that order unseen queries best.

    Retrieval alone is one of the choices; tasks but the first weigh 0 until a caller says otherwise.
    """
    first, *others = [task.name for task in config.ranker.tasks]
    scale = prior * _retrieval_scale(requests)
    choices = [(1.0, more * scale) for more in _MIXED] + [(0.0, 1.0)]
    found = np.where(requests.columns["item"] > 0, requests.retrieval, 0)
    worth = [float(ndcg(requests, a * scores[..., 0] + b * found, k).mean()) for a, b in choices]
    own, retrieval = choices[int(np.argmax(worth))]
    return {first: own, **dict.fromkeys(others, 0.0), RETRIEVAL: round(retrieval, 6)}


def _retrieval_scale(requests: Requests) -> float:
    """Of the signal over the score itself."""
    there = requests.columns["item"] > 0
    return float(requests.columns[PREFIX + RETRIEVAL][there].std() / max(requests.retrieval[there].std(), 1e-9))


def ndcg(requests: Requests, scores: np.ndarray, k: int) -> np.ndarray:
    """NDCG@K of candidates ordered by scores [Q, C], over all that was wanted, float64 [Q]."""
    scores = np.where(requests.columns["item"] > 0, scores, -np.inf)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    gains = np.take_along_axis(requests.labels[..., 0], order, axis=1)
    discounts = 1 / np.log2(np.arange(2, k + 2))
    ideal = np.cumsum(discounts)[np.minimum(requests.wanted, k) - 1]
    return gains @ discounts[: gains.shape[1]] / ideal
