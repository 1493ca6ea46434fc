"""Value rules against their definition."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.contracts.errors import DataError
from stages.contracts.value_rules import FittedValueRule, ValueRule, apply_value_rules, draw_lots, fit_value_rule

NAN = math.nan


def fit(rule: dict[str, Any], values: list[float], durations: list[float], pieces: int = 1) -> FittedValueRule:
    both = np.array(values), np.array(durations)
    split = zip(*(np.array_split(column, pieces) for column in both), strict=True)
    return fit_value_rule("watch", ValueRule.model_validate(rule), split)


def test_shares() -> None:
    rule = fit({"method": "share"}, [], [])
    got = rule.apply(np.array([5.0, 30.0, -1.0, 5.0, 5.0]), np.array([20.0, 20.0, 20.0, NAN, 0.0]), np.zeros(5))
    assert got.dtype == np.float32
    assert got.tolist() == [0.25, 1.0, 0.0, 0.0, 0.0]
    given_shares = fit({"method": "share", "unit": "share"}, [], [])
    assert given_shares.apply(np.array([0.5, 1.7]), np.array([NAN, 9.0]), np.zeros(2)).tolist() == [0.5, 1.0]


def test_a_short_view_finished_and_a_long_one_half_watched_are_comparable() -> None:
    """Short items are finished by half of their viewers, long ones watched to the half by as many."""
    short = [10.0] * 50 + [20.0] * 50
    long = [600.0] * 50 + [1800.0] * 50
    rule = fit({"method": "duration_quantile", "groups": 2}, short + long, [20.0] * 100 + [3600.0] * 100)
    views = np.array([20.0, 1800.0, 10.0, 600.0]), np.array([20.0, 3600.0, 20.0, 3600.0])
    for lot in (0.0, 0.5, 0.75):
        got = rule.apply(*views, np.full(4, lot))
        assert got.tolist() == [0.5 + lot / 2, 0.5 + lot / 2, lot / 2, lot / 2], "ties share their ranks"
    assert len(rule.group_edges_s) == 1
    assert 20 < rule.group_edges_s[0] <= 3600


def test_unknown_durations_are_a_group_of_their_own() -> None:
    rule = fit({"method": "duration_quantile", "groups": 1}, [1.0, 1.0, 100.0, 400.0], [10.0, 10.0, NAN, NAN])
    assert rule.apply(np.array([200.0, 200.0]), np.array([NAN, 10.0]), np.zeros(2)).tolist() == [0.5, 1.0]
    nothing_unknown = fit({"method": "duration_quantile", "groups": 1}, [1.0, 3.0], [10.0, 10.0])
    assert nothing_unknown.apply(np.array([2.0]), np.array([NAN]), np.zeros(1)).tolist() == [1.0], "compared with all"


def test_shares_as_given_are_watched_seconds_of_known_durations() -> None:
    seconds = fit({"method": "duration_quantile", "groups": 3}, [5.0, 8.0, 40.0, 9.0], [10.0, 10.0, 100.0, 100.0])
    shares = fit(
        {"method": "duration_quantile", "groups": 3, "unit": "share"}, [0.5, 0.8, 0.4, 0.09], [10.0, 10.0, 100.0, 100.0]
    )
    assert shares.ranks == seconds.ranks
    assert shares.group_edges_s == seconds.group_edges_s


@given(
    st.lists(st.tuples(st.floats(0, 5_000), st.sampled_from([NAN, 5.0, 17.0, 80.0, 81.0, 900.0])), min_size=1),
    st.integers(1, 8),
    st.randoms(use_true_random=False),
)
def test_the_order_of_views_and_their_pieces_do_not_matter(
    views: list[tuple[float, float]], groups: int, rng: Any
) -> None:
    rule = {"method": "duration_quantile", "groups": groups}
    whole = fit(rule, *map(list, zip(*views, strict=True)))
    rng.shuffle(views)
    values, durations = map(list, zip(*views, strict=True))
    assert fit(rule, values, durations, pieces=3) == whole
    ranks = whole.apply(np.array(values), np.array(durations), np.full(len(values), 0.5))
    assert ((ranks > 0) & (ranks < 1)).all()
    # Within one duration more is never worth less.
    order = np.argsort(values)
    same = np.array(durations)[order] == 80.0
    assert (np.diff(ranks[order][same]) >= 0).all()
    assert len(whole.ranks) == len(whole.group_edges_s) + 2


def test_ranks_are_uniform_in_every_group_also_where_most_reach_the_end() -> None:
    rng = np.random.default_rng(1)
    durations = rng.lognormal(4, 1, 20_000)
    values = np.minimum(durations, np.exp(3 + rng.normal(size=20_000)))
    rule = fit({"method": "duration_quantile", "groups": 10}, values.tolist(), durations.tolist())
    lots = draw_lots(rng.integers(0, 1_000, 20_000), rng.integers(0, 10**12, 20_000))
    ranks = rule.apply(values, durations, lots)
    group = np.searchsorted(rule.group_edges_s, durations, side="right")
    sizes = np.bincount(group)
    assert len(sizes) == 10 and sizes.min() > 1_500
    for threshold in (0.2, 0.5, 0.9):
        assert np.bincount(group, ranks >= threshold) / sizes == pytest.approx(1 - threshold, abs=0.04)
    assert (values[group == 0] == durations[group == 0]).mean() > 0.6


def test_one_event() -> None:
    rule = fit({"method": "duration_quantile", "groups": 1}, [1.0, 2.0], [10.0, 10.0])
    lot = float(draw_lots(np.array([7]), np.array([99]))[0])
    assert apply_value_rules([rule], "watch", 2.0, 10.0, 7, 99) == pytest.approx(0.5 + lot / 2, abs=1e-6)
    assert apply_value_rules([rule], "rating", 2.0, 10.0, 7, 99) == 2.0
    assert apply_value_rules([], "watch", 2.0, 10.0, 7, 99) == 2.0


def test_lots_are_uniform() -> None:
    lots = draw_lots(np.arange(100_000) % 317, np.arange(100_000) * 1_000)
    assert np.histogram(lots, 10, (0, 1))[0] / 10_000 == pytest.approx(np.ones(10), abs=0.05)
    assert len(np.unique(lots)) == 100_000


def test_nothing_to_fit_on_is_named() -> None:
    with pytest.raises(DataError, match=r"dataset\.values\.watch: no event of the candidate part"):
        fit({"method": "duration_quantile"}, [], [])
