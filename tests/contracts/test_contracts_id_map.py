"""Append-only id maps."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.contracts.errors import DataError
from stages.contracts.id_map import IdMap, IdMapVersion

NAMES = st.lists(st.text(max_size=4), unique=True, max_size=12)


def strings(names: list[str]) -> pa.Array:
    return pa.array(names, pa.string())


@given(NAMES, st.data())
def test_rows_stay_and_versions_count_what_was_appended(names: list[str], data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(names)), max_size=4)))
    pieces = [names[a:b] for a, b in zip([0, *cuts], [*cuts, len(names)], strict=True)]
    grown = [IdMap.empty("users")]
    for piece in pieces:
        grown.append(grown[-1].extend(strings(piece)))
    last = grown[-1]
    assert last.ids.to_pylist() == names
    assert last.version == sum(bool(piece) for piece in pieces)
    for older in grown:
        assert last.versions[: len(older.versions)] == older.versions
        assert last.ids.to_pylist()[: len(older.ids)] == older.ids.to_pylist()
        assert (older.versions == last.versions) == (older.version == last.version)
    assert IdMap.read("users", last.ids, last.versions) == last


def test_other_ids_or_other_pieces_are_other_versions() -> None:
    hashes = {
        IdMap.empty("users").extend(strings(["a"])).extend(strings(["b"])).versions[-1].hash,
        IdMap.empty("users").extend(strings(["a", "b"])).versions[-1].hash,
        IdMap.empty("users").extend(strings(["ab"])).versions[-1].hash,
        IdMap.empty("users").extend(strings(["b", "a"])).versions[-1].hash,
    }
    assert len(hashes) == 4


def test_faults_are_named() -> None:
    known = IdMap.empty("users").extend(strings(["a", "b"]))
    with pytest.raises(DataError, match="id map users: 'a' more than once"):
        known.extend(strings(["c", "a"]))
    with pytest.raises(DataError, match="id map users: 1 ids, version 1 has 2"):
        IdMap.read("users", strings(["a"]), known.versions)
    with pytest.raises(DataError, match="its ids are not those of version 1"):
        IdMap.read("users", strings(["a", "x"]), known.versions)
    wrong = (IdMapVersion(size=1, hash="0"), *known.versions)
    with pytest.raises(DataError, match="its ids are not those of version 1"):
        IdMap.read("users", known.ids, wrong)


def test_ids_without_versions_are_a_first_version() -> None:
    assert IdMap.read("items", strings(["a"]), ()) == IdMap.empty("items").extend(strings(["a"]))
    assert IdMap.read("items", strings([]), ()).version == 0
