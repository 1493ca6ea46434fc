"""Rows of touched items: a base that is only read, and rows that grow in a pool."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stages.contracts.errors import ReleaseError
from stages.contracts.ragged import row_offsets
from stages.features.state_files import USER_COLUMNS
from stages.features.state_kernels import LINEAR, USED
from stages.features.user_rows import UserRows

Entry = tuple[int, int, int, float, int]
"""Item, time, signal, value and positive tasks."""
List = list[Entry]
USERS = 9

# Items beyond 32 bits, values that float32 holds exactly; the items of a row are distinct.
ENTRY = st.tuples(
    st.integers(-(1 << 40), 1 << 40),
    st.integers(-(1 << 60), 1 << 60),
    st.integers(-3, 3),
    st.floats(-8, 8, width=32),
    st.integers(0, 1 << 62),
)
LISTS = st.lists(st.lists(ENTRY, max_size=5, unique_by=lambda entry: entry[0]), max_size=6)


def arrays_of(lists: list[List]) -> dict[str, np.ndarray]:
    """The newest time of an entry is the time of its first touch."""
    flat = [(*entry, entry[1]) for entries in lists for entry in entries]
    columns = {
        f"users_{name}": np.array([entry[place] for entry in flat], dtype=dtype)
        for place, (name, dtype) in enumerate(USER_COLUMNS.items())
    }
    return {"users_offsets": row_offsets([len(entries) for entries in lists]), **columns}


def contents(rows: UserRows, row: int) -> List:
    columns = [rows.read(row, column) for column in range(len(USER_COLUMNS))]
    assert [column.dtype for column in columns] == list(USER_COLUMNS.values())
    assert {len(column) for column in columns} == {rows.length(row)}
    assert columns[-1].tolist() == columns[1].tolist()
    return list(zip(*(column.tolist() for column in columns[:-1]), strict=True))


def entries_of(items: list[int]) -> List:
    return [(item, 10 * item, item % 3, item % 64 / 4, item % 2) for item in items]


def saved(rows: UserRows, n_rows: int, directory: Path) -> dict[str, np.ndarray]:
    rows.save(directory, n_rows)
    return {path.stem: np.load(path, allow_pickle=False) for path in directory.glob("*.npy")}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(LISTS, st.lists(st.tuples(st.integers(0, USERS - 1), ENTRY), max_size=40))
def test_rows_grow_as_lists_do_and_outlive_a_save(
    tmp_path: Path, lists: list[List], events: list[tuple[int, Entry]]
) -> None:
    """Any events of any users, new ones too: the same as lists, before and after a save."""
    base = arrays_of(lists)
    before = {name: values.copy() for name, values in base.items()}
    rows, wanted = UserRows(base), [*map(list, lists), *([] for _ in range(USERS - len(lists)))]
    for row, entry in events:
        items = [item for item, *_ in wanted[row]]
        place = items.index(entry[0]) if entry[0] in items else -1
        assert rows.find(row, entry[0]) == place
        if place < 0:
            rows.append(row, *entry)
            wanted[row].append(entry)
    assert [contents(rows, row) for row in range(USERS)] == wanted
    assert all((base[name] == before[name]).all() for name in base), "the base is never written to"
    arrays = saved(rows, USERS, tmp_path)
    assert {name: values.dtype for name, values in arrays.items()} == {
        "users_offsets": np.dtype(np.int64),
        **{f"users_{name}": dtype for name, dtype in USER_COLUMNS.items()},
    }
    loaded = UserRows(arrays)
    assert [contents(loaded, row) for row in range(USERS)] == wanted


@pytest.mark.parametrize("stored", [0, 5, LINEAR - 1, LINEAR, LINEAR + 1, 300])
def test_a_long_row_finds_its_items_by_an_index(stored: int, tmp_path: Path) -> None:
    """Items that lie far apart and close together, in a row that grows past every size."""
    rng = np.random.default_rng(stored)
    far = np.unique(rng.integers(-(1 << 40), 1 << 40, 500)) * 64
    items = rng.permutation(np.concatenate([far, np.arange(1, 500, 2)])).tolist()
    wanted = entries_of(items)
    rows = UserRows(arrays_of([[], wanted[:stored]]))
    for number, entry in enumerate(wanted[stored:], start=stored):
        assert rows.find(1, entry[0]) == -1
        rows.append(1, *entry)
        rows.append(0, *entry)
        assert rows.find(1, entry[0]) == number
        assert rows.find(1, items[0]) == 0
    assert contents(rows, 1) == wanted
    assert contents(rows, 0) == wanted[stored:]
    for row, first in ((0, stored), (1, 0)):
        assert [rows.find(row, item) for item in items[first:]] == list(range(len(items) - first))
    assert [rows.find(1, item) for item in (2, 4, 1 << 50)] == [-1, -1, -1]
    loaded = UserRows(saved(rows, 2, tmp_path))
    assert [loaded.find(1, item) for item in items] == list(range(len(items)))


def test_an_outgrown_chunk_is_used_again() -> None:
    """Users of as many items one after the other: the pool holds little more than their last chunks."""
    rows, n_users = UserRows(arrays_of([])), 200
    lists = [entries_of(list(range(row, row + 33))) for row in range(n_users)]
    for row, entries in enumerate(lists):
        for entry in entries:
            rows.append(row, *entry)
    assert [contents(rows, row) for row in range(n_users)] == lists
    last = 64 * n_users
    assert last < rows.arrays.numbers[USED] < last + 64


def test_an_unknown_row_is_empty() -> None:
    rows = UserRows(arrays_of([entries_of([5]), entries_of([6, 7])]))
    for row in (2, 100, -1, -2, -3):
        assert rows.length(row) == 0
        assert contents(rows, row) == []
        assert rows.find(row, 6) == -1
    rows.append(100, *entries_of([8])[0])
    assert [rows.length(row) for row in (1, 2, 99, 100, 101)] == [2, 0, 0, 1, 0]


def test_reading_a_base_row_copies_nothing_and_changes_nothing() -> None:
    """A base that is mapped from a file must not be read into memory as a whole."""
    base = arrays_of([entries_of([5]), entries_of([6])])
    rows = UserRows(base)
    assert np.shares_memory(rows.read(1, 0), base["users_items"])
    rows.append(1, *entries_of([9])[0])
    assert not np.shares_memory(rows.read(1, 0), base["users_items"])
    assert np.shares_memory(rows.read(0, 0), base["users_items"])


def test_what_was_read_of_a_changed_row_stays_as_it_was() -> None:
    rows = UserRows(arrays_of([entries_of([5])]))
    rows.append(0, *entries_of([6])[0])
    before = rows.read(0, 0)
    for item in range(7, 60):
        rows.append(0, *entries_of([item])[0])
    assert before.tolist() == [5, 6]


@pytest.mark.parametrize("n_items", [1, LINEAR, 2 * LINEAR])
def test_a_base_that_names_an_item_twice_is_refused_before_it_is_changed(n_items: int) -> None:
    """Its items would be counted as distinct; it is refused at every later try as well, and no memory is lost."""
    broken = entries_of([*range(n_items), 0])
    rows = UserRows(arrays_of([entries_of([1]), broken]))
    used = []
    for _ in range(3):
        with pytest.raises(ReleaseError, match="users: row 1 holds a key more than once; allowed are distinct keys"):
            rows.append(1, 99, 0)
        assert contents(rows, 1) == broken
        assert rows.find(1, 99) == -1
        used.append(rows.arrays.numbers[:2].tolist())
    assert used[0] == used[2]
    rows.append(0, *entries_of([2])[0])
    assert contents(rows, 0) == entries_of([1, 2])


def test_only_so_many_rows_are_saved_and_missing_ones_are_empty(tmp_path: Path) -> None:
    rows = UserRows(arrays_of([entries_of([5]), entries_of([6])]))
    for n, lengths in ((0, []), (1, [1]), (4, [1, 1, 0, 0])):
        arrays = saved(rows, n, tmp_path)
        assert np.diff(arrays["users_offsets"]).tolist() == lengths
        assert arrays["users_items"].tolist() == [5, 6][: sum(lengths)]
