"""A two-tower model as the scorer of held-out queries."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tfrec.evaluation import metrics
from tfrec.evaluation.holdouts import last_items
from tfrec.evaluation.ranks import Holdout, Scorer, rank
from tfrec.models.two_tower import TwoTower


class RetrievalScorer:
    """Scores of a two-tower model, one compiled function for its life.

    Args:
        model: its item vectors are computed when :meth:`scorer` is called.
        batch: users at a time.
    """

    def __init__(self, model: TwoTower, batch: int = 256):
        self.model, self.batch = model, batch
        length = model.settings.history_length
        ids = tf.TensorSpec([None], tf.int32)
        self._users = tf.function(
            lambda vectors, history, user: model.user_vectors(tf.gather(vectors, history), history > 0, user)[:, -1],
            input_signature=[tf.TensorSpec([None, None], tf.float32), tf.TensorSpec([None, length], tf.int32), ids],
        )

    def item_vectors(self) -> np.ndarray:
        """float32 [N+1, d]; row 0 zeros."""
        rows = np.arange(self.model.sizes["items"] + 1, dtype=np.int32)
        return np.concatenate([self.model.item_vectors(rows[i : i + 4096]).numpy() for i in range(0, len(rows), 4096)])

    def scorer(self, holdout: Holdout) -> Scorer:
        """The model as of now as a scorer of these queries."""
        vectors = self.item_vectors()
        history = last_items(holdout.history, self.model.settings.history_length)
        table = tf.constant(vectors)
        return lambda rows: self._users(table, history[rows], holdout.users[rows]).numpy() @ vectors.T

    def metrics(self, holdout: Holdout, k: tuple[int, ...]) -> dict[str, float]:
        """Mean hr, ndcg, mrr, recall and map at each K."""
        ranks = rank(self.scorer(holdout), holdout, self.model.sizes["items"], self.batch, top=0)
        return {name: float(values.mean()) for name, values in metrics.per_query(ranks, k).items()}
