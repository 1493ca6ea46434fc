from __future__ import annotations

import threading
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.candidate.training.prefetch import Prefetched

WAIT_S = 60
"""Nothing here takes so long; a test that waits for it has failed."""


def prefetch_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert prefetch_threads() == []


class Counted:
    """Prepares numbers, remembers which, and lets a test wait for a number of them."""

    def __init__(self) -> None:
        self.made: list[int] = []
        self.names: set[str] = set()
        self._changed = threading.Condition()

    def __call__(self, number: int) -> int:
        with self._changed:
            self.made.append(number)
            self.names.add(threading.current_thread().name)
            self._changed.notify_all()
        return number * 10

    def wait_for(self, n: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.made) >= n, WAIT_S), self.made


@settings(deadline=None)
@given(st.lists(st.integers(), max_size=12), st.integers(0, 5))
def test_the_order_is_that_of_the_source(numbers: list[int], ahead: int) -> None:
    assert list(Prefetched(numbers, lambda number: [number], ahead)) == [[number] for number in numbers]


def test_a_batch_may_be_none_or_empty() -> None:
    for ahead in (0, 2):
        assert list(Prefetched([1, 2, 3], {1: None, 2: [], 3: 0}.get, ahead)) == [None, [], 0]


def test_only_so_many_are_made_in_advance_and_the_others_once_there_is_room() -> None:
    prepare = Counted()
    ready = iter(Prefetched(range(10), prepare, 3))
    assert prepare.made == [], "nothing before the first is asked for"
    for taken in range(1, 8):
        assert next(ready) == 10 * (taken - 1)
        prepare.wait_for(taken + 3)
        # The worker has nothing more to do: a task behind these would have begun as soon as the last one ended.
        assert prepare.made == list(range(taken + 3))
    assert list(ready) == [70, 80, 90]
    assert prepare.made == list(range(10)), "each once"
    assert all(name.startswith("prefetch") for name in prepare.names)


def test_none_ahead_prepares_in_the_callers_thread() -> None:
    prepare = Counted()
    ready = iter(Prefetched(range(3), prepare, 0))
    for taken in range(3):
        assert next(ready) == 10 * taken
        assert prepare.made == list(range(taken + 1))
    assert list(ready) == []
    assert prepare.names == {threading.current_thread().name}


@pytest.mark.parametrize("ahead", [0, 1, 4])
@pytest.mark.parametrize("fails_in", ["source", "prepare"])
def test_an_error_is_raised_where_its_batch_is_asked_for(ahead: int, fails_in: str) -> None:
    prepared = []

    def source() -> Iterator[int]:
        for number in range(6):
            if fails_in == "source" and number == 2:
                raise ValueError("batch 2 is broken")
            yield number

    def prepare(number: int) -> int:
        if fails_in == "prepare" and number == 2:
            raise ValueError("batch 2 is broken")
        prepared.append(number)
        return number

    ready = iter(Prefetched(source(), prepare, ahead))
    assert [next(ready), next(ready)] == [0, 1]
    with pytest.raises(ValueError, match="batch 2 is broken"):
        next(ready)
    assert prefetch_threads() == []
    assert prepared == [0, 1], "nothing after it is prepared"
    with pytest.raises(StopIteration):
        next(ready)


def test_an_error_does_not_hide_the_batches_before_it() -> None:
    """The thread meets the error long before its batch is asked for."""
    met = threading.Event()

    def prepare(number: int) -> int:
        if number == 3:
            met.set()
            raise OSError("disk")
        return number

    ready = iter(Prefetched(range(9), prepare, 5))
    assert next(ready) == 0
    assert met.wait(WAIT_S)
    assert [next(ready), next(ready)] == [1, 2]
    with pytest.raises(OSError, match="disk"):
        next(ready)


def test_close_waits_for_the_batch_in_the_making_and_drops_the_others() -> None:
    prepare, begun, go_on = Counted(), threading.Event(), threading.Event()

    closed = threading.Event()

    def slow(number: int) -> int:
        if number == 1:
            begun.set()
            assert go_on.wait(WAIT_S)
        if number > 1:  # begun before close was at work: give it the time
            closed.wait(5)
        return prepare(number)

    prefetched = Prefetched(range(100), slow, 8)
    ready = iter(prefetched)
    assert next(ready) == 0
    assert begun.wait(WAIT_S)
    closing = threading.Thread(target=prefetched.close)
    closing.start()
    assert closing.is_alive(), "the second batch is still in the making"
    go_on.set()
    closing.join(WAIT_S)
    closed.set()
    assert prefetch_threads() == []
    assert prepare.made in ([0, 1], [0, 1, 2]), "the rest is dropped; one may begin before close cancels"
    prefetched.close()
    with pytest.raises(RuntimeError):
        next(ready)


def test_leaving_the_loop_early_stops_the_thread() -> None:
    for _ in Prefetched(range(1_000_000), Counted(), 4):
        break
    assert prefetch_threads() == []


def test_close_before_the_first_batch() -> None:
    prepare = Counted()
    prefetched = Prefetched(range(5), prepare, 2)
    prefetched.close()
    assert prepare.made == []


@pytest.mark.parametrize("ahead", [0, 2])
def test_waiting_is_counted_and_working_is_not(ahead: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that moves by 3 while the first batch is prepared, and by 5 while each is consumed."""
    now = 0
    monkeypatch.setattr("stages.candidate.training.prefetch.time", SimpleNamespace(perf_counter=lambda: now))
    made = Counted()

    def prepare(number: int) -> int:
        nonlocal now
        now += 3 if number == 0 else 0
        return made(number)

    prefetched = Prefetched(range(3), prepare, ahead)
    for taken, _ in enumerate(prefetched, start=1):
        made.wait_for(taken)
        now += 5
    assert prefetched.waited == 3
    assert now == 18
