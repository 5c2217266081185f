"""Every body and head under the shared contract, and formulas against numbers made by hand."""

from __future__ import annotations

from pathlib import Path

import contracts
import keras
import numpy as np
import pytest
import tensorflow as tf
from contracts import BINARY, MONEY, STAY, batch, make, ranker_contract
from hypothesis import given, settings
from hypothesis import strategies as st

from tfrec.models.ranking.dcn import Cross
from tfrec.models.ranking.din import TargetAttention, masked_softmax
from tfrec.models.ranking.esmm import logit_of_product
from tfrec.models.ranking.fields import Field, FieldVectors, LinearTerms
from tfrec.models.ranking.fm import pairwise
from tfrec.models.ranking.mmoe import Mixture
from tfrec.models.ranking.ranker import BODIES
from tfrec.ranker_config import Task
from tfrec.training.ranking import objective, task_loss

TWO = (Task(name="click", column="click"), Task(name="buy", column="buy"))


@pytest.mark.parametrize("kind", [*BODIES])
def test_a_body_keeps_the_contract(kind: str, tmp_path: Path) -> None:
    crosses = () if kind in ("fm", "dcn") else (("user", "tags"),)
    ranker_contract(tmp_path, kind, tasks=(BINARY,), crosses=crosses, cross_rows=11)


@pytest.mark.parametrize("head", ["shared", "mmoe", "ple", "esmm"])
def test_a_head_keeps_the_contract(head: str, tmp_path: Path) -> None:
    tasks = TWO if head == "esmm" else (BINARY, MONEY, STAY, Task(name="stars", kind="number"))
    ranker_contract(tmp_path, "wide_deep", tasks=tasks, head=head, tower=(5,), experts=2, expert_units=4)


def test_a_mixture_of_low_rank_crosses_keeps_the_contract(tmp_path: Path) -> None:
    ranker_contract(tmp_path, "dcn", tasks=(BINARY,), cross_rank=2, cross_experts=3)


def test_uncertainties_are_learned_with_the_tasks(tmp_path: Path) -> None:
    ranker_contract(tmp_path, "deepfm", tasks=TWO, weighting="uncertainty")


def test_a_ranker_runs_inside_a_graph_for_any_number_of_candidates() -> None:
    model = make("din", tasks=(BINARY,))
    inputs = batch(2, candidates=3)
    shapes = {name: tf.TensorSpec([None, *v.shape[1:]], v.dtype) for name, v in inputs.items()}
    shapes["item"] = tf.TensorSpec([None, None], tf.int32)
    graph = tf.function(lambda x: model(x), input_signature=[shapes])
    for rows, candidates in ((2, 3), (1, 5), (0, 2), (2, 0)):
        inputs = batch(rows, candidates) if candidates else {**batch(rows), "item": np.zeros((rows, 0), np.int32)}
        inputs = {name: tf.constant(value) for name, value in inputs.items()}
        np.testing.assert_allclose(graph(inputs)["like"], model(inputs)["like"], rtol=1e-5, atol=1e-6)


def test_a_position_is_learned_and_left_out_of_scores(tmp_path: Path) -> None:
    from tfrec.models.ranking.ranker import Ranker

    sizes = contracts.SIZES._replace(
        fields=tuple(f for f in contracts.FIELDS if f.side != "item" or f.name == "item"),
        history=("item",),
        positions=4,
    )
    settings = contracts.Settings(**{**contracts.SMALL, "dropout": 0.0, "position": "place", "tasks": (BINARY,)})
    model = Ranker("wide_deep", sizes, settings, {"age": ((contracts.USERS + 1,), "float32")}, {})
    model.build()
    model.position.set_weights([np.array([[9.0], [1.0], [2.0], [3.0]])])
    inputs = {**batch(4), "place": np.array([[0], [1], [2], [3]], np.int32)}
    plain, biased = model(inputs)["like"], model(inputs, training=True)["like"]
    np.testing.assert_allclose(biased - plain, [0, 1, 2, 3], atol=1e-6)  # an unknown place has no bias


def test_members_keep_the_contract(tmp_path: Path) -> None:
    ranker_contract(tmp_path, "deepfm", tasks=(BINARY, MONEY, STAY), members=3, crosses=())


def test_members_learn_from_their_own_losses_and_speak_with_one_voice() -> None:
    tasks = (BINARY, MONEY)
    model = make("wide_deep", tasks=tasks, members=2, dropout=0.0, weighting="uncertainty")
    inputs = {**batch(6), "label": contracts.labels(model, 6), "weight": np.ones(6, np.float32)}
    logits = model(batch(6))
    whole = model.predictions(logits)
    alone = [make("wide_deep", tasks=tasks).predictions({n: x[..., i] for n, x in logits.items()}) for i in range(2)]
    for name, values in whole.items():
        assert not np.allclose(alone[0][name], alone[1][name])
        np.testing.assert_allclose(values, (alone[0][name] + alone[1][name]) / 2, rtol=1e-6)
    losses = [
        task_loss(task, logits[task.name][..., i], inputs["label"][:, place])
        for place, task in enumerate(tasks)
        for i in range(2)
    ]
    total, weight = objective(model)({name: tf.constant(x) for name, x in inputs.items()})
    assert float(total) == pytest.approx(float(tf.reduce_sum(losses)) / 2, rel=1e-5) and float(weight) == 6


def test_a_linear_term_shifts_every_hazard_and_the_chance_of_money_alone() -> None:
    model = make("wide_deep", tasks=(STAY, MONEY), crosses=())
    before = model(batch(2))
    model.body.linear.bias.assign(2.0)
    after = model(batch(2))
    np.testing.assert_allclose(after["stay"] - before["stay"], np.full((2, 4), 2.0), rtol=1e-5)
    np.testing.assert_allclose(after["money"] - before["money"], [[2, 0, 0]] * 2, atol=1e-6)


def test_the_loss_of_survival_reads_spells_from_its_label() -> None:
    hazards = tf.zeros((5, 4))  # a half in every period
    halves = task_loss(STAY, hazards, tf.constant([0.0, 0.5, 1.0, 2.5, np.nan])) / np.log(2)
    np.testing.assert_allclose(halves, [1, 0, 2, 2, 0], rtol=1e-6)
    assert task_loss(STAY, tf.zeros((2, 3, 4)), tf.zeros((2, 3))).shape == (2,)


# Formulas


def test_field_vectors_by_hand() -> None:
    fields = (Field("tags", "item", "index", 3), Field("age", "user", "number", 1), Field("image", "item", "vector", 2))
    layer = FieldVectors(fields, 2, history=("tags",), events=2, pooled=True, ages=3)
    layer.build()
    layer.maps["tags"].set_weights([np.array([[9.0, 9.0], [1.0, 2.0], [3.0, 6.0]])])
    layer.number_map.set_weights([np.array([[1.0, -1.0]]), np.array([[0.5, 0.5]])])
    layer.maps["image"].set_weights([np.eye(2)])
    layer.event_map.set_weights([np.array([[0.0, 0.0], [10.0, 10.0]])])
    layer.age_map.set_weights([np.array([[9.0, 9.0], [0.0, 100.0], [200.0, 0.0]])])
    inputs = {
        "item": tf.constant([[1, 2]]),
        "tags": tf.constant([[[1, 2], [0, 0]]]),
        "age": tf.constant([2.0]),
        "image": tf.constant([[[7.0, 8.0], [5.0, 6.0]]]),
        "history_item": tf.constant([[0, 4, 5]]),
        "history_tags": tf.constant([[[1, 0], [1, 0], [2, 1]]]),
        "history_event": tf.constant([[1, 1, 0]]),
        "history_age": tf.constant([[1, 2, 0]]),
    }
    got = layer(inputs)
    assert got.shape == (1, 2, 4, 2)
    # Items 4 and 5 of the history are [1, 2] + [10, 10] + [200, 0] and the mean of [3, 6] and [1, 2] of unknown age;
    # the padding does not count.
    pooled = [(211 + 2) / 2, (12 + 4) / 2]
    np.testing.assert_allclose(got[0, 0], [[2, 4], [2.5, -1.5], [7, 8], pooled])
    np.testing.assert_allclose(got[0, 1], [[0, 0], [2.5, -1.5], [5, 6], pooled])


def test_linear_terms_by_hand() -> None:
    fields = (Field("user", "user", "index", 3), Field("tags", "item", "index", 3), Field("price", "item", "number", 1))
    layer = LinearTerms(fields, [("user", "tags")], 1000)
    layer.build()
    layer.maps["user"].set_weights([np.array([[7.0], [1.0], [2.0]])])
    layer.maps["tags"].set_weights([np.array([[7.0], [10.0], [20.0]])])
    layer.slopes.assign([[100.0]])
    rows = np.arange(1001, dtype=np.float32)[:, None] * 1000
    layer.pairs[0].set_weights([rows])
    layer.bias.assign(0.5)
    inputs = {
        "user": tf.constant([2]),
        "item": tf.constant([[1, 2]]),
        "tags": tf.constant([[[1, 2], [0, 0]]]),
        "price": tf.constant([[1.0, -1.0]]),
    }
    crossed = layer._pairs(tf.constant([[[2]]]), tf.constant([[[1, 2]]])).numpy()[0, 0]
    assert len(set(crossed)) == 2 and (crossed > 0).all()
    np.testing.assert_allclose(layer(inputs)[0], [0.5 + 2 + 15 + 100 + 1000 * crossed.mean(), 0.5 + 2 - 100])


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 100))
def test_the_products_of_all_pairs_equal_a_loop(fields: int, width: int, seed: int) -> None:
    v = np.random.default_rng(seed).normal(size=(2, 3, fields, width))
    expected = sum(np.sum(v[:, :, i] * v[:, :, j], -1) for i in range(fields) for j in range(i))
    np.testing.assert_allclose(pairwise(tf.constant(v)), expected + np.zeros((2, 3)), atol=1e-9)


def test_a_full_cross_by_hand() -> None:
    layer = Cross()
    layer.build((None, 2))
    layer.set_weights([np.array([[1.0, 0.0], [2.0, 1.0]]), np.array([0.5, 0.0])])
    got = layer(tf.constant([[1.0, 10.0]]), tf.constant([[1.0, 1.0]]))
    np.testing.assert_allclose(got, [[1 * (3 + 0.5) + 1, 10 * 1 + 1]])


def test_a_mixture_of_crosses_is_the_gated_sum_of_its_experts() -> None:
    keras.utils.set_random_seed(0)
    layer = Cross(rank=2, experts=3)
    layer.build((None, 4))
    layer.bias.assign([0.1, 0.2, 0.3, 0.4])
    x0, x = (np.random.default_rng(i).normal(size=4) for i in range(2))
    down, core, up, gate = (np.asarray(w) for w in (layer.down, layer.core, layer.up, layer.gate))
    weight = np.exp(x @ gate) / np.exp(x @ gate).sum()
    expert = [x0 * (np.tanh(np.tanh(x @ down[e]) @ core[e]) @ up[e] + np.asarray(layer.bias)) for e in range(3)]
    expected = sum(w * part for w, part in zip(weight, expert, strict=True)) + x
    got = layer(tf.constant(x0[None], tf.float32), tf.constant(x[None], tf.float32))
    np.testing.assert_allclose(got[0], expected, rtol=1e-5)


def test_attention_weights_are_shares_of_what_is_there() -> None:
    weights = masked_softmax(tf.constant([[[0.0, 0.0, 90.0]], [[1.0, 2.0, 3.0]]]), [[True, True, False], [False] * 3])
    np.testing.assert_allclose(weights, [[[0.5, 0.5, 0]], [[0, 0, 0]]])


def test_a_candidate_sees_the_mean_of_a_history_of_equals_and_nothing_of_none() -> None:
    layer = TargetAttention((3,))
    layer.build((None, None, 2))
    history = tf.constant([[[5.0, 5.0], [1.0, 2.0], [1.0, 2.0]]])
    candidates = tf.constant([[[0.3, 0.1], [7.0, -2.0]]])
    np.testing.assert_allclose(
        layer(candidates, history, np.array([[False, True, True]])), [[[1, 2], [1, 2]]], rtol=1e-6
    )
    assert not layer(candidates, history, np.zeros((1, 3), bool)).numpy().any()


def test_a_mixture_by_hand() -> None:
    layer = Mixture(2)
    layer.build((None, 1))
    layer.gate.set_weights([np.array([[0.0, np.log(3.0)]])])
    got = layer(tf.constant([[1.0]]), tf.constant([[[0.0, 4.0], [8.0, 0.0]]]))
    np.testing.assert_allclose(got, [[6.0, 1.0]], rtol=1e-6)


@settings(max_examples=100, deadline=None)
@given(st.floats(-15, 15), st.floats(-15, 15))
def test_the_logit_of_a_product_is_that_of_the_probability(a: float, b: float) -> None:
    p = 1 / (1 + np.exp(-np.float64(a))) / (1 + np.exp(-np.float64(b)))
    got = float(logit_of_product(tf.constant(a, tf.float64), tf.constant(b, tf.float64)))
    assert got == pytest.approx(np.log(p) - np.log1p(-p), rel=1e-6, abs=1e-6)


def test_the_logit_of_a_product_is_finite_far_out() -> None:
    for a, b in ((200.0, 200.0), (-200.0, 200.0), (-200.0, -200.0)):
        assert np.isfinite(logit_of_product(tf.constant(a), tf.constant(b)))


def test_a_purchase_is_never_more_likely_than_its_click() -> None:
    model = make("wide_deep", tasks=TWO, head="esmm", crosses=())
    model.body.linear.bias.assign(3.0)
    found = model.predictions(model(batch(50)))
    assert (found["buy"].numpy() <= found["click"].numpy() + 1e-6).all()
