from __future__ import annotations

import numpy as np
import pytest
import world
from test_holdouts import EVENTS

from tfrec.errors import DataError
from tfrec.evaluation.holdouts import make_holdout
from tfrec.training.retrieval import build
from tfrec.training.validation import RetrievalScorer


@pytest.fixture(scope="module")
def scorer() -> RetrievalScorer:
    config = world.settings({"user_id": True})
    return RetrievalScorer(build(config, world.retrieval_data(config, world.checkerboard(4, 9, 1, 0))))


def test_scores_are_inner_products_of_the_model_s_vectors(scorer: RetrievalScorer) -> None:
    holdout = make_holdout(EVENTS, 4, 2, "mask")
    scores = scorer.scorer(holdout)(np.array([1, 0]))
    model = scorer.model
    history = np.array([[0, 0, 0, 0, 0, 5], [0, 0, 0, 1, 2, 3]], np.int32)
    users = model({"history": history, "user": np.array([2, 1], np.int32)}).numpy()[:, -1]
    items = model.item_vectors(np.arange(10)).numpy()
    np.testing.assert_allclose(scores, users @ items.T, atol=1e-6)


def test_a_scorer_keeps_the_model_of_its_moment_and_the_next_one_is_new(scorer: RetrievalScorer) -> None:
    holdout, table = make_holdout(EVENTS, 4, 2, "mask"), scorer.model.item_tower.id_embedding.embeddings
    first = scorer.scorer(holdout)
    before = first(np.array([0]))
    table.assign(-table.numpy())
    np.testing.assert_array_equal(first(np.array([0])), before)
    assert np.abs(scorer.scorer(holdout)(np.array([0])) - before).max() > 1e-3


def test_metrics_have_names_and_are_shares(scorer: RetrievalScorer) -> None:
    found = scorer.metrics(make_holdout(EVENTS, 4, 2, "mask"), (1, 9))
    assert {"hr@1", "ndcg@9", "mrr@9"} <= found.keys()
    assert found["hr@9"] == 1.0  # every item is among the first nine of nine
    assert all(0 <= value <= 1 for value in found.values())


def test_a_target_outside_the_catalogue_is_refused(scorer: RetrievalScorer) -> None:
    far = {**EVENTS, "item": np.where(EVENTS["item"] == 4, 99, EVENTS["item"]).astype(np.int32)}
    with pytest.raises(DataError, match="99"):
        scorer.metrics(make_holdout(far, 4, 2, "mask"), (1,))
