"""The durable event log: what was posted survives kills, restarts and new releases.

One JSON line holds one post, so that a post is stored as a whole or not at all:

    {"release_id": "...", "events": [{"event_id": ..., "user_id": ..., ...}, ...]}
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from stages.contracts.errors import ConfigError, DataError, TransientError

LOG_FILE = "events.jsonl"
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Event:
    """Something that a user did, by the ids of the outside world.

    Attributes:
        event_id: makes a retry of the same post harmless.
        user_id, item_id: as in the catalogue; users need not be known.
        signal: one of the release's signals.
        value: strength of the signal, finite.
        event_time_ms: when it happened, int ms UTC.
        context: what is known about that moment, by the names of the release's context columns.
    """

    event_id: str
    user_id: str
    item_id: str
    signal: str
    value: float
    event_time_ms: int
    context: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Post:
    """The events of one post and the release that served when they came in."""

    release_id: str
    events: tuple[Event, ...]


class EventLog:
    """An append-only file of posts; one process at a time.

    Not thread-safe: the service serialises posts.

    Attributes:
        torn_bytes: length of an unfinished last line that was dropped when the log was opened.
        newest_ms: latest event time in the log, None where it is empty.
    """

    def __init__(self, directory: Path) -> None:
        """Open or create the log and read which events it holds.

        Raises:
            ConfigError: if the directory cannot be written or another server holds the log.
            DataError: if a line before the last one is not a post.
        """
        self.path = directory / LOG_FILE
        self.newest_ms: int | None = None
        self._ids: set[str] = set()
        self._closed = False
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise ConfigError(f"data_dir = {str(directory)!r}: {error.strerror}; must be writable") from None
        try:
            self._lock()
            self._end, self.torn_bytes = self._recover()
            _sync_directory(directory)
        except BaseException:
            os.close(self._file)
            raise

    def __contains__(self, event_id: str) -> bool:
        return event_id in self._ids

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def end(self) -> int:
        """Offset in bytes behind the last post."""
        return self._end

    def append(self, release_id: str, events: Sequence[Event]) -> None:
        """Store one post; when this returns it is on the disk.

        Raises:
            TransientError: if the disk refuses, or the log is closed; it is then as it was before.
        """
        if self._closed:
            raise TransientError(f"event log {self.path}: closed, the server is stopping")
        post = {"release_id": release_id, "events": [asdict(event) for event in events]}
        line = json.dumps(post, separators=(",", ":"), allow_nan=False).encode() + b"\n"
        try:
            _write_all(self._file, line)
            os.fsync(self._file)
        except OSError as error:
            os.ftruncate(self._file, self._end)
            raise TransientError(f"event log {self.path}: {error.strerror}; nothing of the post was kept") from None
        self._end += len(line)
        self._remember(events)

    def posts(self, start: int = 0, end: int | None = None) -> Iterator[Post]:
        """Yield the posts from byte offset ``start`` to ``end`` (default: all), in order."""
        end = self._end if end is None else end
        with self.path.open("rb") as stream:
            stream.seek(start)
            while stream.tell() < end:
                yield _parse(stream.readline())

    def close(self) -> None:
        """Close the file and let another server have it; closing again does nothing."""
        if not self._closed:
            self._closed = True
            os.close(self._file)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(
                f"data_dir = {str(self.path.parent)!r}: another server holds {LOG_FILE}; allowed is one a directory"
            ) from None

    def _recover(self) -> tuple[int, int]:
        """Index the log, drop an unfinished last line; return (end, dropped bytes)."""
        good, size = 0, os.fstat(self._file).st_size
        with self.path.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                try:
                    if not line.endswith(b"\n"):
                        raise ValueError("no newline at the end")
                    post = _parse(line)
                except (ValueError, KeyError, TypeError) as error:
                    if good + len(line) < size:
                        raise DataError(f"{self.path}: line {number} is not a post of events: {error}") from None
                    break
                good += len(line)
                self._remember(post.events)
        if good < size:
            _logger.warning("%s: dropped an unfinished last line of %d bytes", self.path, size - good)
            os.ftruncate(self._file, good)
            os.fsync(self._file)
        return good, size - good

    def _remember(self, events: Sequence[Event]) -> None:
        self._ids.update(event.event_id for event in events)
        newest = max((event.event_time_ms for event in events), default=None)
        if newest is not None and (self.newest_ms is None or newest > self.newest_ms):
            self.newest_ms = newest


def _parse(line: bytes) -> Post:
    post: dict[str, Any] = json.loads(line)
    return Post(release_id=post["release_id"], events=tuple(Event(**event) for event in post["events"]))


def _write_all(file: int, data: bytes) -> None:
    while data:
        data = data[os.write(file, data) :]


def _sync_directory(directory: Path) -> None:
    """Make the file's name durable, too."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
