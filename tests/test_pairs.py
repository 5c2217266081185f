"""Words and followers against plain Python."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfrec.models.ranking.pairs import Followers, Words, common_words, follows
from tfrec.training import pairs
from tfrec.training.pairs import followers, item_words

N = 5
TOKENS = np.array([[0] * 4, [9, 3, 4, 0], [9, 3, 3, 5], [9, 4, 5, 6], [9, 0, 0, 0], [9, 5, 7, 0]], np.int32)
EVENTS = {
    "user": np.array([1] * 6 + [2] * 4 + [3] * 2, np.int32),
    "item": np.array([1, 2, 2, 3, 1, 4, 2, 3, 5, 1, 1, 5], np.int32),
    "split": np.array([0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 2], np.int8),
}
items = st.lists(st.integers(1, N), max_size=8)


def vectors() -> dict[int, dict[int, float]]:
    """The unit vector of each item's words, by token."""
    rows = {item: {*map(int, TOKENS[item])} - {0} for item in range(1, N + 1)}
    count = Counter(token for row in rows.values() for token in row)
    usable = {token: math.log(N / n) for token, n in count.items() if 1 < n < N}
    found = {}
    for item, row in rows.items():
        own = {token: usable[token] for token in row if token in usable}
        norm = math.sqrt(sum(x * x for x in own.values())) or 1.0
        found[item] = {token: x / norm for token, x in own.items()}
    return found


def cosine(first: int, second: int) -> float:
    own, other = vectors()[first], vectors()[second]
    return sum(x * other.get(token, 0.0) for token, x in own.items())


def weights(splits: tuple[int, ...]) -> np.ndarray:
    """F [N+1, N+1], pair by pair."""
    found, taken = np.zeros((N + 1, N + 1)), np.zeros(N + 1)
    lists: dict[int, list[int]] = {}
    for user, item, split in zip(EVENTS["user"], EVENTS["item"], EVENTS["split"], strict=True):
        if split in splits:
            lists.setdefault(int(user), []).append(int(item))
            taken[item] += 1
    for own in lists.values():
        for a, first in enumerate(own):
            for b in range(a + 1, min(a + 8, len(own))):
                found[first, own[b]] += (first != own[b]) * 0.6 ** (b - a - 1)
    return found / (np.sqrt(taken[:, None] * taken) + 3)


def test_a_word_of_one_item_or_of_all_is_none() -> None:
    found = item_words(TOKENS)
    assert found.size == 3
    assert not found.weights[0].any() and not found.weights[4].any()
    np.testing.assert_allclose(np.linalg.norm(found.weights[[1, 2, 3, 5]], axis=1), 1, rtol=1e-6)
    assert not found.ids[found.weights == 0].any()


def test_the_rarest_words_of_an_item_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "WORDS", 1)
    found = item_words(TOKENS)
    assert found.ids[2, 0] == found.ids[1, 0] or found.weights[2, 0] == pytest.approx(1)
    assert found.ids[3, 0] != found.ids[5, 0]  # 4, of two items, before 5, of three


def test_texts_without_common_words_compare_nothing() -> None:
    found = item_words(np.array([[0, 0], [1, 2], [3, 4]], np.int32))
    assert found.size == 0 and not found.weights.any()
    words = Words(tf.constant(found.ids), tf.constant(found.weights), found.size)
    assert not any(x.numpy().any() for x in common_words(words, np.array([[1]], np.int32), np.array([[2]])).values())


@settings(max_examples=30, deadline=None)
@given(history=items, padding=st.integers(0, 2), candidates=st.lists(st.integers(1, N), min_size=1, max_size=4))
def test_common_words_are_what_plain_python_says(history: list[int], padding: int, candidates: list[int]) -> None:
    ids, values, size = item_words(TOKENS)
    read = np.array([[0] * padding + history], np.int32)
    found = common_words(Words(tf.constant(ids), tf.constant(values), size), read, np.array([candidates], np.int32))
    recent = history[-5:]
    fades = [0.7**age for age in range(len(recent))][::-1]
    for place, item in enumerate(candidates):
        own = [cosine(item, j) for j in recent]
        wanted = {"words_last": own[-1] if own else 0.0}
        wanted["words_near"] = max((c for c, j in zip(own, recent, strict=True) if j != item), default=0.0)
        wanted["words_mean"] = float(np.average(own, weights=fades)) if own else 0.0
        assert {name: float(x[0, place]) for name, x in found.items()} == pytest.approx(wanted, abs=1e-5)


def test_followers_are_counted_in_the_past_alone() -> None:
    for splits in ((0,), (0, 1)):
        ids, values = followers(EVENTS, N, splits)
        dense = np.zeros((N + 1, N + 1))
        np.add.at(dense, (np.arange(N + 1)[:, None], ids), values)
        np.testing.assert_allclose(dense, weights(splits), rtol=1e-5)


def test_a_past_of_single_events_has_no_followers() -> None:
    alone = {"user": np.array([1, 2]), "item": np.array([1, 2]), "split": np.array([0, 0])}
    assert not followers(alone, N, (0,)).values.any()
    assert not followers(alone, N, (2,)).values.any()


@settings(max_examples=30, deadline=None)
@given(history=st.lists(st.integers(1, N), max_size=24), candidates=st.lists(st.integers(0, N), min_size=1, max_size=4))
def test_follows_is_what_plain_python_says(history: list[int], candidates: list[int]) -> None:
    table = Followers(*(tf.constant(x) for x in followers(EVENTS, N, (0, 1))))
    read, asked = np.array([[0, *history]], np.int32), np.array([candidates], np.int32)
    found = follows(table, read, asked, tf.constant(N))
    weight, recent = weights((0, 1)), history[-20:]
    for place, item in enumerate(candidates):
        last = weight[recent[-1], item] if recent else 0.0
        total = sum(0.8**age * weight[j, item] for age, j in enumerate(reversed(recent)))
        got = {name: float(x[0, place]) for name, x in found.items()}
        assert got == pytest.approx({"follows_last": last, "follows": total}, abs=1e-5)


def test_an_item_that_is_newer_than_the_tables_has_no_words_and_no_followers() -> None:
    ids, values, size = item_words(TOKENS)
    words = Words(tf.constant(ids), tf.constant(values), size)
    table = Followers(*(tf.constant(x) for x in followers(EVENTS, N, (0, 1))))
    read, asked = np.array([[1, N + 2]], np.int32), np.array([[N + 1, 2]], np.int32)
    found = common_words(words, read, asked) | follows(table, read, asked, tf.constant(N + 2))
    assert not any(x[0, 0].numpy() for x in found.values())
    assert float(found["words_near"][0, 1]) == pytest.approx(cosine(1, 2), abs=1e-6)
