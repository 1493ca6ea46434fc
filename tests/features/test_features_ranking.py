"""The ranking features on examples small enough to compute by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from stages.contracts.snapshot import ContextColumn
from stages.contracts.sources import SourceScores
from stages.contracts.tables import DAY_MS
from stages.features.config import FeatureConfig
from stages.features.ranking import FEATURES, feature_schema, heavy_features, ranking_features
from stages.features.state import FunnelState

CLICK, RATING, IMPRESSION = 0, 1, 2
T0 = 10_000 * DAY_MS
HOUR = 3_600_000
NOW = T0 + 6 * HOUR
N = 8
VECTORS = np.eye(N, 4, dtype=np.float32)
VECTORS[4] = [3.0, 4.0, 0.0, 0.0]
CONTEXT = (ContextColumn(name="device", values=("phone", "tv", "web")), ContextColumn(name="region", values=("n", "s")))
MakeState = Callable[..., FunnelState]


def columns(
    state: FunnelState, user: int, candidates: list[int], time_ms: int = NOW, context: tuple[int, ...] = ()
) -> dict[str, list[float]]:
    n = len(candidates)
    values = ranking_features(
        state,
        user,
        time_ms,
        np.array(candidates, dtype=np.int64),
        np.linspace(1, 0.5, n, dtype=np.float32),
        np.arange(n, dtype=np.int32),
        VECTORS,
        context,
    )
    names = feature_schema(state.config, state.tasks, state.context).names
    assert values.dtype == np.float32
    assert values.shape == (n, len(names))
    assert np.isfinite(values).all()
    return {name: values[:, position].tolist() for position, name in enumerate(names)}


@pytest.fixture
def state(make_state: MakeState) -> FunnelState:
    """User 0 touched 0, 1 and 4 (newest), user 1 rated 1 and 2 and was shown 3 twice."""
    return make_state(
        [
            (1, 1, RATING, 0.5, T0 - DAY_MS),
            (0, 0, CLICK, 1.0, T0),
            (0, 1, RATING, 0.75, T0),
            (1, 2, RATING, 1.0, T0),
            (1, 3, IMPRESSION, 1.0, T0),
            (1, 3, IMPRESSION, 1.0, T0),
            (0, 4, CLICK, 1.0, T0),
        ],
        half_lives_days=(1.0, 4.0),
        history_decay=2.0,
        smoothing=2.0,
    )


def approx(*values: float) -> object:
    return pytest.approx(list(values), rel=1e-5, abs=1e-6)


def test_retrieval_and_time_of_day(state: FunnelState) -> None:
    got = columns(state, 0, [2, 3, 7])
    assert got["retrieval_score"] == approx(1, 0.75, 0.5)
    assert got["retrieval_log_rank"] == approx(0, math.log(2), math.log(3))
    assert got["hour_sin"] == approx(1, 1, 1)
    assert got["hour_cos"] == approx(0, 0, 0)


def test_item_popularity_trend_and_age(state: FunnelState) -> None:
    got = columns(state, 0, [1, 2, 3])
    one_day = [2**-1.25 + 2**-0.25, 2**-0.25, 0.0]
    four_days = [2 ** (-1.25 / 4) + 2 ** (-0.25 / 4), 2 ** (-0.25 / 4), 0.0]
    assert got["item_popularity_1d"] == approx(*np.log1p(one_day))
    assert got["item_popularity_4d"] == approx(*np.log1p(four_days))
    wanted = [math.log((4 * short + 1) / (long + 1)) for short, long in zip(one_day, four_days, strict=True)]
    assert got["item_trend_1d_4d"] == approx(*wanted)
    assert got["item_popularity_all"] == approx(math.log(3), math.log(2), 0)
    assert got["item_age"] == approx(math.log1p(1.25), math.log1p(2.25), math.log1p(3.25))
    assert columns(state, 0, [0], time_ms=T0 - HOUR)["item_age"] == [0.0], "made after the request"


def test_smoothed_rates(state: FunnelState) -> None:
    got = columns(state, 0, [1, 2, 3, 5])
    # 5 pairs in all: every one is positive for click, one of the five (user 1, item 2) and (user 0, item 1) for like.
    prior_like, prior_choice, prior_value = 2 / 5, 5 / 5, 4.25 / 5
    assert got["item_rate_click"] == approx(1, 1, 1, 1)
    assert got["item_rate_like"] == approx((1 + 2 * prior_like) / 4, (1 + 2 * prior_like) / 3, prior_like, prior_like)
    assert got["item_choice_rate"] == approx(1, 1, 2 * prior_choice / (2 + 2), 1)
    assert got["item_value_mean"] == approx(
        (1.25 + 2 * prior_value) / 4, (1 + 2 * prior_value) / 3, prior_value, prior_value
    )


def test_duration_and_its_distance_to_what_the_user_watched(state: FunnelState) -> None:
    got = columns(state, 0, [2, 3])
    watched = np.mean(np.log1p([60.0, 120.0, 300.0]))
    assert got["item_duration"] == approx(math.log1p(180), 0)
    assert got["duration_distance"] == approx(abs(math.log1p(180) - watched), 0)


def test_user_columns(state: FunnelState) -> None:
    got = columns(state, 0, [5, 6])
    assert got["user_history_length"] == approx(math.log(4), math.log(4))
    assert got["user_recency"] == approx(math.log(7), math.log(7))
    assert got["user_value_mean"] == approx(2.75 / 3, 2.75 / 3)
    assert got["user_value_spread"] == approx(*[np.std([1, 0.75, 1])] * 2)
    assert got["user_categories"] == approx(math.log(4), math.log(4)), "0, 1 and 3"
    assert got["user_touches_1d"] == approx(*[math.log1p(3 * 2**-0.25)] * 2)
    assert got["user_age"] == approx(*[math.log1p(0.25)] * 2)
    assert got["user_gap"] == [0, 0], "all three at the same time"
    # Three of three pairs are clicks, one reached 0.7; of everybody's five, five and two; two more at that rate.
    assert got["user_rate_click"] == approx(1, 1)
    assert got["user_rate_like"] == approx(*[(1 + 2 * 2 / 5) / 5] * 2)
    recent = 2 ** (-6 / 96)
    assert got["user_recent_rate_like"] == approx(*[(recent + 2 * 2 / 5) / (3 * recent + 2)] * 2)


def test_a_gap_is_the_mean_time_between_touches(make_state: MakeState) -> None:
    state = make_state([(0, item, CLICK, 1.0, T0 + hours * HOUR) for item, hours in ((0, 0), (1, 1), (2, 4))])
    assert columns(state, 0, [5])["user_gap"] == approx(math.log1p(2))
    assert columns(state, 0, [5])["user_age"] == approx(math.log1p(0.25))


def test_counts_rates_and_recency_of_a_user_within_categories(state: FunnelState) -> None:
    """User 0 has items 0 [0], 1 [1, 3] liked at 0.75, 4 [1]; candidates 5, 6, 7 have [2, 3], [0] and none."""
    got = columns(state, 0, [5, 6, 7, 1])
    decayed = 2**-0.25
    assert got["user_category_touches_1d"] == approx(
        math.log1p(decayed / 2), math.log1p(decayed), 0, math.log1p(1.5 * decayed)
    )
    own = (1 + 2 * 2 / 5) / 5
    rates = {0: 2 * own / 3, 1: (1 + 2 * own) / 4, 2: own, 3: (1 + 2 * own) / 3}
    assert got["user_category_rate_like"] == approx((rates[2] + rates[3]) / 2, rates[0], 0, (rates[1] + rates[3]) / 2)
    recent = 2 ** (-6 / 96)
    own = (recent + 2 * 2 / 5) / (3 * recent + 2)
    rates = {0: 2 * own / (recent + 2), 1: (recent + 2 * own) / (2 * recent + 2), 2: own}
    rates[3] = (recent + 2 * own) / (recent + 2)
    assert got["user_category_recent_rate_like"] == approx(
        (rates[2] + rates[3]) / 2, rates[0], 0, (rates[1] + rates[3]) / 2
    )
    assert got["user_category_recency"] == approx(math.log(7), math.log(7), -1, math.log(7))


def test_windowed_rates_of_items_and_categories(state: FunnelState) -> None:
    """Item 1 was touched by user 1 at 0.5 (30 hours ago) and by user 0 at 0.75 (6 hours ago, a like)."""
    got = columns(state, 0, [1, 3, 6])
    touched, liked, shown = 2 ** (-6 / 96) + 2 ** (-30 / 96), 2 ** (-6 / 96), 2 * 2 ** (-6 / 96)
    assert got["item_recent_rate_like"] == approx((liked + 2 * 2 / 5) / (touched + 2), 2 / 5, 2 / 5)
    assert got["item_recent_choice_rate"] == approx(1, 2 / (shown + 2), 1)
    assert got["item_recency"] == approx(math.log(7), -1, -1)
    # Category 1 holds touches of items 1, 1 and 4, one liked; category 3 those of item 1; category 0 that of 0.
    rate = {0: (0 + 0.8) / (1 + 2), 1: (1 + 0.8) / (3 + 2), 3: (1 + 0.8) / (2 + 2)}
    assert got["category_rate_like"] == approx((rate[1] + rate[3]) / 2, (rate[0] + rate[3]) / 2, rate[0])
    recent = {0: 2**-0.25, 1: 2 * 2**-0.25 + 2**-1.25, 3: 2**-0.25 + 2**-1.25}
    slow = {0: 2**-0.0625, 1: 2 * 2**-0.0625 + 2**-0.3125, 3: 2**-0.0625 + 2**-0.3125}
    windowed = {code: (slow_likes + 0.8) / (slow[code] + 2) for code, slow_likes in ((0, 0), (1, liked), (3, liked))}
    assert got["category_recent_rate_like"] == approx(
        (windowed[1] + windowed[3]) / 2, (windowed[0] + windowed[3]) / 2, windowed[0]
    )
    trend = {code: math.log((4 * recent[code] + 1) / (slow[code] + 1)) for code in recent}
    assert got["category_trend"] == approx((trend[1] + trend[3]) / 2, (trend[0] + trend[3]) / 2, trend[0])


def test_what_the_moment_says_about_items_and_categories(make_state: MakeState) -> None:
    """Three touches on the phone (items 0 and 1), one on tv (item 0), one on an unknown device."""
    rows = [(0, 0, 1), (1, 0, 1), (2, 1, 1), (3, 0, 2), (4, 2, 0)]
    events = [(user, item, CLICK, 1.0, T0, row) for user, item, row in rows]
    state = make_state(events, context=CONTEXT, smoothing=2.0)
    got = columns(state, 9, [0, 1, 2, 7], context=(1, 0))
    assert got["context_device"] == approx(*[3 / 5] * 4)
    share = 3 / 5
    lift = {0: (2 + 2 * share) / (3 + 2), 1: (1 + 2 * share) / (1 + 2), 2: 2 * share / (1 + 2)}
    assert got["item_context_device"] == approx(*[math.log(lift[item] / share) for item in (0, 1, 2)], 0)
    # Item 1 has categories 1 and 3, both touched once, on the phone.
    assert got["category_context_device"] == approx(*[math.log(lift[item] / share) for item in (0, 1, 2)], 0)
    assert got["context_region"] == got["item_context_region"] == [0, 0, 0, 0], "unknown"
    assert columns(state, 9, [0])["item_context_device"] == [0], "nothing is known"
    assert columns(state, 9, [0], context=(3, 0))["item_context_device"] == [0], "never seen before"
    assert state.context_codes({"device": "tv", "region": "east", "age": "9"}) == (2, 0)


def test_new_values_of_a_context_column_change_no_feature_of_known_ones(make_state: MakeState) -> None:
    """What a refresh relies on: the champion's rankers go on reading the same numbers."""
    rows = [(0, 0, 1), (1, 0, 1), (2, 1, 1), (3, 0, 2), (4, 2, 0)]
    events = [(user, item, CLICK, 1.0, T0, row) for user, item, row in rows]
    grown = tuple(column.model_copy(update={"values": (*column.values, "new")}) for column in CONTEXT)
    before, after = make_state(events, context=CONTEXT), make_state(events, context=grown)
    for codes in ((1, 0), (2, 1), (0, 2)):
        wanted = columns(before, 9, [0, 1, 2, 7], context=codes)
        assert columns(after, 9, [0, 1, 2, 7], context=codes) == wanted
    unseen = columns(after, 9, [0, 1, 2, 7], context=(4, 3))
    assert unseen["context_device"] == unseen["item_context_region"] == [0, 0, 0, 0]


def test_category_affinity(state: FunnelState) -> None:
    """Items 0, 1, 4 have categories [0], [1, 3], [1]; candidates 5, 6, 7 have [2, 3], [0] and none."""
    got = columns(state, 0, [5, 6, 7, 1])
    assert got["category_affinity_mean"] == approx(1 / 6, 1 / 3, 0, 1 / 2)
    assert got["category_affinity_max"] == approx(1 / 3, 1 / 3, 0, 2 / 3)
    assert got["category_affinity_recent_max"] == approx(1 / 3, 1 / 3, 0, 2 / 3), "all three at the same time"
    assert got["same_category_last"] == [0, 0, 0, 1]
    assert got["same_category_share"] == approx(0, 1 / 3, 0, 2 / 3)
    touched = {0: 2**-0.0625, 1: 2 * 2**-0.0625 + 2**-0.3125, 2: 2**-0.0625, 3: 2**-0.0625 + 2**-0.3125}
    assert got["category_popularity"] == approx(
        math.log1p((touched[2] + touched[3]) / 2),
        math.log1p(touched[0]),
        0,
        math.log1p((touched[1] + touched[3]) / 2),
    )


def test_recent_affinity_favours_the_newer_item(make_state: MakeState) -> None:
    state = make_state([(0, 0, CLICK, 1.0, T0 - DAY_MS), (0, 2, CLICK, 1.0, T0)], half_lives_days=(1.0,))
    got = columns(state, 0, [3, 5])
    assert got["category_affinity_max"] == approx(0.5, 0.5)
    assert got["category_affinity_recent_max"] == approx(1 / 3, 2 / 3)
    assert columns(state, 0, [3, 5], NOW + 9000 * DAY_MS)["category_affinity_recent_max"] == approx(1 / 3, 2 / 3)


def test_covisitation(state: FunnelState) -> None:
    """User 1 linked items 1 and 2 at distance 1; item 1 was touched twice, item 2 once."""
    got = columns(state, 0, [2, 3, 0])
    assert got["covisitation_sum"] == approx(1 / math.sqrt(2), 0, 1 / math.sqrt(2) + 1 / 2)
    assert got["covisitation_max"] == approx(1 / math.sqrt(2), 0, 1 / math.sqrt(2))


def test_similarity(state: FunnelState) -> None:
    """Newest first the user has items 4 = (3, 4, 0, 0), 1 = e1 and 0 = e0; item 5 is zero."""
    got = columns(state, 0, [1, 2, 5])
    weights = np.exp([0, -0.5, -1.0]) / np.exp([0, -0.5, -1.0]).sum()
    assert got["similarity_max"] == approx(1, 0, 0)
    assert got["similarity_mean"] == approx(1.8 / 3, 0, 0)
    assert got["similarity_last"] == approx(0.8, 0, 0)
    assert got["similarity_recent"] == approx(0.8 * weights[0] + weights[1], 0, 0)


def test_an_unknown_user_has_neutral_features(state: FunnelState) -> None:
    got = columns(state, 99, [1, 2])
    assert got["user_recency"] == [-1, -1]
    neutral = [name for name, _, _ in FEATURES if name.startswith(("category_aff", "covis", "simil", "same"))]
    neutral += ["user_history_length", "user_value_mean", "duration_distance"]
    assert {name: got[name] for name in neutral} == {name: [0.0, 0.0] for name in neutral}


def test_an_empty_state_and_no_candidates_are_finite(make_state: MakeState) -> None:
    assert columns(make_state(), 0, [0, 7])["item_rate_like"] == [0, 0]
    assert columns(make_state(), 0, [])["item_age"] == []


def test_the_order_of_candidates_does_not_matter(state: FunnelState) -> None:
    forward, shuffled = columns(state, 0, [1, 5, 7, 2]), columns(state, 0, [7, 2, 1, 5])
    for name in set(forward) - {"retrieval_score", "retrieval_log_rank"}:
        assert [forward[name][p] for p in (2, 3, 0, 1)] == pytest.approx(shuffled[name], abs=1e-6), name


def test_schema_hash_follows_what_the_features_mean(state: FunnelState) -> None:
    config, tasks = FeatureConfig(), state.tasks
    schema = feature_schema(config, tasks)
    assert len(set(schema.names)) == len(schema.names)
    assert schema == feature_schema(FeatureConfig(), tasks)
    heavier = tuple(task.model_copy(update={"weight": 9.0}) for task in tasks)
    assert feature_schema(config, heavier).hash == schema.hash
    stricter = (tasks[0], tasks[1].model_copy(update={"min_value": 0.9}))
    others = [
        feature_schema(FeatureConfig(smoothing=3.0), tasks),
        feature_schema(FeatureConfig(half_lives_days=(2.0,)), tasks),
        feature_schema(config, tasks[:1]),
        feature_schema(config, stricter),
    ]
    others += [feature_schema(config, tasks, CONTEXT), feature_schema(config, tasks, CONTEXT[:1])]
    assert len({schema.hash, *(other.hash for other in others)}) == 7
    assert "item_context_region" in others[-2].names
    grown = tuple(column.model_copy(update={"values": (*column.values, "new")}) for column in CONTEXT)
    assert feature_schema(config, tasks, grown) == others[-2], "a refresh may bring new values"
    assert {"item_popularity_7d", "item_trend_7d_30d", "item_rate_like"} <= set(schema.names)


def test_heavy_features_layout() -> None:
    features = np.array([[1, 2], [3, 4]], dtype=np.float32)
    query, vectors = np.array([2, 3], dtype=np.float32), np.array([[5, 6], [7, 8]], dtype=np.float32)
    got = heavy_features(features, np.array([0.5, 0.25], np.float32), np.array([0, 1], np.int32), query, vectors)
    assert got.dtype == np.float32
    np.testing.assert_allclose(
        got,
        [[1, 2, 0.5, 0, 2, 3, 5, 6, 10, 18], [3, 4, 0.25, math.log(2), 2, 3, 7, 8, 14, 24]],
        rtol=1e-6,
    )


def test_heavy_features_of_several_requests_are_those_of_each() -> None:
    generator = np.random.default_rng(0)
    features, queries, vectors = (generator.normal(size=(4, width)).astype(np.float32) for width in (2, 3, 3))
    scores, ranks = generator.normal(size=4).astype(np.float32), np.array([0, 1.5, 7, 2], np.float32)
    got = heavy_features(features, scores, ranks, queries, vectors)
    for row in range(4):
        one = slice(row, row + 1)
        alone = heavy_features(features[one], scores[one], ranks[one], queries[row], vectors[one])
        np.testing.assert_array_equal(got[one], alone)


def test_what_each_source_says_of_each_candidate(state: FunnelState) -> None:
    source_scores = SourceScores(
        ("tower", "ease"),
        np.array([[0.5, np.nan], [np.nan, -2.0], [0.25, 8.0]], dtype=np.float32),
        np.array([[0, -1], [-1, 3], [9, 0]], dtype=np.int32),
    )
    items, scores, ranks = np.array([2, 3, 5]), np.ones(3, dtype=np.float32), np.arange(3, dtype=np.int32)
    values = ranking_features(state, 0, NOW, items, scores, ranks, VECTORS, (), source_scores)
    names = feature_schema(state.config, state.tasks, (), source_scores.names).names
    assert names[:-4] == feature_schema(state.config, state.tasks).names
    got = {name: values[:, place].tolist() for place, name in enumerate(names)}
    assert list(got)[-4:] == [
        f"source_{name}_{what}" for what in ("score", "reciprocal_rank") for name in source_scores.names
    ]
    assert got["source_tower_score"] == [0.5, 0, 0.25]
    assert got["source_ease_score"] == [0, -2, 8]
    assert got["source_tower_reciprocal_rank"] == approx(1, 0, 0.1)
    assert got["source_ease_reciprocal_rank"] == approx(0, 0.25, 1)
    np.testing.assert_array_equal(
        values[:, :-4], ranking_features(state, 0, NOW, items, scores, ranks, VECTORS), "the others are untouched"
    )
    hashes = {feature_schema(state.config, state.tasks, (), sources).hash for sources in ((), ("tower", "ease"))}
    assert len(hashes) == 2
