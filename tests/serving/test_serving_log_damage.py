"""A damaged event log: what is whole is read, whatever stands around it; a refused write leaves no doubt."""

import io
import json
import os

import pytest

from serving.events import LOG_FILE, Event, EventLog
from serving.log_lines import read_lines
from stages.contracts.errors import TransientError


def make(event_id: str, user: str = "u") -> Event:
    return Event(event_id, user, "i", "click", 1.0, 5)


def line(*ids: str) -> bytes:
    events = [{"event_id": name, "user_id": "u", "item_id": "i", "signal": "click", "value": 1.0} for name in ids]
    post = {"release_id": "r", "events": [{**event, "event_time_ms": 5, "context": {}} for event in events]}
    return json.dumps(post, separators=(",", ":")).encode() + b"\n"


def wrong(**changes: object) -> bytes:
    post = json.loads(line("x"))
    post["events"][0].update(changes)
    return json.dumps(post).encode() + b"\n"


def ids_of(log: EventLog) -> list[str]:
    return [event.event_id for post in log.posts() for event in post.events]


@pytest.mark.parametrize(
    ("damage", "saved"),
    [
        (b"\n", []),
        (b"\x93\xfe\x00 rubbish\n", []),
        (b"\0" * 5000 + b"\n", []),
        (b'{"events": 3}\n', []),
        (b"[1, 2]\n", []),
        (b"7\n", []),
        (b"[" * 100_000 + b"\n", []),
        (b"x" * (26 << 20) + b"\n", []),
        (wrong(user_id=7), []),
        (wrong(value=True), []),
        (wrong(value="much"), []),
        (wrong(value=10**400), []),
        (wrong(event_time_ms=1.5), []),
        (wrong(event_time_ms=10**30), []),
        (wrong(context=[]), []),
        (wrong(colour="red"), []),
        (line("b")[:-30] + b"\n", []),
        (b"\0" * 4096 + line("b"), ["b"]),
        (line("b")[:-30] + line("c"), ["c"]),
        (line("b")[:-1] + line("c"), ["b", "c"]),
        (b"x" * (26 << 20) + line("b"), ["b"]),
    ],
)
def test_a_damaged_line_is_skipped_and_what_follows_is_read(tmp_path, caplog, damage, saved):
    content = line("a") + damage + line("y", "z")
    (tmp_path / LOG_FILE).write_bytes(content)
    log = EventLog(tmp_path)
    try:
        assert ids_of(log) == ["a", *saved, "y", "z"]
        assert [make(name) in log for name in ("a", *saved, "y", "z", "x")] == [True] * (3 + len(saved)) + [False]
        assert (log.damaged_lines, log.torn_bytes) == (1, 0)
        assert "line 2 (" in caplog.text
        log.append("r", [make("more")])
        assert ids_of(log)[-1] == "more"
    finally:
        log.close()
    assert (tmp_path / LOG_FILE).read_bytes().startswith(content), "nothing of a damaged log is thrown away"


def test_every_line_damaged_is_counted_and_a_few_are_named(tmp_path, caplog):
    (tmp_path / LOG_FILE).write_bytes(b"\n" * 1000)
    log = EventLog(tmp_path)
    log.close()
    assert (log.damaged_lines, len(log), log.end) == (1000, 0, 1000)
    assert "1000 damaged lines" in caplog.text
    assert len(caplog.records) < 30


def test_a_torn_line_behind_a_damaged_one_is_dropped(tmp_path):
    whole = line("a") + b"?\n" + line("b")
    (tmp_path / LOG_FILE).write_bytes(whole + b'{"release_id":"r","ev')
    log = EventLog(tmp_path)
    assert (ids_of(log), log.damaged_lines, log.torn_bytes) == (["a", "b"], 1, 21)
    log.close()
    assert (tmp_path / LOG_FILE).read_bytes() == whole


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 100])
def test_lines_are_read_in_pieces(piece):
    content = b"one\n\nthree is long, as it goes\nfour"
    found = list(read_lines(io.BytesIO(content), 0, len(content), piece))
    assert [(part.start, part.length, part.ended) for part in found] == [
        (0, 4, True),
        (4, 1, True),
        (5, 26, True),
        (31, 4, False),
    ]
    assert all(len(part.content) <= max(3 * piece, 0) for part in found)
    assert [part.length for part in read_lines(io.BytesIO(content), 4, 31, piece)] == [1, 26]


def failing(_file: int, *_: int) -> None:
    raise OSError(5, "Input/output error")


@pytest.mark.parametrize("broken", [("fsync",), ("fsync", "ftruncate"), ("write",), ("write", "ftruncate")])
@pytest.mark.parametrize("ended_while_broken", [False, True])
def test_a_retry_after_a_failed_write_is_logged_once(tmp_path, monkeypatch, broken, ended_while_broken):
    log = EventLog(tmp_path)
    log.append("r", [make("before")])
    write = os.write

    def half(file: int, data: bytes) -> int:
        if len(data) > 10:
            return write(file, data[:10])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        for name in broken:
            patch.setattr(f"serving.events.os.{name}", half if name == "write" else failing)
        for _ in range(3):
            with pytest.raises(TransientError, match="nothing of the post was kept"):
                log.append("r", [make("again")])
        assert make("again") not in log
        assert ids_of(log) == ["before"]
        if ended_while_broken:
            log.close()
    if ended_while_broken:
        log = EventLog(tmp_path)
    if make("again") not in log:
        log.append("r", [make("again")])
    log.append("r", [make("after")])
    log.close()
    log = EventLog(tmp_path)
    log.close()
    assert ids_of(log) == ["before", "again", "after"]
    assert (log.damaged_lines, log.torn_bytes) == (0, 0)


def test_ids_belong_to_their_user(tmp_path):
    log = EventLog(tmp_path)
    log.append("r", [make("1", "a"), make("1", "b")])
    log.close()
    log = EventLog(tmp_path)
    log.close()
    assert len(log) == 2
    assert [make("1", user) in log for user in ("a", "b", "c")] == [True, True, False]
    assert make("a1", "") not in log
