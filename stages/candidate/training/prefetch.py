"""Prepares the next batches while the current one trains."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Raw = TypeVar("Raw")
Ready = TypeVar("Ready")


class Prefetched(Generic[Raw, Ready]):
    """Iterates once over ``prepare(x)`` for each x; a thread makes up to ``ahead`` of them in advance.

    NumPy and torch release the interpreter's lock in their loops, so that a thread is enough. The order is that of
    the source. An error of the source or of ``prepare`` is raised when its batch is requested, and nothing after it
    is prepared. The thread ends with the last batch, with an error, and when the loop is left or closed.

    Args:
        source: what to prepare; the thread reads it.
        prepare: called once for each.
        ahead: how many are made in advance; 0 prepares in the caller's thread.

    Attributes:
        waited: seconds that the consumer has spent waiting for input.
    """

    def __init__(self, source: Iterable[Raw], prepare: Callable[[Raw], Ready], ahead: int) -> None:
        self._source, self._prepare, self._ahead = iter(source), prepare, ahead
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch") if ahead else None
        self.waited = 0.0

    def __iter__(self) -> Iterator[Ready]:
        pending: deque[Future[list[Ready]]] = deque()
        try:
            while True:
                started = time.perf_counter()
                ready = self._next() if self._pool is None else self._taken(self._pool, pending)
                self.waited += time.perf_counter() - started
                if not ready:
                    return
                yield ready[0]
        finally:
            self.close()

    def close(self) -> None:
        """Stop preparing, and wait for the batch that is being prepared; safe to call more than once."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _taken(self, pool: ThreadPoolExecutor, pending: deque[Future[list[Ready]]]) -> list[Ready]:
        # The batch that is returned now, and those in advance.
        while len(pending) <= self._ahead:
            pending.append(pool.submit(self._next))
        return pending.popleft().result()

    def _next(self) -> list[Ready]:
        """Return the next batch, or nothing after the last one or an error."""
        try:
            for raw in self._source:
                return [self._prepare(raw)]
        except BaseException:
            self._source = iter(())
            raise
        return []
