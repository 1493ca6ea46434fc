"""The durable event log: what was posted survives kills, restarts and new releases.

One JSON line holds one post, so that a post is stored as a whole or not at all:

    {"release_id": "...", "events": [{"event_id": ..., "user_id": ..., ...}, ...]}

``serving.log_lines`` reads the lines, damaged ones too.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from serving.log_lines import read_lines, values_in
from stages.contracts.errors import ConfigError, DataError, TransientError

LOG_FILE = "events.jsonl"
_POST_START = b'{"release_id":'
"""How every post begins. No string in a post holds it: JSON writes a quote in a string as ``\\"``."""
_LATEST_MS = 1 << 61
_REPORTED_LINES = 20
_logger = logging.getLogger("sluice")


@dataclass(frozen=True, slots=True)
class Event:
    """An action of a user, with the ids that clients use.

    Attributes:
        event_id: makes a retry of the same post harmless; unique for one user only: two users may use the same id.
        user_id, item_id: as in the catalogue; users need not be known.
        signal: one of the release's signals.
        value: strength of the signal, finite.
        event_time_ms: when it happened, int ms UTC.
        context: context of the event, by the names of the release's context columns.
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
        damaged_lines: number of earlier lines that were not posts when the log was opened; they stay in the file.
        newest_ms: latest event time in the log, None where it is empty.
    """

    def __init__(self, directory: Path) -> None:
        """Open or create the log and read which events it holds.

        A line that is no post is skipped, counted and reported by its number; what follows it is read.

        Raises:
            ConfigError: if the directory cannot be written or another server holds the log.
            DataError: if the file cannot be read.
        """
        self.path = directory / LOG_FILE
        self.newest_ms: int | None = None
        self.damaged_lines = 0
        self._ids: set[bytes] = set()
        self._closed = False
        self._tail_unsure = False
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise ConfigError(f"data_dir = {str(directory)!r}: {error.strerror}; must be writable") from None
        try:
            self._lock()
            self._end, self.torn_bytes = self._recover()
            _sync_directory(directory)
        except OSError as error:
            os.close(self._file)
            raise DataError(f"{self.path}: {error.strerror}") from None
        except BaseException:
            os.close(self._file)
            raise

    def __contains__(self, event: Event) -> bool:
        """Return whether an event of this user with this ``event_id`` is in the log."""
        return _key(event) in self._ids

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def end(self) -> int:
        """Offset in bytes behind the last post."""
        return self._end

    def append(self, release_id: str, events: Sequence[Event]) -> None:
        """Store one post; when this returns it is on the disk.

        Raises:
            TransientError: if the disk refuses, or the log is closed; the post is then not part of the log.
        """
        if self._closed:
            raise TransientError("event log: closed, the server is stopping")
        post = {"release_id": release_id, "events": [asdict(event) for event in events]}
        line = json.dumps(post, separators=(",", ":"), allow_nan=False).encode() + b"\n"
        try:
            if self._tail_unsure:
                self._cut_tail()
            self._tail_unsure = True
            _write_all(self._file, line)
            os.fsync(self._file)
        except OSError as error:
            _logger.error("event log %s: %s", self.path, error.strerror)
            self._try_to_cut_tail()
            raise TransientError(f"event log: {error.strerror}; nothing of the post was kept") from None
        self._tail_unsure = False
        self._end += len(line)
        self._remember(events)

    def posts(self, start: int = 0, end: int | None = None) -> Iterator[Post]:
        """Yield the posts from byte offset ``start`` to ``end`` (default: all), in order."""
        end = self._end if end is None else end
        with self.path.open("rb") as stream:
            for line in read_lines(stream, start, end):
                yield from _posts_in(line.content)[0]

    def close(self) -> None:
        """Close the file and release its lock; closing again does nothing."""
        if not self._closed:
            self._closed = True
            if self._tail_unsure:
                self._try_to_cut_tail()
            os.close(self._file)

    def _cut_tail(self) -> None:
        """Remove, durably, what a failed post may have left after the last good one.

        After a failed fsync the kernel may drop the data and mark it as written: the post is written anew when the
        client repeats it. Truncating rewrites the last block as well.
        """
        os.ftruncate(self._file, self._end)
        os.fsync(self._file)
        self._tail_unsure = False

    def _try_to_cut_tail(self) -> None:
        try:
            self._cut_tail()
        except OSError as error:
            _logger.error("event log %s: %s; its end is mended before the next post", self.path, error.strerror)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(
                f"data_dir = {str(self.path.parent)!r}: another server holds {LOG_FILE}; allowed is one server per "
                "directory"
            ) from None

    def _recover(self) -> tuple[int, int]:
        """Index the log, drop an unfinished last line; return (end, dropped bytes)."""
        good, size = 0, os.fstat(self._file).st_size
        with self.path.open("rb") as stream:
            for number, line in enumerate(read_lines(stream, 0, size), start=1):
                if not line.ended:
                    break
                posts, problem = _posts_in(line.content)
                if problem is not None:
                    self._report_damage(number, line.start, line.length, problem, len(posts))
                for post in posts:
                    self._remember(post.events)
                good = line.start + line.length
        if self.damaged_lines:
            _logger.error("%s: %d damaged lines were skipped; they stay in the file", self.path, self.damaged_lines)
        if good < size:
            _logger.warning("%s: dropped an unfinished last line of %d bytes", self.path, size - good)
            os.ftruncate(self._file, good)
            os.fsync(self._file)
        return good, size - good

    def _report_damage(self, number: int, start: int, length: int, problem: str, saved: int) -> None:
        self.damaged_lines += 1
        if self.damaged_lines <= _REPORTED_LINES:
            _logger.error(
                "%s: line %d (%d bytes from byte %d) is not a post of events: %s; whole posts found in it: %d",
                self.path,
                number,
                length,
                start,
                problem,
                saved,
            )

    def _remember(self, events: Sequence[Event]) -> None:
        self._ids.update(_key(event) for event in events)
        newest = max((event.event_time_ms for event in events), default=None)
        if newest is not None and (self.newest_ms is None or newest > self.newest_ms):
            self.newest_ms = newest


def _key(event: Event) -> bytes:
    """Return a 16-byte hash of user and event id, which takes less memory than the two ids."""
    user = event.user_id.encode("utf-8", "surrogatepass")
    text = len(user).to_bytes(4, "little") + user + event.event_id.encode("utf-8", "surrogatepass")
    return hashlib.blake2b(text, digest_size=16).digest()


def _posts_in(line: bytes) -> tuple[list[Post], str | None]:
    """Return the posts of a line, and what is wrong with it if it is not just one post.

    A damaged line may still hold whole posts: one after bytes that a power loss left, or two without a newline between.
    """
    try:
        return [_parse(json.loads(line))], None
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        problem = str(error) or type(error).__name__
    posts = []
    for value in values_in(line, _POST_START):
        try:
            posts.append(_parse(value))
        except (ValueError, KeyError, TypeError, OverflowError):
            continue
    return posts, problem


def _parse(post: Any) -> Post:
    if not isinstance(post, dict) or not isinstance(post["release_id"], str) or not isinstance(post["events"], list):
        raise ValueError('found other JSON than {"release_id": ..., "events": [...]}')
    return Post(release_id=post["release_id"], events=tuple(_event(row) for row in post["events"]))


def _event(row: Any) -> Event:
    event = Event(**row)
    if not isinstance(event.context, dict):
        raise ValueError("an event's context is no object")
    texts = (event.event_id, event.user_id, event.item_id, event.signal, *event.context, *event.context.values())
    numbers = isinstance(event.value, float | int) and type(event.event_time_ms) is int
    if not numbers or isinstance(event.value, bool) or not all(isinstance(text, str) for text in texts):
        raise ValueError("an event's field is of another type")
    if not 0 <= event.event_time_ms < _LATEST_MS:
        raise ValueError("an event's time is out of range")
    float(event.value)  # an integer may be too large
    return event


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
