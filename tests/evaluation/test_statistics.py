import numpy as np
import pytest

from flmrec.evaluation import statistics


def test_bootstrap_interval_is_as_wide_as_the_standard_error_says() -> None:
    values = np.random.default_rng(0).random(2000)
    found = statistics.bootstrap_interval(values, seed=1)
    half_width = 1.96 * values.std() / np.sqrt(len(values))
    assert found.mean == pytest.approx(values.mean())
    assert found.high - found.low == pytest.approx(2 * half_width, rel=0.1)


def test_paired_test_sees_a_small_gain_of_all_users_that_an_unpaired_one_would_not() -> None:
    rng = np.random.default_rng(1)
    theirs = rng.random(300)
    gain, p = statistics.paired_test(theirs + 0.01 + 0.02 * rng.standard_normal(300), theirs, seed=2, flips=2000)
    assert gain.low > 0 and p < 0.01


def test_paired_test_is_about_uniform_without_a_gain() -> None:
    rng = np.random.default_rng(5)
    p_values = [statistics.paired_test(rng.random(60), rng.random(60), seed=i, flips=200)[1] for i in range(100)]
    assert 0.0 < np.mean(np.array(p_values) < 0.2) < 0.4
    assert statistics.paired_test(np.ones(4), np.ones(4), seed=0)[1] == 1.0


def test_poisson_weights_have_mean_and_variance_one_and_depend_on_the_user_alone() -> None:
    keys = np.arange(20_000)
    weights = statistics.poisson_weights(keys, 50, seed=7)
    assert weights.mean() == pytest.approx(1.0, abs=0.01)
    assert weights.var() == pytest.approx(1.0, abs=0.02)
    assert np.array_equal(weights[123:130], statistics.poisson_weights(keys[123:130], 50, seed=7))
    assert not np.array_equal(weights, statistics.poisson_weights(keys, 50, seed=8))
    assert abs(np.corrcoef(weights[:, 0], weights[:, 1])[0, 1]) < 0.03
    assert abs(np.corrcoef(weights[:-1, 0], weights[1:, 0])[0, 1]) < 0.03


def test_poisson_bootstrap_agrees_with_the_plain_one() -> None:
    values = np.random.default_rng(2).random(3000) ** 3
    weights = statistics.poisson_weights(np.arange(3000), 1000, seed=0)
    means = weights.T @ values / weights.sum(axis=0)
    ours = statistics.interval(values.mean(), means)
    plain = statistics.bootstrap_interval(values, seed=0)
    assert ours.low == pytest.approx(plain.low, abs=0.002)
    assert ours.high == pytest.approx(plain.high, abs=0.002)
