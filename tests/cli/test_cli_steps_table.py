"""What a log line says of a step that ended is what the closing table shows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.steps_table import size, steps_table
from stages.contracts.results import StageResult, StepEnd
from stages.job import headline


@given(st.integers(0, 10**7), st.integers(0, 10**13), st.booleans())
def test_a_line_is_read_as_it_was_written(tenths: int, disk_bytes: int, reused: bool) -> None:
    end = StepEnd("train_light", tenths / 10, disk_bytes, reused)
    result = StageResult(step="train_light", path="/runs", fingerprint="f", metrics={"rounds": 1234.0})
    assert StepEnd.parse(f"{end}{headline(result)}") == end
    assert StepEnd.parse(str(end)) == end


@pytest.mark.parametrize("line", ["dataset: started", "retrieve: 10 of 20 requests, 1 a second, done in 10 s", ""])
def test_other_lines_are_no_ends(line: str) -> None:
    assert StepEnd.parse(line) is None


def test_the_table_has_a_row_a_step_and_their_sum() -> None:
    ends = [
        StepEnd("dataset", 60.0, 2_000_000, reused=True),
        StepEnd("retrieve", 1234.56, 8_000_000_000, reused=False),
        StepEnd("promote", 0.4, 0, reused=False),
    ]
    lines = [line.rstrip() for line in steps_table(ends).splitlines()]
    assert [line.split() for line in lines[2:]] == [
        ["dataset", "60.0", "2", "MB", "re-used"],
        ["retrieve", "1,234.6", "8", "GB"],
        ["promote", "0.4", "-"],
        ["all", "1,235.0", "8", "GB"],
    ]


@pytest.mark.parametrize(
    ("n_bytes", "words"),
    [
        *((0, "-"), (1, "1 bytes"), (999, "999 bytes"), (1000, "1 kB"), (999_499, "999 kB"), (999_500, "1 MB")),
        *((3_449_999, "3.45 MB"), (2 * 10**15, "2e+03 TB")),
    ],
)
def test_sizes_are_short(n_bytes: int, words: str) -> None:
    assert size(n_bytes) == words
