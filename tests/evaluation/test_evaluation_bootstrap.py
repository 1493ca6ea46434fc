import numpy as np
import pytest

from stages.contracts.errors import DataError
from stages.evaluation.bootstrap import MIN_USERS, Gain, paired_bootstrap

USERS = np.repeat(np.arange(100), 3)


def test_a_row_against_itself_makes_no_difference():
    values = np.random.default_rng(0).random(300)
    gain = paired_bootstrap(values, values, USERS, samples=100, seed=1)
    assert (gain.value, gain.low, gain.high, gain.verdict) == (0.0, 0.0, 0.0, "no difference")


def test_a_constant_gain_has_an_interval_of_no_width():
    before = np.random.default_rng(0).random(300)
    gain = paired_bootstrap(before, before + 0.25, USERS, samples=100, seed=1)
    assert (gain.value, gain.low, gain.high) == pytest.approx((0.25, 0.25, 0.25))
    assert gain.verdict == "gains"
    assert paired_bootstrap(before + 0.25, before, USERS, samples=100, seed=1).verdict == "loses"


def test_the_interval_of_independent_users_is_that_of_the_normal_approximation():
    rng = np.random.default_rng(7)
    users = np.arange(2000)
    difference = rng.normal(0.02, 0.3, size=2000)
    gain = paired_bootstrap(np.zeros(2000), difference, users, samples=2000, seed=3)
    error = difference.std() / np.sqrt(2000)
    assert gain.value == pytest.approx(difference.mean())
    assert gain.low == pytest.approx(difference.mean() - 1.96 * error, abs=0.15 * error)
    assert gain.high == pytest.approx(difference.mean() + 1.96 * error, abs=0.15 * error)


def test_requests_of_one_user_are_drawn_together():
    rng = np.random.default_rng(7)
    by_user = rng.normal(0.0, 1.0, size=100)
    clustered = paired_bootstrap(np.zeros(2000), np.repeat(by_user, 20), np.repeat(np.arange(100), 20), 500, seed=3)
    as_if_independent = paired_bootstrap(np.zeros(2000), np.repeat(by_user, 20), np.arange(2000), 500, seed=3)
    assert clustered.high - clustered.low > 3 * (as_if_independent.high - as_if_independent.low)


def test_the_seed_decides_the_interval():
    rng = np.random.default_rng(0)
    before, after = rng.random(300), rng.random(300)
    first = paired_bootstrap(before, after, USERS, samples=100, seed=5)
    assert first == paired_bootstrap(before, after, USERS, samples=100, seed=5)
    assert first != paired_bootstrap(before, after, USERS, samples=100, seed=6)
    assert first.low <= first.value <= first.high


def test_few_users_get_no_verdict():
    assert Gain(value=0.1, low=0.1, high=0.1, users=MIN_USERS - 1).verdict == "too few users"
    assert Gain(value=0.1, low=0.1, high=0.1, users=MIN_USERS).verdict == "gains"


@pytest.mark.parametrize("lengths", [(0, 0, 0), (2, 3, 3), (3, 3, 2)])
def test_unequal_or_empty_arrays_are_refused(lengths):
    with pytest.raises(DataError, match=f"lengths {lengths[0]}, {lengths[1]}, {lengths[2]}"):
        paired_bootstrap(*(np.zeros(length) for length in lengths), samples=100, seed=0)
