"""Hours of GH Archive: nested fields, the events' own ids, hours that arrive one by one, kills.

The files are made after the documented format of GitHub's events
(https://docs.github.com/en/rest/using-the-rest-api/github-event-types) as GH Archive keeps them: one
JSON object a line, gzipped, an hour a file. What its own hours hold beside that is in
``test_warehouse_gharchive_history``.
"""

from __future__ import annotations

import gzip
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import stages.warehouse.ingest.ingest as module
from stages.warehouse.database.engine import Warehouse
from stages.warehouse.ingest.ingest import ingest
from stages.warehouse.layouts.detect import detect

NOW = 1_500_000_000_000
TYPES = ("WatchEvent", "PushEvent", "ForkEvent", "IssuesEvent", "CreateEvent", "PullRequestEvent")


def hour(number: int, n_events: int, renamed: bool = False) -> list[dict[str, Any]]:
    """Return the events of one hour of 2015-01-01; repository 3 has another name once it is renamed."""
    chance, events = random.Random(number), []
    for row in range(n_events):
        actor, repo = chance.randrange(1, 40), chance.randrange(1, 20)
        name = f"owner{repo % 5}/{'new' if renamed and repo == 3 else 'repo'}-{repo}"
        kind = chance.choice(TYPES)
        event = {
            "id": str(2_489_000_000 + 10_000 * number + row),
            "type": kind,
            "actor": {
                "id": actor,
                "login": f"user-{actor}",
                "gravatar_id": "",
                "url": f"https://api.github.com/users/user-{actor}",
                "avatar_url": f"https://avatars.githubusercontent.com/u/{actor}?",
            },
            "repo": {"id": repo, "name": name, "url": f"https://api.github.com/repos/{name}"},
            "payload": {
                "push_id": row,
                "size": 1,
                "commits": [{"sha": f"{row:040x}", "message": 'Caf\xe9 \\ "quoted"\n\u2028' * chance.randrange(4)}],
            },
            "public": True,
            "created_at": f"2015-01-01T{number:02}:{row * 59 // n_events:02}:{row % 60:02}Z",
        }
        if row % 3 == 0:
            event["org"] = {"id": 9, "login": "org"}
        events.append(event)
    return events


def write(folder: Path, number: int, events: list[dict[str, Any]], keep: float = 1.0, level: int = 9) -> Path:
    path = folder / f"2015-01-01-{number}.json.gz"
    data = gzip.compress("".join(json.dumps(event) + "\n" for event in events).encode(), level)
    path.write_bytes(data[: round(len(data) * keep)])
    return path


def select(warehouse: Warehouse, query: str) -> list[tuple[Any, ...]]:
    with warehouse.connect() as connection:
        return [tuple(row) for row in connection.exec_driver_sql(query)]


def test_every_event_is_feedback_of_its_own_kind(duck: Warehouse, tmp_path: Path) -> None:
    first, second = hour(9, 50), hour(10, 40, renamed=True)
    write(tmp_path, 10, second)
    write(tmp_path, 9, first)
    report = ingest(duck, detect(tmp_path), now_ms=NOW)
    assert [Path(file.file).name for file in report.files] == ["2015-01-01-9.json.gz", "2015-01-01-10.json.gz"] * 2
    assert report.reasons == {}
    found = select(duck, "SELECT user_id, item_id, signal, value, event_time_ms FROM interactions")
    start = 1_420_070_400_000
    expected = []
    for number, events in ((9, first), (10, second)):
        for row, event in enumerate(events):
            at = start + 1000 * (3600 * number + 60 * (row * 59 // len(events)) + row % 60)
            expected.append((str(event["actor"]["id"]), str(event["repo"]["id"]), event["type"], 1.0, at))
    assert sorted(found) == sorted(expected)
    names = dict(select(duck, "SELECT item_id, title FROM items"))
    assert names == {str(event["repo"]["id"]): event["repo"]["name"] for event in [*first, *second]}
    assert names["3"] == "owner3/new-3"


def test_an_id_counts_once_in_one_file_and_in_two(warehouse: Warehouse, tmp_path: Path) -> None:
    events = hour(1, 30)
    twin = {**events[0], "id": "7"}
    write(tmp_path, 1, [*events, events[4], twin])
    write(tmp_path, 2, [*events[10:], *hour(2, 5)])
    report = ingest(warehouse, detect(tmp_path), now_ms=NOW, chunk_rows=40)
    counts = report.tables["interactions"]
    assert counts == dict(rows_read=57, rows_loaded=36, rows_duplicate=21, rows_quarantined=0)
    without = tmp_path / "without"
    without.mkdir()
    write(without, 3, [{key: value for key, value in events[0].items() if key != "id"}, twin])
    assert ingest(warehouse, detect(without), now_ms=NOW).reasons == {"missing_event_id": 1}


def test_a_partly_written_hour_is_completed_later(warehouse: Warehouse, tmp_path: Path) -> None:
    events = hour(5, 200)
    write(tmp_path, 5, events, keep=0.6)
    part = ingest(warehouse, detect(tmp_path), now_ms=NOW).tables["interactions"]
    assert part["rows_quarantined"] == 1
    assert 0 < part["rows_loaded"] == part["rows_read"] - 1 < 200
    (reason, row), *_ = select(warehouse, "SELECT reason, row_number FROM quarantine WHERE table_name = 'interactions'")
    assert (reason, row) == ("truncated_gzip", part["rows_loaded"] + 1)
    write(tmp_path, 5, events)
    whole = ingest(warehouse, detect(tmp_path), now_ms=NOW).tables["interactions"]
    assert whole == dict(
        rows_read=200, rows_loaded=200 - part["rows_loaded"], rows_duplicate=part["rows_loaded"], rows_quarantined=0
    )
    assert select(warehouse, "SELECT count(*) FROM interactions") == [(200,)]


def test_only_new_hours_are_opened(duck: Warehouse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []
    real = module.sha256_file
    monkeypatch.setattr(module, "sha256_file", lambda path: (hashed.append(path.name), real(path))[1])

    def load(now_ms: int) -> dict[str, int]:
        hashed.clear()
        return ingest(duck, detect(tmp_path), now_ms=now_ms).tables["interactions"]

    first = write(tmp_path, 1, hour(1, 20), level=0)
    later = int(first.stat().st_ctime_ns / 1e6) + 60_000
    # Written within two seconds of the load: its times prove nothing yet.
    load(later - 60_000)
    assert load(later)["rows_loaded"] == 0
    assert hashed == ["2015-01-01-1.json.gz"] * 2
    write(tmp_path, 2, hour(2, 10))
    assert load(later) == dict(rows_read=30, rows_loaded=10, rows_duplicate=20, rows_quarantined=0)
    assert hashed == ["2015-01-01-2.json.gz"] * 2
    assert load(later) == dict(rows_read=30, rows_loaded=0, rows_duplicate=30, rows_quarantined=0)
    assert hashed == []

    before = first.stat()
    write(tmp_path, 1, [{**event, "id": "9" + event["id"][1:]} for event in hour(1, 20)], level=0)
    os.utime(first, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (first.stat().st_size, first.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert load(later)["rows_loaded"] == 20
    assert hashed == ["2015-01-01-1.json.gz"] * 2


def test_files_with_lasting_faults_are_not_read_again(duck: Warehouse, tmp_path: Path) -> None:
    path = write(tmp_path, 1, [*hour(1, 20), {"id": "1"}])
    later = int(path.stat().st_ctime_ns / 1e6) + 60_000
    first = ingest(duck, detect(tmp_path), now_ms=later)
    again = ingest(duck, detect(tmp_path), now_ms=later)
    assert [file.known for file in again.files] == [True, True]
    assert again.reasons == first.reasons == {"missing_item_id": 1, "missing_user_id": 1}
    assert again.tables["interactions"] == dict(rows_read=21, rows_loaded=0, rows_duplicate=20, rows_quarantined=1)


def test_a_killed_load_goes_on_where_it_stopped(load_and_kill: Callable[..., str], tmp_path: Path) -> None:
    folder = tmp_path / "hours"
    folder.mkdir()
    for number in (1, 2, 3):
        write(folder, number, [*hour(number, 60), {"id": "broken"}])
    url = load_and_kill(detect(folder), "interactions", 9, 200)
    with Warehouse(url) as warehouse, Warehouse(f"duckdb:///{tmp_path / 'fresh.duckdb'}") as fresh:
        kept = warehouse.counts()
        assert 0 < kept["interactions"] < 180
        report = ingest(warehouse, detect(folder), now_ms=NOW)
        assert report.tables["interactions"]["rows_loaded"] == 180 - kept["interactions"]
        assert sum(file.known for file in report.files) == kept["ingest_log"] >= 3
        ingest(fresh, detect(folder), now_ms=NOW)
        assert warehouse.counts() == fresh.counts()
        assert warehouse.content_fingerprint() == fresh.content_fingerprint()
