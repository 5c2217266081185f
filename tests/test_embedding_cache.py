from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tfrec.data.embedding_cache import cached

IDS = np.array([[2, 7, 3, 0], [2, 8, 9, 3], [2, 7, 3, 0], [2, 3, 0, 0]], np.int32)


class Encoder:
    """Two numbers of a row; remembers how many rows it was asked for."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    def __call__(self, ids: np.ndarray) -> np.ndarray:
        self.rows.append(len(ids))
        return np.stack([ids.sum(1), ids.max(1, initial=0)], axis=1).astype(np.float32)


EXPECTED = np.array([[12, 7], [22, 9], [12, 7], [5, 3]], np.float32)


def test_second_run_encodes_nothing(tmp_path: Path) -> None:
    first, second = Encoder(), Encoder()
    np.testing.assert_array_equal(cached(first, IDS, "a", tmp_path), EXPECTED)
    vectors = cached(second, IDS, "a", tmp_path)
    np.testing.assert_array_equal(vectors, EXPECTED)
    assert vectors.dtype == np.float32
    assert (first.rows, second.rows) == ([3], [])


def test_only_new_rows_are_encoded_whatever_the_padding(tmp_path: Path) -> None:
    cached(Encoder(), IDS[:1], "a", tmp_path)
    encoder = Encoder()
    wider = np.pad(IDS, ((0, 0), (0, 3)))
    np.testing.assert_array_equal(cached(encoder, wider, "a", tmp_path), EXPECTED)
    assert encoder.rows == [2]


def test_another_encoder_has_its_own_cache(tmp_path: Path) -> None:
    cached(Encoder(), IDS, "a", tmp_path)
    encoder = Encoder()
    cached(encoder, IDS, "b", tmp_path)
    assert encoder.rows == [3]


def test_killed_run_keeps_the_chunks_that_it_finished(tmp_path: Path) -> None:
    encoder = Encoder()

    def dies(ids: np.ndarray) -> np.ndarray:
        if encoder.rows:
            raise KeyboardInterrupt
        return encoder(ids)

    with pytest.raises(KeyboardInterrupt):
        cached(dies, IDS, "a", tmp_path, chunk=2)
    again = Encoder()
    np.testing.assert_array_equal(cached(again, IDS, "a", tmp_path, chunk=2), EXPECTED)
    assert again.rows == [1]


def test_two_runs_at_once_lose_nothing(tmp_path: Path) -> None:
    def interrupted(ids: np.ndarray) -> np.ndarray:
        cached(Encoder(), IDS[2:], "a", tmp_path)
        return Encoder()(ids)

    cached(interrupted, IDS[:2], "a", tmp_path)
    encoder = Encoder()
    np.testing.assert_array_equal(cached(encoder, IDS, "a", tmp_path), EXPECTED)
    assert encoder.rows == []


@pytest.mark.parametrize("damage", [b"", b"no archive", None])
def test_damaged_part_is_named_and_encoded_again(tmp_path: Path, damage: bytes | None) -> None:
    cached(Encoder(), IDS, "a", tmp_path)
    (part,) = (tmp_path / "a").iterdir()
    part.write_bytes(part.read_bytes()[:-50] if damage is None else damage)
    encoder = Encoder()
    with pytest.warns(UserWarning, match=f"damaged part .*{part.name}"):
        np.testing.assert_array_equal(cached(encoder, IDS, "a", tmp_path), EXPECTED)
    assert encoder.rows == [3]
    cached(encoder, IDS, "a", tmp_path)
    assert encoder.rows == [3]


def test_no_row(tmp_path: Path) -> None:
    assert cached(Encoder(), IDS[:0], "a", tmp_path).shape == (0, 2)


def test_failing_encoder_leaves_no_file(tmp_path: Path) -> None:
    def fails(ids: np.ndarray) -> np.ndarray:
        raise MemoryError

    with pytest.raises(MemoryError):
        cached(fails, IDS, "a", tmp_path)
    assert not list(tmp_path.rglob("*.npz"))
