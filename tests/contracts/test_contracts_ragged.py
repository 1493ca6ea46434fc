from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.contracts.ragged import places_in_rows, ranges, row_offsets, run_offsets

LENGTHS = st.lists(st.integers(0, 5), max_size=12)


@given(LENGTHS)
def test_offsets_cut_a_flat_array_into_its_rows(lengths: list[int]) -> None:
    rows = [[(row, place) for place in range(length)] for row, length in enumerate(lengths)]
    flat = [entry for row in rows for entry in row]
    offsets = row_offsets(lengths)
    assert offsets.dtype == np.int64
    assert [flat[start:stop] for start, stop in pairwise(offsets)] == rows
    assert offsets[-1] == len(flat)
    np.testing.assert_array_equal(row_offsets(np.array(lengths, dtype=np.int32)), offsets)


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 5)), max_size=12), st.sampled_from([np.int32, np.int64]))
def test_ranges_are_those_of_python(pairs: list[tuple[int, int]], dtype: type) -> None:
    starts, lengths = (np.array([pair[side] for pair in pairs], dtype=dtype) for side in (0, 1))
    found = ranges(starts, lengths)
    assert found.dtype == np.int64
    assert found.tolist() == [number for start, length in pairs for number in range(start, start + length)]


@given(LENGTHS)
def test_places_count_within_each_row(lengths: list[int]) -> None:
    found = places_in_rows(np.array(lengths, dtype=np.int64))
    assert found.tolist() == [place for length in lengths for place in range(length)]


@given(st.lists(st.integers(-2, 2), max_size=20).map(sorted))
def test_runs_hold_one_value_each(values: list[int]) -> None:
    offsets = run_offsets(np.array(values, dtype=np.int64))
    runs = [values[start:stop] for start, stop in pairwise(offsets)]
    assert offsets.dtype == np.int64
    assert [run[0] for run in runs] == sorted(set(values))
    assert [value for run in runs for value in run] == values


def test_run_offsets_of_requests() -> None:
    np.testing.assert_array_equal(run_offsets(np.array([4, 4, 7, 9, 9])), [0, 2, 3, 5])
    np.testing.assert_array_equal(run_offsets(np.array([], np.int64)), [0])


def test_a_negative_length_is_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        ranges(np.array([0, 0]), np.array([2, -1]))
