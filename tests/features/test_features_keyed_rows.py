from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stages.features.keyed_rows import KeyedRows, save_offsets

from stages.contracts.errors import ReleaseError

COLUMNS = {"items": np.dtype(np.int64), "signals": np.dtype(np.int16), "values": np.dtype(np.float32)}
Rows = list[list[tuple[int, int, float]]]

# Keys beyond 32 bits, values that float32 holds exactly; a row's keys are distinct.
ENTRY = st.tuples(st.integers(-(1 << 40), 1 << 40), st.integers(-3, 3), st.floats(-8, 8, width=32))
ROWS = st.lists(st.lists(ENTRY, max_size=5, unique_by=lambda entry: entry[0]), max_size=6)


def arrays_of(rows: Rows) -> dict[str, np.ndarray]:
    flat = [entry for row in rows for entry in row]
    columns = {
        f"users_{name}": np.array([entry[place] for entry in flat], dtype=dtype)
        for place, (name, dtype) in enumerate(COLUMNS.items())
    }
    return {"users_offsets": np.cumsum([0, *(len(row) for row in rows)], dtype=np.int64), **columns}


def keyed(rows: Rows) -> KeyedRows:
    return KeyedRows("users", COLUMNS, arrays_of(rows))


def contents(rows: KeyedRows, n: int) -> Rows:
    found = []
    for index in range(n):
        columns = [rows.read(index, column) for column in range(len(COLUMNS))]
        assert [column.dtype for column in columns] == list(COLUMNS.values())
        assert {len(column) for column in columns} == {rows.length(index)}
        found.append(list(zip(*(column.tolist() for column in columns), strict=True)))
    return found


def saved_arrays(directory: Path) -> dict[str, np.ndarray]:
    return {path.stem: np.load(path, allow_pickle=False) for path in directory.glob("*.npy")}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(ROWS, st.lists(st.tuples(st.integers(0, 8), ENTRY), max_size=12))
def test_rows_grow_as_lists_do_and_outlive_a_save(
    tmp_path: Path, rows: Rows, events: list[tuple[int, tuple[int, int, float]]]
) -> None:
    """Any events on any rows, new ones too: the same as lists in a dictionary, before and after a save."""
    base = arrays_of(rows)
    before = {name: values.copy() for name, values in base.items()}
    grown, expected = KeyedRows("users", COLUMNS, base), [*map(list, rows), *([] for _ in range(9 - len(rows)))]
    for index, entry in events:
        row, wanted = grown.open(index), expected[index]
        keys = [key for key, _, _ in wanted]
        assert row.slots == {key: slot for slot, key in enumerate(keys)}
        if entry[0] in row.slots:
            slot = row.slots[entry[0]]
            row.columns[2][slot] = entry[2]
            wanted[slot] = (*wanted[slot][:2], entry[2])
        else:
            row.append(*entry)
            wanted.append(entry)
    assert contents(grown, 9) == expected
    assert all((base[name] == before[name]).all() for name in base), "the base is never written to"
    grown.save(tmp_path, 9)
    arrays = saved_arrays(tmp_path)
    assert {name: values.dtype for name, values in arrays.items()} == {
        "users_offsets": np.dtype(np.int64),
        **{f"users_{name}": dtype for name, dtype in COLUMNS.items()},
    }
    assert contents(KeyedRows("users", COLUMNS, arrays), 9) == expected


def test_an_unknown_row_is_empty() -> None:
    rows = keyed([[(5, 1, 1.0)], [(6, 2, 2.0), (7, 3, 3.0)]])
    for index in (2, 100, -1, -2, -3):
        assert rows.length(index) == 0
        assert contents_of(rows, index) == []


def contents_of(rows: KeyedRows, index: int) -> list[float]:
    return [value for column in range(len(COLUMNS)) for value in rows.read(index, column).tolist()]


def test_reading_a_row_copies_nothing_and_changes_nothing() -> None:
    """A base that is mapped from a file must not be read into memory as a whole."""
    base = arrays_of([[(5, 1, 1.0)], [(6, 2, 2.0)]])
    rows = KeyedRows("users", COLUMNS, base)
    assert np.shares_memory(rows.read(1, 0), base["users_items"])
    rows.open(1).append(9, 0, 0.0)
    assert not np.shares_memory(rows.read(1, 0), base["users_items"])
    assert np.shares_memory(rows.read(0, 0), base["users_items"])


def test_two_writers_of_one_row_write_the_same_row() -> None:
    rows = keyed([[(5, 1, 1.0)]])
    first, second = rows.open(0), rows.open(0)
    first.append(6, 2, 2.0)
    assert second.slots == {5: 0, 6: 1}
    second.append(7, 3, 3.0)
    assert contents(rows, 1) == [[(5, 1, 1.0), (6, 2, 2.0), (7, 3, 3.0)]]


def test_an_entry_of_another_width_is_refused() -> None:
    row = keyed([[]]).open(0)
    with pytest.raises(ValueError, match="argument"):
        row.append(1, 2)


@pytest.mark.parametrize(("column", "value"), [(1, 1 << 15), (0, 1 << 63)])
def test_a_number_that_its_column_cannot_hold_is_refused(column: int, value: int) -> None:
    row = keyed([[(5, 1, 1.0)]]).open(0)
    with pytest.raises(OverflowError):
        row.columns[column][0] = value


def test_a_base_that_names_a_key_twice_is_refused_before_it_is_changed() -> None:
    """Its length would be that of its distinct keys, and a save would cut the rows at wrong places."""
    rows = keyed([[(1, 0, 0.0)], [(5, 1, 1.0), (5, 2, 2.0)]])
    with pytest.raises(ReleaseError, match="users: row 1 holds a key more than once; allowed are distinct keys"):
        rows.open(1)
    assert rows.length(1) == 2
    rows.open(0)


def test_only_so_many_rows_are_saved_and_missing_ones_are_empty(tmp_path: Path) -> None:
    rows = keyed([[(5, 1, 1.0)], [(6, 2, 2.0)]])
    for n, lengths in ((0, []), (1, [1]), (4, [1, 1, 0, 0])):
        rows.save(tmp_path, n)
        arrays = saved_arrays(tmp_path)
        assert np.diff(arrays["users_offsets"]).tolist() == lengths
        assert len(arrays["users_items"]) == sum(lengths)


def test_offsets_need_a_length_a_row(tmp_path: Path) -> None:
    save_offsets(tmp_path / "o.npy", iter([2, 0, 1]), 3)
    found = np.load(tmp_path / "o.npy")
    assert (found.tolist(), found.dtype) == ([0, 2, 2, 3], np.dtype(np.int64))
    with pytest.raises(ValueError, match="iterator too short"):
        save_offsets(tmp_path / "o.npy", iter([2, 0]), 3)
