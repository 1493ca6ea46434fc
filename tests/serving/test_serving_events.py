"""The event log: whole posts or nothing, across kills, full disks and second servers."""

import json
import os

import pytest

from serving.events import LOG_FILE, Event, EventLog
from stages.contracts.errors import ConfigError, TransientError


def make(event_id: str, time_ms: int = 5) -> Event:
    return Event(event_id, "u", "i", "click", 1.0, time_ms)


@pytest.fixture
def log(tmp_path):
    log = EventLog(tmp_path)
    yield log
    log.close()


def test_posts_come_back_in_order_with_their_release(tmp_path, log):
    log.append("r1", [make("a", 7), make("b", 3)])
    middle = log.end
    log.append("r2", [make("c", 4)])
    log_again = list(log.posts())
    assert [(post.release_id, [event.event_id for event in post.events]) for post in log_again] == [
        ("r1", ["a", "b"]),
        ("r2", ["c"]),
    ]
    assert log_again[0].events[0] == make("a", 7)
    assert [post.release_id for post in log.posts(start=middle)] == ["r2"]
    assert [post.release_id for post in log.posts(end=middle)] == ["r1"]
    assert log.newest_ms == 7


def test_ids_and_newest_time_survive_a_restart(tmp_path):
    log = EventLog(tmp_path)
    log.append("r", [make("a", 7), make("b", 3)])
    log.close()
    log = EventLog(tmp_path)
    assert [make(name) in log for name in "abc"] == [True, True, False]
    assert (len(log), log.newest_ms) == (2, 7)
    log.close()


@pytest.mark.parametrize("kept", [1, 20, -1])
def test_a_torn_last_line_is_dropped_and_reported(tmp_path, kept, caplog):
    log = EventLog(tmp_path)
    log.append("r", [make("a")])
    good = log.end
    log.append("r", [make("b"), make("c")])
    log.close()
    path = tmp_path / LOG_FILE
    whole = path.read_bytes()
    torn = whole[: good + kept] if kept > 0 else whole[:kept]
    path.write_bytes(torn)
    log = EventLog(tmp_path)
    assert log.torn_bytes == len(torn) - good > 0
    assert "unfinished last line" in caplog.text
    log.append("r", [make("d")])
    assert [event.event_id for post in log.posts() for event in post.events] == ["a", "d"]
    log.close()


def test_one_server_a_directory(tmp_path, log):
    with pytest.raises(ConfigError, match="another server holds"):
        EventLog(tmp_path)


def test_a_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="data_dir = "):
        EventLog(tmp_path / "file")


def test_a_full_disk_keeps_nothing_of_the_post(tmp_path, log, monkeypatch):
    log.append("r", [make("a")])
    write = os.write

    def half(file: int, data: bytes) -> int:
        if len(data) > 10:
            return write(file, data[:10])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("serving.events.os.write", half)
        with pytest.raises(TransientError, match="No space left"):
            log.append("r", [make("b" * 3)])
    assert make("bbb") not in log
    log.append("r", [make("c")])
    lines = (tmp_path / LOG_FILE).read_text().splitlines()
    assert [json.loads(line)["events"][0]["event_id"] for line in lines] == ["a", "c"]
