"""A snapshot that extends another one: rows stay, whatever comes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stages.contracts.errors import ConfigError, DataError
from stages.contracts.id_map import IdMap
from stages.contracts.snapshot import Snapshot, Task
from stages.contracts.tables import DAY_MS
from stages.dataset.base import read_base
from stages.dataset.build import build_snapshot
from stages.dataset.config import DatasetStepConfig
from stages.dataset.side_files import resolve_files

END = 30 * DAY_MS
Row = tuple[str, str, str, float, int]
ITEMS = [(f"i{number}", f"title {number}", "A|B" if number % 2 else "C", 0, None) for number in range(12)]


def first_rows() -> list[Row]:
    rng = np.random.default_rng(0)
    return [
        (f"u{rng.integers(8)}", f"i{rng.integers(12)}", "click", 1.0, int(time))
        for time in np.sort(rng.integers(10 * DAY_MS, END, 300))
    ]


def build(directory: Path, source: Any, **changes: Any) -> Snapshot:
    values: dict[str, Any] = {
        "signals": ("click",),
        "tasks": (Task(name="click", signals=("click",), relevance=1.0),),
        "as_of_ms": END,
        "activity": {"min_events": 1},
        "warehouse_fingerprint": "w",
    }
    config = DatasetStepConfig.model_validate(values | changes)
    config = DatasetStepConfig.model_validate(config.model_dump() | resolve_files(config).model_dump())
    directory.mkdir()
    build_snapshot(config, source, directory)
    return Snapshot(directory)


LATER = st.lists(
    st.tuples(
        st.sampled_from([f"u{number}" for number in range(12)] + ["Ä", "a"]),
        st.sampled_from([f"i{number}" for number in range(14)] + ["new", "Ä"]),
        st.just("click"),
        st.just(1.0),
        st.integers(0, END + 10 * DAY_MS - 1),
    ),
    min_size=1,
    max_size=30,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(LATER)
def test_no_later_or_back_dated_event_moves_a_row(list_source: Callable[..., Any], later: list[Row]) -> None:
    with TemporaryDirectory() as place:
        old = build(Path(place) / "old", list_source(first_rows(), ITEMS, 1_000))
        catalogue = [("fresh", "Another", "D", END + 5, None), *ITEMS]
        source = list_source(first_rows() + later, catalogue, 1_000)
        new = build(Path(place) / "new", source, base=str(old.directory), as_of_ms=END + 10 * DAY_MS)
        before, after = (read_base(str(snapshot.directory)) for snapshot in (old, new))
        for newer, older in ((after.users, before.users), (after.items, before.items)):
            assert newer.versions[: len(older.versions)] == older.versions
        assert set(new.user_ids()) == {row[0] for row in first_rows() + later}
        assert after.users.version == 1 + any(row[0] not in set(old.user_ids()) for row in later)
        assert new.items().item_id.tolist()[:12] == old.items().item_id.tolist()
        assert after.items.version == 2, "an item was added to the catalogue"
        assert new.meta.categories[: len(old.meta.categories)] == old.meta.categories
        again = build(Path(place) / "again", source, base=str(old.directory), as_of_ms=END + 10 * DAY_MS)
        assert again.meta == new.meta
        same = build(Path(place) / "same", source, base=str(new.directory), as_of_ms=END + 10 * DAY_MS)
        assert same.meta.ids == new.meta.ids, "nothing was appended"
        assert same.meta.fingerprint == new.meta.fingerprint


def test_what_stands_for_nothing_any_more_keeps_its_row(tmp_path: Path, list_source: Callable[..., Any]) -> None:
    """i3 turns out to be i1, i5 is blocked, i7 left the catalogue and has no events now, u0 is gone."""
    old = build(tmp_path / "old", list_source(first_rows(), ITEMS, 1_000))
    (tmp_path / "verdicts.csv").write_text("item_a,item_b,verdict\ni1,i3,same\n")
    (tmp_path / "blocked.txt").write_text("i5\n")
    rows = [row for row in first_rows() if row[0] != "u0" and row[1] != "i7"]
    source = list_source(rows, [row for row in ITEMS if row[0] != "i7"], 1_000)
    new = build(
        tmp_path / "new",
        source,
        base=str(old.directory),
        duplicates={"verdicts": str(tmp_path / "verdicts.csv")},
        content={"lists": {"rules": str(tmp_path / "blocked.txt")}},
    )
    row = {name: index for index, name in enumerate(old.items().item_id.tolist())}
    items, events = new.items(), new.events()
    assert items.item_id.tolist() == old.items().item_id.tolist()
    assert new.user_ids().tolist() == old.user_ids().tolist()
    assert new.aliases() == {"i3": row["i1"]}
    assert set(new.blocked()) == {"i5"}
    retired = [row["i3"], row["i5"], row["i7"]]
    assert new.meta.counts["items_retired"] == 3
    assert items.eligible[retired].tolist() == [0, 0, 0]
    assert (np.delete(items.eligible, retired) == 7).all()
    assert not np.isin(events.item_index, retired).any()
    assert not set(items.recommendable().tolist()) & set(retired)
    pairs = {(row[0], "i1" if row[1] == "i3" else row[1]) for row in rows if row[1] != "i5"}
    names = zip(new.user_ids()[events.user_index], items.item_id[events.item_index], strict=True)
    assert set(names) == pairs
    # It comes back to its own row.
    back = build(tmp_path / "back", list_source(first_rows(), ITEMS, 1_000), base=str(new.directory))
    assert back.items().item_id.tolist() == items.item_id.tolist()
    assert (back.items().eligible == 7).all()
    assert back.meta.ids == old.meta.ids


def test_a_damaged_or_wrong_base_is_refused(tmp_path: Path, list_source: Callable[..., Any]) -> None:
    source = list_source(first_rows(), ITEMS, 1_000)
    with pytest.raises(ConfigError, match=r"dataset\.base = .*: allowed is the directory of a snapshot or a release"):
        build(tmp_path / "a", source, base=str(tmp_path))
    old = build(tmp_path / "old", source)
    meta = json.loads((old.directory / "snapshot.json").read_text())
    meta["ids"]["users"][0]["hash"] = "0" * 64
    (old.directory / "snapshot.json").write_text(json.dumps(meta))
    with pytest.raises(DataError, match="id map users: its ids are not those of version 1"):
        build(tmp_path / "b", source, base=str(old.directory))


def test_a_base_that_changes_while_a_run_waits_is_refused(tmp_path: Path, list_source: Callable[..., Any]) -> None:
    source = list_source(first_rows(), ITEMS, 1_000)
    old = build(tmp_path / "old", source)
    config = {
        "signals": ("click",),
        "tasks": (Task(name="click", signals=("click",), relevance=1.0),),
        "as_of_ms": END,
        "warehouse_fingerprint": "w",
        "base": str(old.directory),
        "base_sha256": "1" * 64,
    }
    (tmp_path / "new").mkdir()
    with pytest.raises(DataError, match="changed since the run began"):
        build_snapshot(DatasetStepConfig.model_validate(config), source, tmp_path / "new")


def test_a_snapshot_from_before_versions_is_a_base(tmp_path: Path, list_source: Callable[..., Any]) -> None:
    old = build(tmp_path / "old", list_source(first_rows(), ITEMS, 1_000))
    meta = json.loads((old.directory / "snapshot.json").read_text())
    del meta["ids"]
    (old.directory / "snapshot.json").write_text(json.dumps(meta))
    base = read_base(str(old.directory))
    assert base.users.version == base.items.version == 1
    assert isinstance(base.items, IdMap)
