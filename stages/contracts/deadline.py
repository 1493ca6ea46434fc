"""Time limits for calls into libraries that may hang.

Python cannot stop a thread: a call that took too long goes on in a daemon thread. ``exit_now`` ends a process with such
threads. Without it the interpreter would wait for them where a library started threads of its own.
"""

from __future__ import annotations

import os
import sys
import threading
import weakref
from collections.abc import Callable
from typing import NoReturn, TypeVar

from stages.contracts.errors import TransientError

ResultT = TypeVar("ResultT")
_threads: weakref.WeakSet[threading.Thread] = weakref.WeakSet()


class Deadline:
    """Runs one call at a time, each with a time limit."""

    def __init__(self, what: str) -> None:
        """Prepare; ``what`` names the other side in errors, such as ``the registry``."""
        self._what = what
        self._thread: threading.Thread | None = None

    def call(self, function: Callable[[], ResultT], seconds: float) -> ResultT:
        """Return what ``function`` returns, or raise what it raises.

        Raises:
            TransientError: if it takes longer, or an earlier call that was given up has not ended yet.
        """
        if self._thread is not None and self._thread.is_alive():
            raise TransientError(f"{self._what} has not answered an earlier call yet")
        results: list[ResultT] = []
        errors: list[BaseException] = []

        def run() -> None:
            try:
                results.append(function())
            except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
                errors.append(error)

        self._thread = start_daemon(run, self._what)
        self._thread.join(seconds)
        if errors:
            raise errors[0]
        if not results:
            raise TransientError(f"{self._what} did not answer within {seconds:g} s")
        return results[0]


def start_daemon(target: Callable[[], None], name: str) -> threading.Thread:
    """Start a thread that does not keep the process alive, and that ``unfinished`` checks."""
    thread = threading.Thread(target=target, name=name, daemon=True)
    _threads.add(thread)
    thread.start()
    return thread


def unfinished() -> bool:
    """Return whether a thread of ``start_daemon`` still runs."""
    return any(thread.is_alive() for thread in list(_threads))


def exit_now(code: int) -> NoReturn:
    """End the process at once, without waiting for any thread; what was printed is flushed."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)
