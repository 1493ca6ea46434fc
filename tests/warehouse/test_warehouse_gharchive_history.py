"""What years of GH Archive hold beside plain events: ids that come again, damaged lines, older forms.

Each line is made by hand in the shape of one that is or was in the archive; docs/sources.md says where.
"""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest

from stages.contracts.config import parse_config, read_yaml
from stages.contracts.errors import DataError
from stages.warehouse.database.engine import Warehouse
from stages.warehouse.ingest.ingest import ingest
from stages.warehouse.layouts.detect import detect, find_layout
from stages.warehouse.mapping import IngestSource

NOW = 1_800_000_000_000
SOURCES = Path(__file__).resolve().parents[2] / "docs" / "sources.md"
EVENTS = "SELECT user_id, item_id, signal, event_time_ms FROM interactions ORDER BY event_time_ms, user_id"


def event(event_id: str, kind: str, created_at: str, actor: int = 1, repo: dict[str, Any] | None = None) -> str:
    """Return a line in the form of GitHub's Events API."""
    where = {"id": 7, "name": "owner/repo", "url": "https://api.github.com/repos/owner/repo"} if repo is None else repo
    who = {"id": actor, "login": f"user-{actor}"}
    values = {"id": event_id, "type": kind, "actor": who, "repo": where, "payload": {}, "created_at": created_at}
    return json.dumps(values)


def timeline(kind: str, actor: str, created_at: str, repository: int | None) -> str:
    """Return a line in the form of GitHub's old timeline."""
    values: dict[str, Any] = {"created_at": created_at, "type": kind, "actor": actor, "payload": {"size": 1}}
    values["actor_attributes"] = {"login": actor, "type": "User"}
    if repository is not None:
        url = f"https://github.com/owner/repo-{repository}"
        values["repository"] = {"id": repository, "name": f"repo-{repository}", "owner": "owner", "url": url}
    return json.dumps(values)


def write(folder: Path, hour: str, text: str) -> Path:
    path = folder / f"{hour}.json.gz"
    path.write_bytes(gzip.compress(text.encode()))
    return path


def select(warehouse: Warehouse, query: str) -> list[tuple[Any, ...]]:
    with warehouse.connect() as connection:
        return [tuple(row) for row in connection.exec_driver_sql(query)]


def test_an_id_that_comes_again_is_another_event(warehouse: Warehouse, tmp_path: Path) -> None:
    first = event("6725093205", "WatchEvent", "2017-10-18T12:00:00Z")
    push = event("6725093205", "PushEvent", "2025-12-15T00:00:00Z", actor=2)
    star = event("6725093205", "WatchEvent", "2025-12-15T00:00:00Z", actor=3)
    write(tmp_path, "2017-10-18-12", f"{first}\n{first}\n")
    write(tmp_path, "2025-12-15-0", f"{push}\n{star}\n")
    source = detect(tmp_path)
    counts = ingest(warehouse, source, now_ms=NOW, chunk_rows=1).tables["interactions"]
    assert counts == dict(rows_read=4, rows_loaded=3, rows_duplicate=1, rows_quarantined=0)
    assert [row[0] for row in select(warehouse, EVENTS)] == ["1", "2", "3"]
    assert ingest(warehouse, source, now_ms=NOW).tables["interactions"]["rows_loaded"] == 0


def test_events_without_a_line_break_between_them(warehouse: Warehouse, tmp_path: Path) -> None:
    one, two, three, four = (event(str(row), "WatchEvent", f"2023-05-14T19:00:0{row}Z", actor=row) for row in range(4))
    broken = one[:60]
    lines = [one + "\0" * 1409 + two, three + four, event("9", "WatchEvent", "x") + "\0" + broken, broken + one, "\0"]
    write(tmp_path, "2023-05-14-19", "\n".join(lines) + "\n")
    report = ingest(warehouse, detect(tmp_path), now_ms=NOW)
    assert report.tables["interactions"] == dict(rows_read=8, rows_loaded=4, rows_duplicate=0, rows_quarantined=4)
    start = 1_684_090_800_000
    assert select(warehouse, EVENTS) == [(str(row), "7", "WatchEvent", start + 1000 * row) for row in range(4)]
    query = "SELECT row_number, reason, raw FROM quarantine WHERE table_name = 'interactions'"
    aside = [
        (3, "invalid_event_time", event("9", "WatchEvent", "x")),
        (3, "malformed_json", broken),
        (4, "malformed_json", broken + one),
        (5, "malformed_json", "\\x00"),
    ]
    assert sorted(select(warehouse, query)) == aside


def test_events_of_2011_without_a_repository_are_put_aside(duck: Warehouse, tmp_path: Path) -> None:
    none = {"url": "https://api.github.dev/repos//", "name": "/"}
    lines = [
        event("1127195568", "FollowEvent", "2011-02-12T00:00:10Z", repo=none),
        event("1127198352", "CommitCommentEvent", "2011-02-12T00:01:31Z", actor=5136),
    ]
    write(tmp_path, "2011-02-12-0", "\n".join(lines))
    report = ingest(duck, detect(tmp_path), now_ms=NOW)
    assert report.reasons == {"missing_item_id": 2}
    assert select(duck, EVENTS) == [("5136", "7", "CommitCommentEvent", 1_297_468_891_000)]


def test_the_old_timeline_loads_by_the_mapping_in_the_documents(duck: Warehouse, tmp_path: Path) -> None:
    write(tmp_path, "2012-01-01-15", event("1508546917", "CreateEvent", "2012-01-01T15:00:07Z"))
    assert detect(tmp_path).name == "gharchive"
    (tmp_path / "2012-01-01-15.json.gz").unlink()
    lines = [
        timeline("PushEvent", "someone", "2013-08-05T20:03:01-07:00", 5),
        timeline("WatchEvent", "other", "2013-08-05T20:03:02-07:00", 6),
        timeline("FollowEvent", "other", "2013-08-05T20:03:02-07:00", None),
    ]
    write(tmp_path, "2013-08-05-20", "\n".join(lines))
    with pytest.raises(DataError, match=r"2013-08-05-20.*GitHub's old timeline .*allowed are hours of GitHub's events"):
        detect(tmp_path)
    # The recipe of the layout serves all the same.
    assert find_layout(tmp_path) is not None

    shown = re.findall(r"```yaml\n(# timeline\.yaml\n.*?)```", SOURCES.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "timeline.yaml").write_text(shown[0])
    values = read_yaml(tmp_path / "timeline.yaml")
    for file in values["files"]:
        file["path"] = str(tmp_path / file["path"])
    source = parse_config(IngestSource, values, "timeline.yaml")
    report = ingest(duck, source, now_ms=NOW)
    assert report.reasons == {"missing_item_id": 2}
    night = 1_375_758_181_000
    assert select(duck, EVENTS) == [("someone", "5", "PushEvent", night), ("other", "6", "WatchEvent", night + 1000)]
    titles = [(str(row), f"https://github.com/owner/repo-{row}") for row in (5, 6)]
    assert sorted(select(duck, "SELECT item_id, title FROM items")) == titles
    assert ingest(duck, source, now_ms=NOW).rows_loaded == 0
