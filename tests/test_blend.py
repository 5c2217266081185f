"""The blend in the graph against plain numpy, and what is chosen for it on a world with a known answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tfrec.evaluation.baselines.blend import standardize as numpy_standardize
from tfrec.evaluation.ranks import Holdout, rank
from tfrec.evaluation.whitening import whiten
from tfrec.models.blend import LINEAR, SPIKY, Blend, standardize
from tfrec.serving import ServedBlend
from tfrec.training import blending

ITEMS = 6


def make(weights: dict[str, float], decays: dict[str, float], neighbours: int = ITEMS + 1) -> tuple[Blend, np.ndarray]:
    random = np.random.default_rng(0)
    linear = random.normal(size=(ITEMS + 1, ITEMS + 1)).astype(np.float32)
    linear[0] = linear[:, 0] = 0
    texts = random.normal(size=(ITEMS + 1, 3)).astype(np.float32)
    blend = Blend(weights, decays, ITEMS, neighbours, 3)
    blend.build()
    blend.fill(dict.fromkeys(LINEAR, linear), texts, np.arange(ITEMS + 1, dtype=np.float32))
    return blend, linear


def scores(blend: Blend, history: list[list[int]]) -> np.ndarray:
    """What is added to cosines that are all equal."""
    return blend(tf.zeros([len(history), ITEMS + 1]), tf.constant(history, tf.int32)).numpy()


def test_z_scores_leave_out_column_0_and_are_zero_where_all_are_equal() -> None:
    z = standardize(tf.constant([[99.0, 1.0, 3.0], [7.0, 2.0, 2.0]])).numpy()
    np.testing.assert_allclose(z[:, 1:], [[-1.0, 1.0], [0.0, 0.0]])


def z(row: np.ndarray) -> np.ndarray:
    return (row[1:] - row[1:].mean()) / row[1:].std()


def squashed(row: np.ndarray) -> np.ndarray:
    return z(np.append(0.0, np.arcsinh(z(row))))


def test_neighbours_by_hand() -> None:
    blend, linear = make({"neighbours": 0.5}, {"neighbours": 0.8})
    expected = linear[2] + 0.8 * linear[5]  # 2 is the last, 5 the one before; 0 is padding
    np.testing.assert_allclose(scores(blend, [[0, 5, 2]])[0, 1:], 0.5 * squashed(expected), rtol=1e-5)


def test_popularity_is_the_same_for_everybody() -> None:
    blend, _ = make({"popularity": 2.0}, {})
    expected = 2 * z(np.arange(ITEMS + 1.0))
    np.testing.assert_allclose(scores(blend, [[1], [4]])[:, 1:], [expected, expected], rtol=1e-5)


def test_the_model_has_a_weight_and_may_have_none() -> None:
    cosine = tf.constant([[0.0, *range(ITEMS)]])
    history = tf.constant([[3]])
    heavy, _ = make({"model": 3.0}, {})
    np.testing.assert_allclose(heavy(cosine, history), 3 * standardize(cosine), rtol=1e-6)
    deaf, _ = make({"popularity": 1.0}, {})
    np.testing.assert_allclose(deaf(cosine, history), deaf(-cosine, history))
    nothing, _ = make({}, {})
    np.testing.assert_allclose(nothing(cosine, history), tf.zeros_like(cosine))


def test_an_item_counts_once_at_its_last_place_but_each_time_elsewhere() -> None:
    once, linear = make({"neighbours": 1.0}, {"neighbours": 0.5})
    expected = squashed(linear[3] + 0.5 * linear[4])
    np.testing.assert_allclose(scores(once, [[3, 4, 3]])[0, 1:], expected, rtol=1e-4, atol=1e-6)
    repeats, _ = make({"transitions": 1.0}, {"transitions": 0.5})
    expected = squashed(1.25 * linear[3] + 0.5 * linear[4])
    np.testing.assert_allclose(scores(repeats, [[3, 4, 3]])[0, 1:], expected, rtol=1e-4, atol=1e-6)
    often, _ = make({"frequency": 1.0}, {"frequency": 0.5})
    counts = np.zeros(ITEMS + 1)
    counts[3], counts[4] = 1.25, 0.5
    np.testing.assert_allclose(scores(often, [[3, 4, 3]])[0, 1:], squashed(counts), rtol=1e-5)


def test_only_the_largest_neighbours_are_kept() -> None:
    blend, linear = make({"neighbours": 1.0}, {"neighbours": 1.0}, neighbours=2)
    kept = np.where(np.abs(linear[4]) >= np.sort(np.abs(linear[4]))[-2], linear[4], 0)
    np.testing.assert_allclose(scores(blend, [[4]])[0, 1:], squashed(kept), rtol=1e-5)


@pytest.mark.parametrize("name", ["neighbours", "transitions", "text", "frequency"])
@pytest.mark.parametrize("decay", [0.6, 1.0])
def test_the_graph_equals_what_the_choice_is_made_with(name: str, decay: float) -> None:
    random = np.random.default_rng(1)
    history = random.integers(0, ITEMS + 1, (20, 7)).astype(np.int32)
    history[:, 0] = 0
    blend, linear = make({name: 1.0}, {name: decay})
    profile = blending.profile(history, decay, ITEMS, distinct=name in ("neighbours", "text"))
    texts = blend.texts.numpy() if name == "text" else None
    expected = {
        "neighbours": lambda: profile @ linear,
        "transitions": lambda: profile @ linear,
        "text": lambda: profile @ texts @ texts.T,
        "frequency": lambda: profile,
    }[name]()
    expected = numpy_standardize(expected)
    if name in SPIKY:
        expected = numpy_standardize(np.arcsinh(expected))
    # A history of padding alone has equal scores in both.
    np.testing.assert_allclose(scores(blend, history.tolist())[:, 1:], expected[:, 1:], rtol=1e-3, atol=2e-4)


def test_empty_batches_and_histories() -> None:
    parts = ("neighbours", "transitions", "text", "frequency")
    blend, _ = make(dict.fromkeys(("model", *parts), 1.0), dict.fromkeys(parts, 0.9))
    assert blend(tf.zeros([0, ITEMS + 1]), tf.zeros([0, 4], tf.int32)).shape == (0, ITEMS + 1)
    cosine = tf.constant([[0.0, *range(ITEMS)]])
    for history in (tf.zeros([1, 4], tf.int32), tf.zeros([1, 0], tf.int32)):
        np.testing.assert_allclose(blend(cosine, history), standardize(cosine))


def test_new_items_have_no_neighbours_and_their_own_text() -> None:
    """A blend of N items in a catalogue of N + 2 equals one that was built with two empty rows more."""
    names = ("neighbours", "transitions", "text", "popularity", "frequency")
    weights, decays = dict.fromkeys(("model", *names), 1.0), dict.fromkeys(names, 0.8)
    small, linear = make(weights, decays)
    texts = np.concatenate([small.texts.numpy(), np.random.default_rng(3).normal(size=(2, 3))]).astype(np.float32)
    large = Blend(weights, decays, ITEMS + 2, ITEMS + 1, 3)
    large.build()
    popularity = np.pad(small.popularity.numpy(), (0, 2))
    large.fill(dict.fromkeys(LINEAR, np.pad(linear, (0, 2))), texts, popularity)
    cosine = tf.random.stateless_normal([3, ITEMS + 3], [1, 2])
    history = tf.constant([[0, 1, ITEMS + 1, 3], [ITEMS + 2, 2, ITEMS + 2, 2], [0, 0, 0, ITEMS + 2]])
    expected = large(cosine, history).numpy()
    np.testing.assert_allclose(small(cosine, history, texts)[:, 1:], expected[:, 1:], rtol=1e-4, atol=1e-5)
    large.texts.assign(np.pad(small.texts.numpy(), [(0, 2), (0, 0)]))
    expected = large(cosine, history).numpy()
    np.testing.assert_allclose(small(cosine, history)[:, 1:], expected[:, 1:], rtol=1e-4, atol=1e-5)


def text_blend(texts: np.ndarray) -> Blend:
    blend = Blend({"text": 1.0}, {"text": 0.9}, len(texts) - 1, text_width=texts.shape[1])
    blend.build()
    blend.fill({}, texts, np.zeros(len(texts), np.float32))
    return blend


def test_texts_of_new_items_reach_a_blend_of_the_catalogue_s_own_or_whitened() -> None:
    catalogue = np.random.default_rng(4).normal(size=(9, 3)).astype(np.float32)
    catalogue[[0, 4]] = 0
    shared = ServedBlend(text_blend(catalogue), catalogue)
    assert shared.texts is None and not shared.keeps_texts
    turned = whiten(catalogue) @ np.linalg.qr(np.random.default_rng(5).normal(size=(3, 3)))[0].astype(np.float32)
    whitened = ServedBlend(text_blend(turned), catalogue)
    assert whitened.whitening is not None and whitened.texts is not None and not whitened.keeps_texts
    np.testing.assert_allclose(whitened.texts @ whitened.texts.T, turned @ turned.T, atol=1e-5)
    np.testing.assert_array_equal(whitened.whitening(catalogue[3:6]), whitened.texts[3:6])
    assert not whitened.texts[4].any()


@pytest.mark.parametrize("served", [None, np.zeros((9, 3), np.float32), np.eye(9, 3, dtype=np.float32)])
def test_a_blend_of_texts_that_the_artefact_cannot_make_keeps_them(served: np.ndarray | None) -> None:
    texts = np.random.default_rng(4).normal(size=(9, 3)).astype(np.float32)
    kept = ServedBlend(text_blend(texts), served)
    assert kept.keeps_texts
    np.testing.assert_array_equal(kept.texts, texts)
    assert kept.variables() == []


def test_a_saved_blend_gives_equal_scores(tmp_path: Path) -> None:
    blend, _ = make({"neighbours": 0.3, "text": 0.2}, {"neighbours": 0.9, "text": 0.7})
    blend.save(tmp_path / "blend.npz")
    history = [[1, 2, 3], [0, 0, 6]]
    np.testing.assert_array_equal(scores(Blend.load(tmp_path / "blend.npz"), history), scores(blend, history))


def test_what_tells_is_chosen_and_what_does_not_exist_is_not() -> None:
    """The next item of the history's last is i + 1, which only co-occurrence knows; the model says nothing."""
    random = np.random.default_rng(2)
    items, users = 30, 200
    starts = random.integers(1, items - 3, users)
    lists = starts[:, None] + np.arange(3)
    train = lists.ravel().astype(np.int32), np.concatenate([[0, 0], np.arange(3, 3 * users + 1, 3)])
    history = np.pad(lists[:, :2], [(0, 0), (2, 0)]).astype(np.int32)
    ends = np.arange(users + 1)
    valid = Holdout(
        np.arange(1, users + 1, dtype=np.int32),
        (lists[:, :2].ravel().astype(np.int32), 2 * ends),
        (lists[:, 2].astype(np.int32), ends),
        (lists[:, :2].ravel().astype(np.int32), 2 * ends),
    )
    sources = blending.Sources(("neighbours", "text", "popularity"), items, None, 10)
    noise = random.normal(size=(users, items + 1)).astype(np.float32)
    lists_ = blending.Lists(train, np.arange(len(train[0])))
    chosen = blending.choose(lambda rows: noise[rows], valid, history, lists_, sources)
    assert "text" not in chosen
    assert chosen["neighbours"]["weight"] > 3 * chosen.get("model", {"weight": 0.0})["weight"]
    blend = sources.make(chosen, lists_)
    better = rank(blending.blended(lambda rows: noise[rows], blend, history), valid, items)
    worse = rank(lambda rows: noise[rows], valid, items)
    assert better.values.mean() < 0.3 * worse.values.mean()


def test_a_large_catalogue_has_no_next_basket_model() -> None:
    sources = blending.Sources(("neighbours", "transitions", "popularity"), 20_001, None, 10)
    assert sources.available() == ["neighbours", "popularity"]
    assert sources.kept == blending.NEIGHBOURS_OF_MANY
