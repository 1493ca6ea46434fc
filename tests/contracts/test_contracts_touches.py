"""What a touch is: a small known answer, and counting by hand."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stages.contracts.tables import EventTable
from stages.contracts.touches import by_pair, first_touches, touching

SIGNALS = ("impression", "click", "seen", "like")
SHOWN = ("impression", "seen", "not_kept")


def events_of(rows: list[tuple[int, int, int]]) -> EventTable:
    """(user, item, signal), one a millisecond."""
    user, item, signal = np.array(rows, dtype=np.int64).reshape(-1, 3).T
    return EventTable(
        user_index=user.copy(),
        item_index=item.copy(),
        event_time_ms=np.arange(len(rows)),
        signal=signal.astype(np.int16),
        value=np.ones(len(rows), dtype=np.float32),
        part=np.zeros(len(rows), dtype=np.int8),
        active=np.ones(len(rows), dtype=np.bool_),
    )


def test_to_be_shown_an_item_is_no_touch() -> None:
    assert touching(SIGNALS, SHOWN).tolist() == [False, True, False, True]
    assert touching(SIGNALS, ()).tolist() == [True] * 4


def test_the_first_touches_of_a_small_log() -> None:
    rows = [
        (1, 5, 0),  # shown first ...
        (0, 5, 1),  # first touch of (0, 5)
        (1, 5, 1),  # ... and then touched: first touch of (1, 5)
        (0, 5, 3),
        (1, 4, 2),  # never more than shown
        (1, 2, 3),  # first touch of (1, 2)
        (1, 5, 1),
    ]
    assert first_touches(events_of(rows), touching(SIGNALS, SHOWN)).tolist() == [1, 5, 2]
    assert first_touches(events_of(rows), touching(SIGNALS, ())).tolist() == [1, 5, 4, 0]
    assert first_touches(events_of([]), touching(SIGNALS, SHOWN)).tolist() == []


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4), st.integers(0, 3)), max_size=40))
def test_first_touches_are_those_of_counting_by_hand(rows: list[tuple[int, int, int]]) -> None:
    first: dict[tuple[int, int], int] = {}
    for row, (user, item, signal) in enumerate(rows):
        if SIGNALS[signal] not in SHOWN:
            first.setdefault((user, item), row)
    assert first_touches(events_of(rows), touching(SIGNALS, SHOWN)).tolist() == [first[pair] for pair in sorted(first)]


def test_pairs_are_grouped_and_keep_their_order_in_time() -> None:
    order, first = by_pair(np.array([1, 0, 1, 0]), np.array([2, 0, 2, 1]))
    assert order.tolist() == [1, 3, 0, 2]
    assert first.tolist() == [True, True, True, False]
