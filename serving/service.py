"""Holds the funnel that answers, takes events, and swaps in a new release while it serves.

Threads: a request reads the reference ``funnel`` once and is answered by that release alone. Posts
are serialised by one lock; the last step of a swap (events that came in while the new release was loading) happens
under the same lock, so that no event is lost between two releases.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from serving.answer import Answer
from serving.catch_up import replay
from serving.clock import Clock, choose_clock, wall_clock_ms
from serving.config import ServeConfig
from serving.errors import Fault, FieldError, public_reason
from serving.events import Event, EventLog
from serving.funnel import Funnel
from serving.metrics import Metrics
from serving.release import load_release
from serving.release_source import UNREACHABLE, ReleaseSource, fetch_or_last_known
from stages.compile_ahead.served import compile_served
from stages.contracts.deadline import start_daemon
from stages.contracts.errors import ReleaseError, RequestError, SluiceError
from stages.contracts.item_filter import ItemFilter
from stages.contracts.manifest import VerifiedRelease
from stages.contracts.redaction import redacted

MAX_BACK_OFF = 5
"""The polling interval doubles with each failure in a row to load a release, but at most this many times."""
STOP_SECONDS = 2.0
"""How long ``stop`` waits for a poll or a post under way."""
_logger = logging.getLogger("sluice")


@dataclass(frozen=True)
class NewEvent:
    """A posted event before it is accepted; ``None`` is filled in by the service."""

    user_id: str
    item_id: str
    signal: str
    value: float = 1.0
    event_time_ms: int | None = None
    event_id: str | None = None
    context: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Receipt:
    """What became of a post.

    Attributes:
        release_id: of the release that took the events.
        accepted, duplicates: number of events.
        event_ids: one per event, in the order of the post.
    """

    release_id: str
    accepted: int
    duplicates: int
    event_ids: tuple[str, ...]


@dataclass(frozen=True)
class Readiness:
    """Whether requests can be answered.

    Attributes:
        ready: a release is loaded and a sampled request of a known user was answered just now.
        reason: why not; None if ready.
        release_id: what is served.
        refresh_error: kind of the fault that kept a newer release from being loaded, or None; its message is only in
            the log. The older release goes on serving, so that this alone does not make the server unready.
        clock: ``wall`` or ``data``.
        stale: whether the last attempt to find out which release is wanted, or to load it, failed.
    """

    ready: bool
    reason: str | None
    release_id: str | None
    refresh_error: str | None
    clock: str
    stale: bool = False


class Service:
    """The server without HTTP."""

    def __init__(
        self, source: ReleaseSource, log: EventLog, config: ServeConfig | None = None, metrics: Metrics | None = None
    ) -> None:
        """Prepare; nothing is loaded before ``start``.

        Args:
            source: names and fetches the release to serve.
            log: open event log, closed by ``stop``.
            config: clock, skew and polling.
            metrics: where to count; a new registry by default.
        """
        self.config = config or ServeConfig()
        self.metrics = metrics or Metrics()
        self._source = source
        self._log = log
        self._clock: Clock = None
        self._funnel: Funnel | None = None
        self._samples: list[str] = []
        self._changed: list[str] = []
        self._refresh_error: str | None = None
        self._failures = 0
        self._refreshing = threading.Lock()
        self._posting = threading.Lock()
        self._stopping = threading.Event()
        self._poller: threading.Thread | None = None

    @property
    def funnel(self) -> Funnel:
        """The funnel that answers now.

        Raises:
            RequestError: with status 503 before ``start``.
        """
        funnel = self._funnel
        if funnel is None:
            raise RequestError("no release is loaded yet; try again soon", status=503)
        return funnel

    def start(self) -> None:
        """Load the release, replay the event log, and start to look for newer ones.

        Where the registry does not answer, the release that it named last is served from the cache.

        Raises:
            SluiceError: if there is no release or it is not intact; nothing is served then.
        """
        self.metrics.torn_bytes.set(self._log.torn_bytes)
        self.metrics.damaged_lines.set(self._log.damaged_lines)
        with self._refreshing:
            fetched, error = fetch_or_last_known(self._source)
            if error is not None:
                self._fail_to_ask(error)
            self._load(fetched)
        if self.config.poll_seconds > 0:
            self._poller = start_daemon(self._poll, "release-poller")

    def stop(self) -> None:
        """Stop looking for releases and close the event log, without waiting for calls that hang.

        The log stays open, and its lock held, only while a post hangs.
        """
        self._stopping.set()
        if self._poller is not None:
            self._poller.join(STOP_SECONDS)
        if self._posting.acquire(timeout=STOP_SECONDS):
            self._log.close()
            self._posting.release()
        else:
            _logger.error("a post is still being written; the event log is closed when the process ends")

    def refresh(self) -> bool:
        """Take a new release into service if there is one; on any fault the old one goes on serving.

        A release whose files were changed on the disk is fetched and loaded anew.

        Returns:
            Whether a release was taken into service. A fault is logged, counted and shown by ``readiness``.
        """
        with self._refreshing:
            try:
                changed = self._refresh()
            except UNREACHABLE as error:
                self._fail_to_ask(error)
                return False
            except SluiceError as error:
                self._fail(error)
                return False
            except Exception as error:
                _logger.exception("a new release could not be loaded")
                self._fail(error)
                return False
            self._refresh_error, self._failures = None, 0
            self.metrics.stale.set(0)
            return changed

    def recommend(
        self,
        user_id: str,
        k: int,
        explain: bool = False,
        context: Mapping[str, str] | None = None,
        wanted: ItemFilter | None = None,
    ) -> Answer:
        """Answer from the current release, see ``Funnel.recommend``."""
        answer = self.funnel.recommend(user_id, k, explain=explain, context=context, wanted=wanted)
        self.metrics.answers.labels(answer.path).inc()
        for stage, milliseconds in answer.timings_ms.items():
            self.metrics.stage_seconds.labels(stage).observe(milliseconds / 1000)
        return answer

    def post(self, events: Sequence[NewEvent], prefixes: Sequence[str] | None = None) -> Receipt:
        """Store and apply events: all of them or, if one is wrong, none.

        Events whose id was accepted before, from the same user, change nothing.

        Args:
            events: of any users.
            prefixes: what to call each event in an error, such as ``events[2].``.

        Raises:
            FieldError: naming every fault of every event.
            TransientError: if the log could not be written; nothing was applied.
        """
        with self._posting:
            funnel = self.funnel
            now = funnel.clock()
            complete = [_complete(event, now) for event in events]
            fresh, faults = self._sift(funnel, complete, now, prefixes or [""] * len(events))
            if faults:
                self.metrics.refused_posts.inc()
                raise FieldError(faults)
            if fresh:
                self._log.append(funnel.release_id, fresh)
            for event in fresh:
                funnel.apply_logged(event)
        self.metrics.events.labels("accepted").inc(len(fresh))
        self.metrics.events.labels("duplicate").inc(len(events) - len(fresh))
        ids = tuple(event.event_id for event in complete)
        return Receipt(funnel.release_id, len(fresh), len(events) - len(fresh), ids)

    def readiness(self) -> Readiness:
        """Answer a sampled request, check the release's files, and return whether both went well."""
        funnel, reason = self._funnel, None
        if funnel is None:
            reason = "no release is loaded"
        elif changed := self._changed_parts():
            reason = f"files of release {funnel.release_id} were changed on the disk: {', '.join(changed[:5])}"
        else:
            try:
                _answer_samples(funnel, self._samples[:1])
            except Exception:
                _logger.exception("the sampled request failed")
                reason = "a sampled request failed; the server's log has the details"
        return Readiness(
            ready=reason is None,
            reason=reason,
            release_id=None if funnel is None else funnel.release_id,
            refresh_error=self._refresh_error,
            clock="wall" if self._clock is None else "data",
            stale=self._refresh_error is not None,
        )

    def _sift(
        self, funnel: Funnel, events: list[Event], now: int, prefixes: Sequence[str]
    ) -> tuple[list[Event], list[Fault]]:
        """Return the events that are new, with final times, and all faults."""
        fresh: dict[tuple[str, str], Event] = {}
        faults: list[Fault] = []
        for event, prefix in zip(events, prefixes, strict=True):
            key = (event.user_id, event.event_id)
            if event in self._log or key in fresh:
                continue
            faults += funnel.event_faults(event, now, prefix)
            fresh[key] = replace(event, event_time_ms=min(event.event_time_ms, now))
        return list(fresh.values()), faults

    def _refresh(self) -> bool:
        damaged = self._changed_parts()
        if damaged:
            _logger.error("files of the served release were changed on the disk: %s", ", ".join(damaged))
            fetched, error = fetch_or_last_known(self._source)
            self._load(fetched)
            if error is not None:
                raise error
            return True
        if self._source.wanted() == self.funnel.release_id:
            return False
        self._load(self._source.fetch())
        return True

    def _load(self, fetched: Path | VerifiedRelease) -> None:
        """Load a release completely, replay the log, try it on known users, then swap one reference."""
        compile_served()
        release = load_release(fetched)
        as_of_ms = release.manifest.as_of_ms
        clock = choose_clock(self.config.clock, as_of_ms, self._log.newest_ms, self._clock)
        funnel = Funnel(release, clock or wall_clock_ms, self.config.max_clock_skew_ms)
        replayed_to = self._log.end
        counts = replay(funnel, self._log.posts(end=replayed_to))
        samples = funnel.known_users(self.config.ready_users)
        _answer_samples(funnel, samples)
        with self._posting:
            counts += replay(funnel, self._log.posts(start=replayed_to))
            self._funnel, self._samples, self._clock = funnel, samples, clock
        for result, number in counts.items():
            self.metrics.replayed.labels(result).inc(number)
        self.metrics.set_release(funnel.release_id, as_of_ms)
        self.metrics.reloads.inc()
        shown = "the machine's clock" if clock is None else "the data's own clock"
        logged = dict(counts) or "none"
        _logger.info("serving release %s by %s; logged events: %s", funnel.release_id, shown, logged)

    def _changed_parts(self) -> list[str]:
        """Return the files of the served release that were changed since it was loaded; counts each once."""
        release = self.funnel.release
        found = release.files.changed()
        self.metrics.changed_parts.inc(len(set(found) - set(self._changed)))
        self._changed = found
        return found

    def _fail_to_ask(self, error: Exception) -> None:
        _logger.error(
            "the registry cannot be asked, the release it named last goes on serving: %s", redacted(str(error))
        )
        self._count_failure(public_reason(error))

    def _fail(self, error: Exception) -> None:
        _logger.error("the old release goes on serving: %s: %s", type(error).__name__, redacted(str(error)))
        self._count_failure(public_reason(error))
        self._failures += 1

    def _count_failure(self, reason: str) -> None:
        self.metrics.reload_failures.inc()
        self.metrics.stale.set(1)
        self._refresh_error = reason

    def _poll(self) -> None:
        # Checking a large release again and again takes time from requests: back off. Asking the registry is cheap.
        while not self._stopping.wait(self.config.poll_seconds * 2 ** min(self._failures, MAX_BACK_OFF)):
            self.refresh()


def _complete(event: NewEvent, now: int) -> Event:
    return Event(
        event_id=event.event_id or str(uuid.uuid4()),
        user_id=event.user_id,
        item_id=event.item_id,
        signal=event.signal,
        value=event.value,
        event_time_ms=now if event.event_time_ms is None else event.event_time_ms,
        context=dict(event.context),
    )


def _answer_samples(funnel: Funnel, user_ids: Sequence[str]) -> None:
    """Answer a request of each known user and of an unknown one.

    Raises:
        ReleaseError: if an answer is empty.
    """
    for user_id in (*user_ids, f"unknown-{uuid.uuid4()}"):
        answer = funnel.recommend(user_id, min(10, funnel.max_k), explain=True)
        if not answer.items and answer.counts["seen_excluded"] < answer.counts["catalogue"]:
            raise ReleaseError(f"release {funnel.release_id}: the sampled request of user {user_id!r} found no item")
