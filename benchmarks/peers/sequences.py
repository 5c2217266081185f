"""SASRec and BERT4Rec of RecBole: its model classes, settings and Cloze masking.

RecBole's loader makes a padded sequence of every prefix of every history and learns its last item, 40 times the work
on MovieLens. Here histories are cut into windows: SASRec learns the next item at every position, as its paper does,
BERT4Rec the masked ones. What is chosen on valid: SASRec's dropout, and how long to train. A training ends when
ndcg@10 on valid has not risen for ten checks, or at the bound in CPU-seconds; the model for test is trained anew, on
train and valid, for as many epochs as were best.
"""

from __future__ import annotations

import math
import sys
import time
from typing import Any
from unittest import mock

import numpy as np
import torch

# RecBole 1.2.1 asks for names that NumPy 2 dropped.
np.float_, np.complex_, np.unicode_ = np.float64, np.complex128, np.str_  # type: ignore[attr-defined]

from protocol import METRIC, Peer, Prepared, Recommender  # noqa: E402
from recbole.config import Config  # noqa: E402
from recbole.data.interaction import Interaction  # noqa: E402
from recbole.data.transform import construct_transform  # noqa: E402
from recbole.model.sequential_recommender import BERT4Rec, SASRec  # noqa: E402
from recbole.utils import init_seed  # noqa: E402
from windows import windows  # noqa: E402

from tfrec.evaluation import ragged  # noqa: E402
from tfrec.evaluation.holdouts import last_items  # noqa: E402
from tfrec.evaluation.ragged import Ragged  # noqa: E402
from tfrec.evaluation.ranks import Holdout  # noqa: E402

SHORTEST, LONGEST, PATIENCE, SEED = 10, 50, 10, 1
BATCH = 40  # windows of 50: RecBole's 2,048 targets a step
DROPOUTS = (0.5, 0.2)  # RecBole's, and the original code's for MovieLens


class EveryPosition(SASRec):
    """SASRec that learns at every position: Kang and McAuley 2018, arXiv 1808.09781."""

    def gather_indexes(self, output: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        return output if self.training else super().gather_indexes(output, index)

    def calculate_loss(self, batch: Interaction) -> torch.Tensor:
        wanted = batch[self.POS_ITEM_ID]
        states = self.forward(batch[self.ITEM_SEQ], batch[self.ITEM_SEQ_LEN])[wanted > 0]  # [M, H]
        return self.loss_fct(states @ self.item_embedding.weight.T, wanted[wanted > 0])


def sasrec(prepared: Prepared, threads: int, seconds: float) -> Peer:
    """RecBole's SASRec with the softmax over all items."""
    torch.set_num_threads(threads)
    tried = [_choose(EveryPosition, "SASRec", prepared, seconds, dropout) for dropout in DROPOUTS]
    return _refit(EveryPosition, "SASRec", prepared, max(tried, key=lambda found: found[METRIC]))


def bert4rec(prepared: Prepared, threads: int, seconds: float) -> Peer:
    """RecBole's BERT4Rec: Sun et al. 2019, arXiv 1904.06690."""
    torch.set_num_threads(threads)
    return _refit(BERT4Rec, "BERT4Rec", prepared, _choose(BERT4Rec, "BERT4Rec", prepared, seconds, None))


class Training:
    """A RecBole model that learns from users' lists.

    Args:
        make, name: its class, and the name that RecBole keeps settings under.
        lists: ragged, the items of each user.
        items: N.
        length: most items that a sequence has.
        dropout: of states and attention; None takes RecBole's.
    """

    def __init__(self, make: type, name: str, lists: Ragged, items: int, length: int, dropout: float | None):
        settings: dict[str, Any] = {"MAX_ITEM_LIST_LENGTH": length, "use_gpu": False, "train_neg_sample_args": None}
        if dropout is not None:
            settings |= {"hidden_dropout_prob": dropout, "attn_dropout_prob": dropout}
        with mock.patch.object(sys, "argv", sys.argv[:1]):  # RecBole would read settings from our command line
            self.config = Config(model=name, dataset="events", config_dict=settings)
        init_seed(SEED, reproducibility=True)
        self.random = np.random.default_rng(SEED)
        self.lists, self.length, self.items, self.shifted = lists, length, items, make is EveryPosition
        self.transform = construct_transform(self.config)
        self.model = make(self.config, self)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=self.config["learning_rate"])
        self.epochs = 0.0  # so far

    def num(self, field: str) -> int:
        """What models and masking ask of RecBole's data set: the number of items, padding included."""
        return self.items + 1

    def epoch(self, share: float = 1.0, until: float = math.inf) -> None:
        """Learns from every sequence once, or from this share of them, or until a time of the clock."""
        rows = self._sequences()
        batches = np.array_split(self.random.permutation(len(rows)), math.ceil(len(rows) / BATCH))
        self.model.train()
        for chosen in batches[: math.ceil(share * len(batches))]:
            self._step(rows[chosen])
            self.epochs += 1 / len(batches)
            if time.process_time() > until:
                return

    def _sequences(self) -> np.ndarray:
        return windows(self.lists, self.length + self.shifted, int(self.shifted), self.random)

    def _step(self, rows: np.ndarray) -> None:
        items = torch.from_numpy(rows.astype(np.int64))
        read = items[:, : self.length] * (items[:, 1:] > 0) if self.shifted else items
        fields = {self.model.ITEM_SEQ: read, self.model.ITEM_SEQ_LEN: (read > 0).sum(1)}
        if self.shifted:
            fields[self.model.POS_ITEM_ID] = items[:, 1:]
        self.optimizer.zero_grad()
        self.model.calculate_loss(self.transform(self, Interaction(fields))).backward()
        self.optimizer.step()

    def recommender(self) -> Recommender:
        """The model as of now; nothing is known of a user without a history."""
        self.model.eval()

        def scorer(queries: Holdout) -> Any:
            recent = last_items(queries.history, self.length)
            sizes = np.count_nonzero(recent, axis=1)

            def scores(rows: np.ndarray) -> np.ndarray:
                left = np.take_along_axis(recent[rows], np.argsort(recent[rows] == 0, axis=1, kind="stable"), axis=1)
                ids, lengths = torch.from_numpy(left.astype(np.int64)), torch.from_numpy(sizes[rows]).clamp(min=1)
                with torch.no_grad():
                    batch = Interaction({self.model.ITEM_SEQ: ids, self.model.ITEM_SEQ_LEN: lengths})
                    return self.model.full_sort_predict(batch).numpy()

            return scores

        return scorer


def _choose(make: type, name: str, prepared: Prepared, seconds: float, dropout: float | None) -> dict[str, Any]:
    """The settings, the epochs that were best on valid and their ndcg@10."""
    longest = ragged.lengths(prepared.lists(0, 1)).max()
    settings = {"length": int(np.clip(longest, SHORTEST, LONGEST)), "dropout": dropout}
    training = Training(make, name, prepared.lists(0), prepared.items, **settings)
    best, since, until = {"epochs": 0.0, METRIC: -1.0}, 0, time.process_time() + seconds
    while since < PATIENCE and time.process_time() < until:
        training.epoch(until=until)
        found = prepared.choose(training.recommender())
        print(f"{name} {settings} epoch {training.epochs:.1f}: valid {METRIC} {found:.4f}", file=sys.stderr, flush=True)
        since += 1
        if found > best[METRIC]:
            best, since = {"epochs": training.epochs, METRIC: found}, 0
    ended = "no better in 10 checks" if since == PATIENCE else f"bound of {seconds:g} CPU-seconds"
    return {**settings, **best, "ended": ended}


def _refit(make: type, name: str, prepared: Prepared, chosen: dict[str, Any]) -> Peer:
    training = Training(make, name, prepared.lists(0, 1), prepared.items, chosen["length"], chosen["dropout"])
    whole = int(chosen["epochs"])
    for _ in range(whole):
        training.epoch()
    if chosen["epochs"] - whole > 1e-6:
        training.epoch(share=chosen["epochs"] - whole)
    read = ("learning_rate", "hidden_dropout_prob", "attn_dropout_prob", "n_layers", "n_heads", "hidden_size")
    return Peer(training.recommender(), {**chosen, "batch": BATCH, **{key: training.config[key] for key in read}})
