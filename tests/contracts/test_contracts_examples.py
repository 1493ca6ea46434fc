from __future__ import annotations

import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from stages.contracts.errors import DataError
from stages.contracts.examples import ExampleRows, ExamplesFile, mean_ndcg
from stages.contracts.ragged import run_offsets
from tests.builders.examples import example_rows, write_examples

FLOATS = st.floats(-1e6, 1e6, width=32)


def small_rows(**columns: Any) -> ExampleRows:
    """Three requests, of 2, 1 and 3 rows."""
    features = np.arange(12, dtype=np.float32).reshape(6, 2)
    given_columns = {"window": [0, 0, 0, 1, 1, 1], "relevance": [0, 1, 0, 0, 2.5, 0], **columns}
    return example_rows([4, 4, 6, 9, 9, 9], features, **given_columns)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return write_examples(tmp_path, small_rows(), feature_names=["age", "popularity"], requests_per_group=2)


def assert_equal(found: ExampleRows, expected: ExampleRows) -> None:
    for field in fields(ExampleRows):
        values = getattr(found, field.name)
        np.testing.assert_array_equal(values, getattr(expected, field.name), err_msg=field.name)
        assert values.dtype == getattr(expected, field.name).dtype


@given(st.lists(st.integers(1, 5), min_size=1, max_size=8), st.integers(1, 4), st.integers(0, 4), st.data())
def test_what_is_written_is_read_back_by_group_and_whole(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], a_group: int, n_features: int, draw: st.DataObject
) -> None:
    ids = np.repeat(np.cumsum(draw.draw(hnp.arrays(np.int64, len(lengths), elements=st.integers(1, 2**40)))), lengths)
    n = len(ids)
    rows = example_rows(
        ids,
        draw.draw(hnp.arrays(np.float32, (n, n_features), elements=FLOATS)),
        item_index=draw.draw(hnp.arrays(np.int64, n, elements=st.integers(0, 2**40))),
        window=np.repeat(np.arange(len(lengths)) // 3, lengths),
        source=draw.draw(hnp.arrays(np.int8, n, elements=st.integers(0, 1))),
        weight=draw.draw(hnp.arrays(np.float32, n, elements=st.floats(1.0, 50.0, width=32))),
        relevance=draw.draw(hnp.arrays(np.float32, n, elements=st.sampled_from([0.0, 1.0, 2.5]))),
        labels=draw.draw(hnp.arrays(np.float32, (n, 2), elements=st.sampled_from([0.0, 1.0]))),
    )
    directory = write_examples(tmp_path_factory.mktemp("read"), rows, ("like", "buy"), requests_per_group=a_group)
    file = ExamplesFile(directory)
    assert file.n_rows == n and file.n_groups == -(-len(lengths) // a_group)
    assert file.task_names == ("like", "buy")
    assert_equal(file.read(), rows)
    starts = file.group_starts
    for number, group in enumerate(file.groups()):
        assert_equal(group, rows.take(slice(starts[number], starts[number + 1])))
        assert len(group) == file.group_rows[number]
        assert len(np.unique(group.request_id)) <= a_group
    assert_equal(file.read(with_features=False), replace(rows, features=np.zeros((n, 0), np.float32)))


def test_a_file_knows_its_schema_and_reads_some_of_its_features(directory: Path) -> None:
    file = ExamplesFile(directory)
    assert file.feature_names == ("age", "popularity")
    assert file.schema_hash == "schema-1"
    assert file.task_names == ("click",)
    np.testing.assert_array_equal(file.group_rows, [3, 3])
    np.testing.assert_array_equal(file.group(1, ["popularity"]).features, [[7], [9], [11]])
    assert file.group(0, ()).features.shape == (3, 0)


def test_a_file_without_rows_is_read(tmp_path: Path) -> None:
    write_examples(tmp_path, example_rows([], np.zeros((0, 3))))
    file = ExamplesFile(tmp_path)
    assert (file.n_rows, file.n_groups) == (0, 0)
    assert file.read().features.shape == (0, 3)
    assert file.read().labels.shape == (0, 1)


FAULTS: list[tuple[str, Any, str]] = [
    ("request_id", [4, 4, 6, 9, 8, 8], r"request_id = 8 in row 4, must not decrease"),
    ("user_index", [1, 1, 2, 3, 3, 7], r"user_index = 7 in row 5, must be the same within a request"),
    ("window", [0, 1, 1, 1, 1, 1], r"window = 1 in row 1, must be the same within a request"),
    ("window", [0, 0, -1, 1, 1, 1], r"window = -1 in row 2, must be 0 or more"),
    ("score", [3, 2, 1, 2, np.nan, 0], r"score = nan in row 4, must be finite"),
    ("weight", [1, 1, 1, 1, 0.5, 1], r"weight = 0\.5 in row 4, must be finite and at least 1"),
    ("weight", [1, 1, np.inf, 1, 1, 1], r"weight = inf in row 2, must be finite and at least 1"),
    ("relevance", [0, 1, 0, 0, 0, -1], r"relevance = -1\.0 in row 5, must be finite and not negative"),
    ("relevance", [0, np.nan, 0, 0, 0, 1], r"relevance = nan in row 1, must be finite and not negative"),
    ("labels", [[0], [1], [0], [0], [0.5], [0]], r"task_click = 0\.5 in row 4, must be 0 or 1"),
    ("features", [[0, 0]] * 4 + [[0, np.nan], [0, 0]], r"f1 = nan in row 4, every feature must be finite"),
    ("features", [[0, 0]] * 4 + [[np.inf, 0], [0, 0]], r"f0 = inf in row 4, every feature must be finite"),
]


@pytest.mark.parametrize(("field", "values", "message"), FAULTS)
def test_a_value_that_is_not_allowed_is_named_with_its_row(
    tmp_path: Path, field: str, values: Any, message: str
) -> None:
    rows = replace(small_rows(), **{field: np.array(values, getattr(small_rows(), field).dtype)})
    with pytest.raises(DataError, match=rf"examples\.parquet: {message}"):
        write_examples(tmp_path, rows, requests_per_group=9)
    write_past_the_checks(tmp_path, rows)
    with pytest.raises(DataError, match=rf"examples\.parquet: {message}"):
        ExamplesFile(tmp_path).read()


def write_past_the_checks(directory: Path, rows: ExampleRows, group: int = 6) -> None:
    """Change the columns of a file that was written from good rows."""
    write_examples(directory, small_rows())
    path = directory / "examples.parquet"
    table = pq.read_table(path)
    columns = {name: getattr(rows, name) for name in ExampleRows.TYPES}
    columns |= {"task_click": rows.labels[:, 0], "f0": rows.features[:, 0], "f1": rows.features[:, 1]}
    for name, values in columns.items():
        table = table.set_column(table.column_names.index(name), name, [values])
    pq.write_table(table, path, row_group_size=group)


@pytest.mark.parametrize("statistics", [True, False])
def test_a_request_in_two_row_groups_is_refused(directory: Path, statistics: bool) -> None:
    path = directory / "examples.parquet"
    pq.write_table(pq.read_table(path), path, row_group_size=5, write_statistics=statistics)
    with pytest.raises(DataError, match=r"request_id = 9 in row group 1 follows 9; .*must lie in one row group"):
        ExamplesFile(directory)


def test_the_writer_refuses_a_request_that_it_has_seen(tmp_path: Path) -> None:
    rows = small_rows()
    with (
        pytest.raises(DataError, match="request_id = 4 in row 2 follows 4"),
        ExamplesFile.writer(tmp_path, ["f0", "f1"], ["click"]) as append,
    ):
        append(rows.take(slice(0, 2)))
        append(rows.take(slice(0, 2)))


@pytest.mark.parametrize("name", ["request_id", "window", "weight", "popularity"])
def test_a_missing_column_is_named(directory: Path, name: str) -> None:
    path = directory / "examples.parquet"
    pq.write_table(pq.read_table(path).drop_columns([name]), path)
    with pytest.raises(DataError, match=rf"examples\.parquet lacks columns \['{name}'\]"):
        ExamplesFile(directory)


@pytest.mark.parametrize("name", ["examples.parquet", "feature_schema.json"])
def test_a_missing_or_broken_file_is_named(directory: Path, name: str) -> None:
    (directory / name).write_bytes(b"broken")
    with pytest.raises(DataError, match=name):
        ExamplesFile(directory)
    (directory / name).unlink()
    with pytest.raises(DataError, match=name):
        ExamplesFile(directory)


def test_columns_of_the_same_name_and_rows_of_another_width_are_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(DataError, match=r"columns \['score'\] are there twice"),
        ExamplesFile.writer(tmp_path, ["age", "score"], ["click"]),
    ):
        pass
    with (
        pytest.raises(DataError, match="1 labels and 2 features, the columns are 1 tasks and 1 features"),
        ExamplesFile.writer(tmp_path, ["age"], ["click"]) as append,
    ):
        append(small_rows())


def test_rows_of_other_types_or_lengths_are_refused() -> None:
    with pytest.raises(DataError, match=r"ExampleRows.weight must be float32 \[6\], found float64"):
        replace(small_rows(), weight=np.ones(6))
    with pytest.raises(DataError, match=r"ExampleRows.features must be float32 \[6, columns\], found float32 \[3, 2\]"):
        replace(small_rows(), features=np.zeros((3, 2), np.float32))


def test_rows_are_taken_by_request() -> None:
    rows = small_rows()
    starts = run_offsets(rows.request_id)
    taken = rows.take(slice(starts[1], starts[3]))
    np.testing.assert_array_equal(taken.request_id, [6, 9, 9, 9])
    np.testing.assert_array_equal(taken.features, rows.features[2:])


def naive_ndcg(lists: list[list[tuple[float, float]]], k: int) -> float:
    """The definition, one request at a time; each row is (relevance, score)."""
    values = []
    for rows in lists:
        by_score = sorted(rows, key=lambda row: -row[1])
        by_relevance = sorted(rows, key=lambda row: -row[0])
        ideal = sum(relevance / math.log2(place + 2) for place, (relevance, _) in enumerate(by_relevance[:k]))
        found = sum(relevance / math.log2(place + 2) for place, (relevance, _) in enumerate(by_score[:k]))
        if ideal > 0:
            values.append(found / ideal)
    return sum(values) / len(values)


ROW = st.tuples(st.sampled_from([0.0, 0.0, 1.0, 2.5]), st.sampled_from([-1.0, 0.0, 0.5, 3.0]))


@given(st.lists(st.lists(ROW, min_size=1, max_size=8), min_size=1, max_size=5), st.integers(1, 6))
def test_mean_ndcg_is_the_definition(lists: list[list[tuple[float, float]]], k: int) -> None:
    ids = np.repeat(np.arange(len(lists)), [len(rows) for rows in lists])
    relevance, scores = np.array([row for rows in lists for row in rows]).T
    if relevance.any():
        assert mean_ndcg(ids, relevance, scores, k) == pytest.approx(naive_ndcg(lists, k))
    else:
        with pytest.raises(DataError, match=f"none of {len(lists)} requests"):
            mean_ndcg(ids, relevance, scores, k)
