from __future__ import annotations

import numpy as np
import pytest

from tfrec.errors import DataError
from tfrec.evaluation import bootstrap


def test_interval_of_a_share_is_the_normal_one():
    values = np.repeat([0.0, 1.0], [900, 100])
    found = bootstrap.interval(values, resamples=20_000)
    error = 1.96 * np.sqrt(0.1 * 0.9 / 1000)
    assert found.mean == pytest.approx(0.1)
    assert found.low == pytest.approx(0.1 - error, abs=0.002)
    assert found.high == pytest.approx(0.1 + error, abs=0.002)


def test_counting_distinct_values_equals_drawing_users():
    values = np.random.default_rng(1).integers(0, 5, 200) / 4
    rng = np.random.default_rng(2)
    drawn = np.array([values[rng.integers(0, 200, 200)].mean() for _ in range(5000)])
    found = bootstrap.interval(values, resamples=5000, level=0.9)
    assert (found.low, found.high) == pytest.approx(np.quantile(drawn, [0.05, 0.95]), abs=0.004)


def test_the_same_seed_gives_the_same_interval():
    values = np.random.default_rng(0).random(50)
    assert bootstrap.interval(values, seed=3) == bootstrap.interval(values, seed=3)
    assert bootstrap.interval(values, seed=3) != bootstrap.interval(values, seed=4)


def test_a_constant_has_no_spread():
    assert bootstrap.interval(np.full(7, 0.25)) == (0.25, 0.25, 0.25)


def test_blocks_of_resamples_all_count(monkeypatch):
    monkeypatch.setattr(bootstrap, "_BLOCK", 120)  # two resamples at a time
    found = bootstrap.interval(np.arange(60.0), resamples=501)
    assert found.low < 29.5 < found.high
    assert found.high - found.low == pytest.approx(2 * 1.96 * np.sqrt((60**2 - 1) / 12 / 60), rel=0.15)


def test_pairing_sees_what_two_intervals_cannot():
    users = np.random.default_rng(0).random(500)  # users differ far more than the two models
    better = bootstrap.paired(users + 0.01, users)
    assert better.mean == pytest.approx(0.01)
    assert (better.low, better.high) == pytest.approx((0.01, 0.01))
    assert better.share_not_above == 0
    assert bootstrap.paired(users, users + 0.01).share_not_above == 1


def test_equal_models_are_not_above_each_other():
    assert bootstrap.paired(np.ones(5), np.ones(5)) == (0, 0, 0, 1)


def test_noise_without_a_difference_is_above_about_half_the_time():
    noise = np.random.default_rng(5).normal(size=1000)
    found = bootstrap.paired(noise - noise.mean(), np.zeros(1000), resamples=4000)
    assert found.share_not_above == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("values", [np.array([]), np.array([0.1, np.nan]), np.zeros((2, 2))])
def test_values_must_be_one_finite_number_per_user(values):
    with pytest.raises(DataError, match="one finite number per user"):
        bootstrap.interval(values)


@pytest.mark.parametrize("setting", [{"resamples": 0}, {"level": 1.0}, {"level": 0.0}])
def test_settings_out_of_range_are_refused(setting):
    with pytest.raises(DataError, match="resamples >= 1"):
        bootstrap.interval(np.ones(3), **setting)


def test_a_pair_needs_the_same_users():
    with pytest.raises(DataError, match="same users"):
        bootstrap.paired(np.ones(3), np.ones(4))
