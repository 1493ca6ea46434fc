"""Decayed counters and co-visitation against brute force."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from stages.contracts.tables import DAY_MS
from stages.features.config import FeatureConfig
from stages.features.counters import NEVER_MS, DecayedCounts
from stages.features.covisitation import Covisitation

HALF_LIVES = (1.0, 7.0)
EMPTY_LINKS = {
    "neighbours_offsets": np.zeros(1, dtype=np.int64),
    "neighbours_items": np.zeros(0, dtype=np.int32),
    "neighbours_weights": np.zeros(0, dtype=np.float64),
}


def no_counts(n: int) -> DecayedCounts:
    return DecayedCounts(np.zeros((len(HALF_LIVES), n)), np.full(n, NEVER_MS), HALF_LIVES)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(-20 * DAY_MS, 60 * DAY_MS)), max_size=30),
    st.integers(0, 30 * DAY_MS),
)
def test_counts_equal_the_sum_of_decayed_events(events: list[tuple[int, int]], later: int) -> None:
    counts = no_counts(4)
    for row, time in sorted(events, key=lambda event: event[1]):
        counts.add(row, time)
    now = max((time for _, time in events), default=0) + later
    for position, days in enumerate(HALF_LIVES):
        wanted = [sum(0.5 ** ((now - time) / (days * DAY_MS)) for row, time in events if row == r) for r in range(4)]
        np.testing.assert_allclose(counts.read(position, now), wanted, rtol=1e-9, atol=1e-12)
        np.testing.assert_array_equal(counts.read(position, now, np.array([2, 0])), counts.read(position, now)[[2, 0]])


def test_a_late_event_counts_in_full_at_the_newest_time() -> None:
    counts = no_counts(1)
    counts.add(0, 10 * DAY_MS)
    counts.add(0, 3 * DAY_MS)
    assert counts.read(0, 10 * DAY_MS)[0] == 2.0
    assert counts.read(0, 1 * DAY_MS)[0] == 2.0, "a read in the past does not blow the count up"
    assert counts.read(0, 11 * DAY_MS)[0] == 1.0
    assert counts.last_ms[0] == 10 * DAY_MS


def brute_force_links(sequences: list[list[int]], window: int) -> dict[int, dict[int, float]]:
    """Every pair of a user's items at distance d up to the window, linked with 1 / d."""
    links: dict[int, dict[int, float]] = defaultdict(lambda: defaultdict(float))
    for sequence in sequences:
        for later, item in enumerate(sequence):
            for earlier in range(max(0, later - window), later):
                links[item][sequence[earlier]] += 1.0 / (later - earlier)
                links[sequence[earlier]][item] += 1.0 / (later - earlier)
    return links


@given(st.lists(st.lists(st.integers(0, 9), unique=True, max_size=8), max_size=6), st.integers(1, 4))
def test_links_and_scores_equal_brute_force(sequences: list[list[int]], window: int) -> None:
    model = Covisitation(EMPTY_LINKS, 10, 100)
    for sequence in sequences:
        for position, item in enumerate(sequence):
            model.link(item, sequence[max(0, position - window) : position][::-1])
    wanted = brute_force_links(sequences, window)
    for item in range(10):
        items, weights = model.neighbours(item)
        assert dict(zip(items.tolist(), weights.tolist(), strict=True)) == pytest.approx(dict(wanted[item]))

    popularity = np.array([sum(item in sequence for sequence in sequences) for item in range(10)])
    history, candidates = np.array([1, 4, 7]), np.array([9, 0, 4, 2])
    total, best = model.scores(history, candidates, popularity)
    for position, candidate in enumerate(candidates.tolist()):
        cosines = [
            wanted[h].get(candidate, 0.0) / np.sqrt(max(1, popularity[h]) * max(1, popularity[candidate]))
            for h in history
        ]
        assert total[position] == pytest.approx(sum(cosines))
        assert best[position] == pytest.approx(max(cosines))


def test_an_overfull_row_keeps_its_strongest_links_with_ties_by_item() -> None:
    model = Covisitation(EMPTY_LINKS, 10, 2)
    model.link(0, [5])
    model.link(0, [5, 9])
    model.link(0, [7, 3])
    assert sorted(model.neighbours(0)[0].tolist()) == [3, 5, 7, 9], "twice the limit is still allowed"
    model.link(0, [4])
    items, weights = model.neighbours(0)
    assert dict(zip(items.tolist(), weights.tolist(), strict=True)) == {5: 2.0, 4: 1.0}
    assert model.neighbours(7)[0].tolist() == [0], "the other end keeps its link"


def test_scores_without_history_or_links_are_zero() -> None:
    model = Covisitation(EMPTY_LINKS, 4, 2)
    none = np.zeros(0, dtype=np.int64)
    for history in (none, np.array([1, 2])):
        total, best = model.scores(history, np.array([0, 3]), np.zeros(4, dtype=np.int64))
        assert total.tolist() == best.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("half_lives", [(), (7.0, 1.0), (1.0, 1.0), (0.0,)])
def test_half_lives_must_ascend_from_above_zero(half_lives: tuple[float, ...]) -> None:
    with pytest.raises(ValidationError, match="half_lives_days"):
        FeatureConfig(half_lives_days=half_lives)
