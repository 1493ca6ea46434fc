"""Prepares the next batches while the current one trains."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

Raw = TypeVar("Raw")
Ready = TypeVar("Ready")


class Prefetched(Generic[Raw, Ready]):
    """Iterates over ``prepare(x)`` of each x, up to ``ahead`` of them made in advance by a thread.

    Numpy and torch release the interpreter's lock in their loops, so that a thread is enough. The order
    is that of the source. An error while preparing is raised where the batch is asked for; leaving the
    loop early, by ``close``, stops the thread.

    Args:
        source: what to prepare.
        prepare: called once for each.
        ahead: 0 prepares in the caller's thread.

    Attributes:
        waited: seconds that the consumer has spent waiting for input.
    """

    def __init__(self, source: Iterable[Raw], prepare: Callable[[Raw], Ready], ahead: int) -> None:
        self._source, self._prepare = iter(source), prepare
        self._queue: queue.Queue[tuple[Ready | None, BaseException | None]] = queue.Queue(max(1, ahead))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._fill, daemon=True) if ahead else None
        self.waited = 0.0

    def __iter__(self) -> Iterator[Ready]:
        if self._thread is not None:
            self._thread.start()
        while True:
            started = time.perf_counter()
            ready = self._own() if self._thread is None else self._taken()
            self.waited += time.perf_counter() - started
            if ready is None:
                return
            yield ready

    def close(self) -> None:
        """Stop preparing; safe to call more than once."""
        self._stop.set()
        if self._thread is not None and self._thread.is_alive():
            self._thread.join()

    def _own(self) -> Ready | None:
        for raw in self._source:
            return self._prepare(raw)
        return None

    def _taken(self) -> Ready | None:
        ready, error = self._queue.get()
        if error is not None:
            raise error
        return ready

    def _fill(self) -> None:
        try:
            for raw in self._source:
                if not self._put((self._prepare(raw), None)):
                    return
            self._put((None, None))
        except Exception as error:  # noqa: BLE001 - raised again by the consumer
            self._put((None, error))

    def _put(self, entry: tuple[Ready | None, BaseException | None]) -> bool:
        while not self._stop.is_set():
            try:
                self._queue.put(entry, timeout=0.05)
            except queue.Full:
                continue
            return True
        return False
