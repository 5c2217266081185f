from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ragged_lists import holdout, lists

from tfrec.errors import DataError, TrainingError
from tfrec.evaluation import baselines, metrics, ragged
from tfrec.evaluation.baselines import compare, counts, ease, search
from tfrec.evaluation.baselines.history import weighted_sum
from tfrec.evaluation.ranks import Holdout, rank
from tfrec.evaluation.whitening import whiten

USERS = lists([], [1, 2, 3], [2, 3], [3, 4], [1, 3, 4])
N = 4
FIRST = np.array([0])


def asks(*history: int) -> Holdout:
    return holdout([[1]], history=[list(history)])


def dense(users: ragged.Ragged, n_items: int) -> np.ndarray:
    x = np.zeros((len(users[1]) - 1, n_items + 1))
    x[ragged.owners(users), users[0]] = 1
    x[:, 0] = 0
    return x


users_of_6_items = st.lists(st.lists(st.integers(0, 6), max_size=7), min_size=1, max_size=7)


# Counts


@settings(max_examples=100, deadline=None)
@given(users_of_6_items, st.integers(1, 30), st.integers(1, 30))
def test_co_occurrence_equals_the_dense_product(rows, pairs, floats):
    users = lists(*rows)
    x = dense(users, 6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counts, "_PAIRS", pairs)
        patch.setattr(counts, "_BLOCK_FLOATS", floats)
        blocks = list(counts.co_occurrence(users, 6))
    assert next(rows.start for rows, _ in blocks) == 0
    assert np.concatenate([both for _, both in blocks]).tolist() == (x.T @ x).tolist()


def test_events_count_repeats_and_distinct_does_not():
    users = lists([2, 2, 1], [0, 2])
    assert counts.events(users, 3).tolist() == [0, 1, 3, 0]
    items, offsets = counts.distinct(users, 3)
    assert (items.tolist(), offsets.tolist()) == ([1, 2, 2], [0, 2, 3])


@pytest.mark.parametrize("item", [-1, 5])
def test_train_items_outside_the_catalogue_are_refused(item):
    with pytest.raises(DataError, match=r"train items must lie in 0\.\.4"):
        baselines.Popularity().fit(lists([1, item]), N)


# One baseline at a time


def test_popularity_counts_events():
    scores = baselines.Popularity().fit(USERS, N).scorer(asks(1))(FIRST)
    assert scores.tolist() == [[0, 2, 2, 4, 2]]


def test_personal_frequency_counts_the_user_and_falls_back_on_everybody():
    scores = baselines.PersonalFrequency().fit(USERS, N).scorer(asks(4, 1, 4))(FIRST)[0]
    assert scores == pytest.approx([0, 1 + 2 / 5, 2 / 5, 4 / 5, 2 + 2 / 5])


def test_item_knn_by_hand():
    scores = baselines.ItemKNN(neighbours=4, shrink=1.0).fit(USERS, N).scorer(asks(1, 2))(FIRST)[0]
    # Users: 1 has {1, 4}, 2 has {1, 2}, 3 has all four, 4 has {3, 4}. Both: 1-2 one, 1-3 two, 2-3 two, 1-4 one.
    to_3 = 2 / (np.sqrt(2 * 4) + 1)
    assert scores == pytest.approx([0, 1 / 3, 1 / 3, to_3 + to_3, 1 / 3])


def test_item_knn_keeps_the_nearest_of_each_item():
    scores = baselines.ItemKNN(neighbours=1, shrink=0.0).fit(USERS, N).scorer(asks(1))(FIRST)[0]
    # 1 is nearest to 3 for nobody: the neighbours of 2 and 4 are 3, that of 3 is one of 1, 2, 4 (equal).
    assert scores[2] == scores[4] == 0


@settings(max_examples=50, deadline=None)
@given(users_of_6_items, st.lists(st.integers(0, 6), max_size=6), st.sampled_from([0.0, 3.0]))
def test_item_knn_with_all_neighbours_equals_the_matrix(rows, history, shrink):
    users = lists(*rows)
    x, asked = dense(users, 6), dense(lists(history), 6)
    both = x.T @ x
    norm = np.sqrt(np.diag(both))
    similar = both / np.maximum(np.outer(norm, norm) + shrink, 1)
    np.fill_diagonal(similar, 0)
    scores = baselines.ItemKNN(6, shrink).fit(users, 6).scorer(asks(*history))(FIRST)
    np.testing.assert_allclose(scores, asked @ similar, atol=1e-6)


def test_ease_by_hand():
    # Two items, two users with both, one with the first: G + l2 = [[4, 2], [2, 3]], P = [[3, -2], [-2, 4]] / 8.
    model = baselines.EASE(l2=1.0).fit(lists([1, 2], [1, 2], [1]), 2)
    np.testing.assert_allclose(model.weights, [[0, 0, 0], [0, 0, 0.5], [0, 2 / 3, 0]], atol=1e-6)
    assert model.scorer(asks(1))(FIRST)[0] == pytest.approx([0, 0, 0.5])


def test_ease_equals_the_textbook(monkeypatch):
    monkeypatch.setattr(ease, "_BLOCK", 7)  # several blocks, and one that is not full
    rng = np.random.default_rng(0)
    users = lists(*[rng.integers(1, 31, 8) for _ in range(60)])
    x = dense(users, 30)
    p = np.linalg.inv(x.T @ x + 5 * np.eye(31))
    b = -p / np.diag(p)
    np.fill_diagonal(b, 0)
    model = baselines.EASE(l2=5.0).fit(users, 30)
    np.testing.assert_allclose(model.weights, b, atol=2e-6)
    history = rng.integers(1, 31, 5)
    np.testing.assert_allclose(model.scorer(asks(*history))(FIRST), dense(lists(history), 30) @ b, atol=5e-6)


def test_recency_weighs_the_last_event_of_each_item():
    matrix = np.eye(5, dtype=np.float32)
    assert weighted_sum(lists([1, 2, 1, 3], [], [4]), matrix, 0.5).tolist() == [
        [0, 0.5, 0.25, 1, 0],
        [0, 0, 0, 0, 0],
        [0, 0, 0, 0, 1],
    ]
    assert weighted_sum(lists([1, 2, 1, 3]), matrix).tolist() == [[0, 1, 1, 1, 0]]


def test_what_a_long_history_began_with_is_forgotten_within_a_millionth():
    rng = np.random.default_rng(0)
    matrix = np.concatenate([np.zeros((1, 3)), rng.random((200, 3))]).astype(np.float32)
    history = rng.permutation(np.arange(1, 201))
    weights = 0.8 ** np.arange(199, -1, -1.0)
    np.testing.assert_allclose(weighted_sum(lists(history), matrix, 0.8)[0], weights @ matrix[history], atol=1e-5)


TEXT = np.array([[0, 0], [1, 0], [0, 1], [0.6, 0.8], [-1, 0]], np.float32)


def test_last_item_text_is_the_cosine_to_the_last_item():
    scores = baselines.LastItemText(TEXT).scorer(holdout([[1], [1]], history=[[2, 1], []]))(np.arange(2))
    np.testing.assert_allclose(scores, [[0, 1, 0, 0.6, -1], [0, 0, 0, 0, 0]], atol=1e-6)


def test_text_profile_adds_up_what_the_user_had():
    scores = baselines.TextProfile(TEXT).scorer(asks(2, 1), 0.5)(FIRST)
    np.testing.assert_allclose(scores, [[0, 1, 0.5, 0.6 + 0.4, -1]], atol=1e-6)


def test_whitening_follows_the_singular_values():
    rng = np.random.default_rng(0)
    text = np.concatenate([np.zeros((1, 4)), rng.normal(size=(30, 4)) * [5, 2, 1, 0.1] + 3]).astype(np.float32)
    text[7] = 0  # an item without text
    known = np.delete(np.arange(31), [0, 7])
    u, s, _ = np.linalg.svd(text[known] - text[known].mean(axis=0), full_matrices=False)
    rows = u * np.sqrt(s)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    found = whiten(text)
    assert not found[[0, 7]].any()
    np.testing.assert_allclose(found[known] @ found[known].T, rows @ rows.T, atol=1e-4)


def test_blend_adds_z_scores():
    first, second = np.array([[9, 1, 2, 3]], np.float32), np.array([[9, 30, 20, 10]], np.float32)
    scores = baselines.blend(lambda rows: first[rows], lambda rows: second[rows], 2.0)(FIRST)[0]
    z = np.sqrt(1.5)
    assert scores[1:] == pytest.approx([-z + 2 * z, 0, z - 2 * z], abs=1e-6)


def test_a_blend_leaves_the_choice_to_the_scorer_that_has_one():
    flat, second = np.full((1, 4), 0.3, np.float32), np.array([[0, 30, 20, 10]], np.float32)
    scores = baselines.blend(lambda rows: flat[rows], lambda rows: second[rows], 0.5)(FIRST)[0]
    assert np.argsort(-scores[1:]).tolist() == [0, 1, 2]
    assert np.isfinite(scores).all()


def test_a_catalogue_too_large_for_pairs_of_items_is_refused():
    for model in (baselines.EASE(l2=1.0), baselines.ItemKNN(neighbours=5, shrink=0)):
        with pytest.raises(TrainingError, match="at most 20000 items; got 20001"):
            model.fit(USERS, 20_001)


# Search


def test_ascent_finds_the_top_of_a_hill_from_any_corner():
    grid = {"a": range(7), "b": range(7)}
    for a, b in ((0, 0), (6, 6), (0, 6)):
        found = search.ascend(grid, {"a": a, "b": b}, lambda s: -((s["a"] - 4) ** 2) - (s["b"] - 2) ** 2)
        assert found == {"a": 4, "b": 2}


def test_ascent_asks_once_for_each_settings_and_stays_when_nothing_is_better():
    asked = []
    found = search.ascend({"a": (1, 2), "b": (1, 2)}, {"a": 2, "b": 1}, lambda s: asked.append(tuple(s.items())) or 0.0)
    assert found == {"a": 2, "b": 1}
    assert len(asked) == len(set(asked)) == 3


# The table


def blocks_world(n_users: int = 60, seed: int = 0) -> tuple[ragged.Ragged, Holdout, Holdout, np.ndarray]:
    """Users of block A like items 1..10, of block B 11..20; texts say the block. Nobody knows it by popularity."""
    rng = np.random.default_rng(seed)
    rows = [rng.permutation(10)[:8] + 1 + 10 * (user % 2) for user in range(n_users)]
    history = [row[:6].tolist() for row in rows]
    longer = [row[:7].tolist() for row in rows]
    text = np.zeros((21, 3), np.float32)
    text[1:, :2] = np.repeat(np.eye(2), 10, axis=0)
    text[1:, 2] = rng.normal(size=20) / 10
    text[1:] /= np.linalg.norm(text[1:], axis=1, keepdims=True)
    valid = holdout([[int(row[6])] for row in rows], history, history)
    test = holdout([[int(row[7])] for row in rows], longer, longer)
    return lists([], *history), valid, test, text


def test_every_baseline_but_popularity_knows_the_blocks():
    train, valid, test, text = blocks_world()
    found = baselines.table(train, valid, test, 20, text, k=[4])
    names = ["popularity", "item_knn", "ease", "ease_recency", "text_last_item", "text_profile", "ease_recency_text"]
    assert list(found) == names
    for name in names[1:]:
        # Three items of the own block are left: a hit in the first 4 is certain for whoever knows the block.
        assert found[name]["test"]["hr@4"] == 1, name
    assert found["popularity"]["test"]["hr@4"] < 0.9
    assert found["ease"]["per_query"]["ndcg@4"].mean() == pytest.approx(found["ease"]["test"]["ndcg@4"])
    assert set(found["ease_recency_text"]["chosen"]) == {"l2", "gamma", "text_gamma", "whitened", "weight"}


def test_repeat_purchases_are_ranked_when_kept():
    # Each user buys the own item again and again; the other events are of item 1.
    rows = [[1, 1 + user, 1 + user, 1 + user] for user in range(1, 9)]
    asked = holdout([[1 + user] for user in range(1, 9)], history=rows)
    found = baselines.table(lists([], *rows), asked, asked, 9, repeats="keep", k=[1])
    assert found["personal_frequency"]["test"]["hr@1"] == 1
    assert found["popularity"]["test"]["hr@1"] == 0
    assert "text_profile" not in found


def test_valid_targets_count_on_test_and_not_before():
    rows = [[1]] * 5
    valid, test = holdout([[2]] * 5, history=rows), holdout([[2]] * 5, history=[[1, 2]] * 5)
    found = baselines.table(lists([], *rows), valid, test, 4, k=[2])["popularity"]
    assert found["valid"]["hr@2"] == 0  # item 2 ties with 3 and 4 behind item 1
    assert found["test"]["mrr@2"] == pytest.approx(1 / 1.5)  # ties with item 1


def test_test_never_chooses_settings():
    train, valid, test, text = blocks_world()
    rng = np.random.default_rng(1)
    other = Holdout(test.users, test.history, (rng.permutation(test.targets[0]), test.targets[1]), test.mask)
    first, second = (baselines.table(train, valid, x, 20, text, k=[4]) for x in (test, other))
    assert {name: row["chosen"] for name, row in first.items()} == {n: row["chosen"] for n, row in second.items()}
    assert {name: row["valid"] for name, row in first.items()} == {n: row["valid"] for n, row in second.items()}


def test_joined_appends_valid_in_order_and_keeps_strangers_apart():
    valid = holdout([[5], [6, 7], [8], [9]])
    valid = Holdout(np.array([2, 0, 1, 0], np.int32), valid.history, valid.targets, valid.mask)
    values, offsets = compare.joined(lists([], [1, 2], [3]), valid)
    assert values.tolist() == [1, 2, 8, 3, 5, 6, 7, 9]
    assert offsets.tolist() == [0, 0, 3, 5, 7, 8]


def test_what_a_catalogue_is_too_large_for_says_so(monkeypatch, caplog):
    monkeypatch.setattr(counts, "MOST_ITEMS", 19)
    train, valid, test, text = blocks_world()
    found = baselines.table(train, valid, test, 20, text, k=[4])
    for name in ("item_knn", "ease", "ease_recency", "ease_recency_text"):
        assert found[name] == {"skipped": "pairs of items are counted for at most 19 items; got 20"}
    assert found["text_profile"]["test"]["hr@4"] == 1
    assert "skipped" in caplog.text


def test_a_user_without_train_list_is_refused():
    train, valid, test, _ = blocks_world()
    short = ragged.take(train, np.arange(10))
    with pytest.raises(DataError, match="must index the 10 lists of train; got 60"):
        baselines.table(short, valid, test, 20)


def test_text_must_have_a_row_per_item():
    train, valid, test, text = blocks_world()
    with pytest.raises(DataError, match="21 rows, one per item and row 0; got 20"):
        baselines.table(train, valid, test, 20, text[1:])


def test_an_empty_valid_is_refused():
    train, _, test, _ = blocks_world()
    with pytest.raises(DataError, match="valid query"):
        baselines.table(train, holdout([]), test, 20)


# Real data


def industrial() -> tuple[ragged.Ragged, ragged.Ragged, Holdout, int]:
    folders = [Path(folder) for folder in os.environ.get("TFREC_DATA", "").split(os.pathsep) if folder]
    path = next((f / "amazon-industrial" for f in folders if (f / "amazon-industrial").is_dir()), None)
    if path is None:
        pytest.skip("amazon-industrial is in no folder of TFREC_DATA")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(path / "interactions.parquet").to_pylist()
    table.sort(key=lambda row: (row["user_id"], row["timestamp"]))  # stable: ties keep file order
    items = parquet.read_table(path / "items.parquet", columns=["item_id"])["item_id"].to_pylist()
    index = {item: i + 1 for i, item in enumerate(items)}
    users = {user: [] for user in dict.fromkeys(row["user_id"] for row in table)}
    known, target = {u: [] for u in users}, {u: [] for u in users}
    for row in table:
        (target if row["split"] == "test" else known)[row["user_id"]].append(index[row["item_id"]])
    history = list(known.values())
    return lists(*history), holdout(list(target.values()), history, history), len(items)


PEERS = [
    (baselines.Popularity(), (0.0446, 0.0325)),
    (baselines.EASE(l2=50), (0.1092, 0.0770)),
    (baselines.ItemKNN(neighbours=200, shrink=20), (0.1067, 0.0765)),
]


@pytest.mark.parametrize(("model", "expected"), PEERS, ids=lambda x: type(x).__name__)
def test_peers_on_amazon_industrial(model, expected):
    """HR@10 and NDCG@10 of other implementations, refitted on train and valid; one user in 3,270 is 0.0003."""
    train, test, n_items = industrial()
    ranks = rank(model.fit(train, n_items).scorer(test), test, n_items, top=0)
    found = metrics.hr(ranks, 10).mean(), metrics.ndcg(ranks, 10).mean()
    assert found == pytest.approx(expected, abs=5e-4)
