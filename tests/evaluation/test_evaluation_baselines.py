import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.contracts.tables import EventTable, RankedTable, RequestTable
from stages.contracts.top_k import top_k
from stages.evaluation import baselines
from stages.evaluation.baselines import FirstTouches, popularity_rankings

N_ITEMS = 6
TOUCHING = np.array([True])


def events_of(rows: list[tuple[int, int, int]]) -> EventTable:
    """(user, item, time) in any order."""
    user, item, time = np.array(sorted(rows, key=lambda row: row[2]), dtype=np.int64).reshape(-1, 3).T
    return EventTable(
        user_index=user.copy(),
        item_index=item.copy(),
        event_time_ms=time.copy(),
        signal=np.zeros(len(user), dtype=np.int16),
        value=np.ones(len(user), dtype=np.float32),
        part=np.zeros(len(user), dtype=np.int8),
        active=np.ones(len(user), dtype=np.bool_),
    )


def requests_of(rows: list[tuple[int, int]]) -> RequestTable:
    """(user, time), sorted by time."""
    user, time = np.array(sorted(rows, key=lambda row: row[1]), dtype=np.int64).reshape(-1, 2).T
    return RequestTable(
        request_id=np.arange(len(user), dtype=np.int64),
        user_index=user.copy(),
        request_time_ms=time.copy(),
        part=np.full(len(user), 2, dtype=np.int8),
    )


def naive(events: EventTable, user: int, time: int, born: np.ndarray, half_life: float | None) -> dict[int, float]:
    """Scores of every item that may be answered, by definition."""
    touched: dict[tuple[int, int], int] = {}
    for u, i, t in zip(events.user_index, events.item_index, events.event_time_ms, strict=True):
        touched.setdefault((int(u), int(i)), int(t))
    scores = {item: 0.0 for item in range(N_ITEMS) if born[item] <= time}
    for (_, item), t in touched.items():
        if t < time and item in scores:
            scores[item] += 1.0 if half_life is None else 2.0 ** (-(time - t) / half_life)
    for (u, item), t in touched.items():
        if u == user and t < time:
            scores.pop(item, None)
    return scores


triples = st.lists(st.tuples(st.integers(0, 3), st.integers(0, N_ITEMS - 1), st.integers(0, 60)), max_size=40)
pairs = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 70)), min_size=1, max_size=12)
births = st.lists(st.integers(0, 50), min_size=N_ITEMS, max_size=N_ITEMS)


@settings(max_examples=150, deadline=None)
@given(triples, pairs, births, st.integers(1, N_ITEMS + 1), st.sampled_from([None, 0.25, 16.0]), st.integers(1, 5))
def test_rankings_equal_counting_by_hand(rows, asked, born, k, half_life, block):
    events, requests, born_ms = events_of(rows), requests_of(asked), np.array(born, dtype=np.int64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(baselines, "_BLOCK_REQUESTS", block)
        patch.setattr(baselines, "_TABLE_ROWS", 10)
        tables = list(popularity_rankings(FirstTouches(events, TOUCHING), requests, born_ms, k, half_life))
    assert np.all(np.diff(np.concatenate([table.request_id for table in tables])) >= 0)
    for request in range(len(requests)):
        wanted = naive(
            events, int(requests.user_index[request]), int(requests.request_time_ms[request]), born_ms, half_life
        )
        answer = [table.take(table.request_id == request) for table in tables]
        items = np.concatenate([part.item_index for part in answer]).tolist()
        scores = np.concatenate([part.score for part in answer])
        assert sum(len(part) > 0 for part in answer) <= 1
        best = sorted(wanted, key=lambda item: (-wanted[item], item))[:k]
        np.testing.assert_allclose(scores, [wanted[item] for item in best], rtol=1e-5, atol=1e-30)
        if half_life is None:
            assert items == best
        else:  # sums of powers may tie within rounding: then the scores above say it all
            np.testing.assert_allclose([wanted[item] for item in items], scores, rtol=1e-5, atol=1e-30)


def request_by_request(
    touches: FirstTouches, requests: RequestTable, born: np.ndarray, k: int, half_life: float | None
):
    """Yield each answer: the whole catalogue is sorted anew, in the same blocks, so that sums round alike."""
    values, reference, done = np.zeros(len(born)), 0, 0
    first_of_block = {block.start for block in baselines._blocks(requests.request_time_ms, half_life)}
    for row, (user, time) in enumerate(zip(requests.user_index, requests.request_time_ms, strict=True)):
        if row in first_of_block:
            values *= 1.0 if half_life is None else np.exp2((reference - time) / half_life)
            reference = time
        end = np.searchsorted(touches.time_ms, time, side="left")
        for touch in range(done, end):
            age_ms = touches.time_ms[touch] - reference
            values[touches.item_index[touch]] += 1.0 if half_life is None else np.exp2(age_ms / half_life)
        done = end
        allowed = np.setdiff1d(np.flatnonzero(born <= time), touches.touched(user, time))
        best = allowed[top_k(values[allowed], k)]
        now = values[best] * (1.0 if half_life is None else np.exp2((reference - time) / half_life))
        yield best, now.astype(np.float32)


wide_triples = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 29), st.integers(0, 40)), max_size=120)
wide_pairs = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 45)), min_size=1, max_size=20)


@settings(max_examples=150, deadline=None)
@given(wide_triples, wide_pairs, st.integers(0, 9), st.integers(1, 32), st.sampled_from([None, 0.5, 8.0]))
def test_a_block_is_ranked_as_each_request_is(rows, asked, seed, k, half_life):
    """The pool of a block, and its order while touches are counted, change no item and no bit of a score."""
    rng = np.random.default_rng(seed)
    touches, requests = FirstTouches(events_of(rows), TOUCHING), requests_of(asked)
    born = np.where(rng.random(30) < 0.5, 0, rng.integers(0, 60, 30))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(baselines, "_BLOCK_REQUESTS", int(rng.integers(1, 8)))
        tables = list(popularity_rankings(touches, requests, born, k, half_life))
        wanted = list(request_by_request(touches, requests, born, k, half_life))
    found = {name: np.concatenate([getattr(table, name) for table in tables]) for name in RankedTable.TYPES}
    lengths = [len(items) for items, _ in wanted]
    np.testing.assert_array_equal(found["request_id"], np.repeat(requests.request_id, lengths))
    np.testing.assert_array_equal(found["item_index"], np.concatenate([items for items, _ in wanted]))
    np.testing.assert_array_equal(found["score"], np.concatenate([scores for _, scores in wanted]))
    np.testing.assert_array_equal(found["rank"], np.concatenate([np.arange(length) for length in lengths]))


def test_a_user_who_touched_everything_and_one_who_asks_first():
    """One user has all events; the first request is at the time of the first event; k is beyond the catalogue."""
    touches = FirstTouches(events_of([(0, item, 10 + item) for item in range(N_ITEMS)]), TOUCHING)
    asked = requests_of([(0, 10), (0, 99), (1, 99)])
    (table,) = popularity_rankings(touches, asked, np.zeros(N_ITEMS, dtype=np.int64), 100)
    assert np.bincount(table.request_id, minlength=3).tolist() == [N_ITEMS, 0, N_ITEMS]


def test_no_request_is_no_ranking():
    assert not list(popularity_rankings(FirstTouches(events_of([]), TOUCHING), requests_of([]), np.zeros(3), 2))


def test_trending_forgets_and_popularity_does_not():
    events = events_of([(0, 0, 1), (1, 0, 2), (2, 0, 3), (3, 1, 1000)])
    asked, born = requests_of([(9, 1010)]), np.zeros(N_ITEMS, dtype=np.int64)
    touches = FirstTouches(events, TOUCHING)
    assert next(popularity_rankings(touches, asked, born, 2)).item_index.tolist() == [0, 1]
    assert next(popularity_rankings(touches, asked, born, 2, half_life_ms=10.0)).item_index.tolist() == [1, 0]


def test_a_request_does_not_see_its_own_moment_nor_the_future():
    touches = FirstTouches(events_of([(0, 3, 10), (1, 2, 11)]), TOUCHING)
    (table,) = popularity_rankings(touches, requests_of([(5, 10), (5, 11)]), np.zeros(N_ITEMS, dtype=np.int64), 1)
    assert table.item_index.tolist() == [0, 3]
    assert table.score.tolist() == [0.0, 1.0]


def test_only_the_first_touch_of_a_pair_counts():
    touches = FirstTouches(events_of([(0, 3, 10), (0, 3, 11), (1, 3, 12), (0, 2, 13)]), TOUCHING)
    assert touches.touched(0, 13).tolist() == [3]
    assert touches.touched(0, 14).tolist() == [3, 2]
    assert touches.touched(77, 14).tolist() == []
    assert touches.history_lengths(requests_of([(0, 10), (0, 12), (0, 99), (7, 99)])).tolist() == [0, 1, 2, 0]


def test_no_event_at_all_ranks_by_item_index():
    (table,) = popularity_rankings(
        FirstTouches(events_of([]), TOUCHING), requests_of([(0, 5)]), np.zeros(3, dtype=np.int64), 2
    )
    assert table.item_index.tolist() == [0, 1]
