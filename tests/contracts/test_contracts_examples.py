from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.contracts.errors import DataError
from stages.contracts.examples import Examples, mean_ndcg
from stages.contracts.tables import CandidateTable


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    CandidateTable(
        request_id=np.array([0, 0, 2]),
        item_index=np.array([5, 3, 5]),
        score=np.array([0.9, 0.1, 0.5], np.float32),
        rank=np.array([0, 1, 0], np.int32),
        source=np.zeros(3, np.int8),
    ).write(tmp_path / "rows.parquet")
    np.save(tmp_path / "features.npy", np.arange(6, dtype=np.float32).reshape(3, 2))
    np.save(tmp_path / "relevance.npy", np.array([0, 1, 0], np.float32))
    np.save(tmp_path / "labels.npy", np.array([[0], [1], [0]], np.float32))
    (tmp_path / "feature_schema.json").write_text(json.dumps({"names": ["age", "score"], "hash": "h"}))
    return tmp_path


def test_examples_are_read_as_written(examples: Path) -> None:
    found = Examples.read(examples)
    assert found.feature_names == ("age", "score")
    assert found.schema_hash == "h"
    np.testing.assert_array_equal(found.features[2], [4, 5])
    assert not found.features.flags.writeable


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_feature_that_is_not_finite_is_named(examples: Path, value: float) -> None:
    features = np.zeros((3, 2), np.float32)
    features[1, 1] = value
    np.save(examples / "features.npy", features)
    with pytest.raises(DataError, match=f"feature 'score' is {value} in row 1"):
        Examples.read(examples)


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("features.npy", np.zeros((3, 4), np.float32)),
        ("features.npy", np.zeros((3, 2), np.float64)),
        ("relevance.npy", np.zeros(2, np.float32)),
        ("labels.npy", np.zeros((2, 1), np.float32)),
        ("relevance.npy", np.array([0, -1, 0], np.float32)),
    ],
)
def test_an_array_of_another_shape_or_type_is_named(examples: Path, name: str, array: np.ndarray) -> None:
    np.save(examples / name, array)
    with pytest.raises(DataError, match=name):
        Examples.read(examples)


@pytest.mark.parametrize("name", ["features.npy", "relevance.npy", "labels.npy", "feature_schema.json", "rows.parquet"])
def test_a_missing_or_broken_file_is_named(examples: Path, name: str) -> None:
    (examples / name).write_bytes(b"broken")
    with pytest.raises(DataError, match=name):
        Examples.read(examples)
    (examples / name).unlink()
    with pytest.raises(DataError, match=name):
        Examples.read(examples)


def test_rows_of_a_request_must_be_together(examples: Path) -> None:
    rows = CandidateTable.read(examples / "rows.parquet")
    rows.take(np.array([0, 2, 1])).write(examples / "rows.parquet")
    with pytest.raises(DataError, match="sorted by request_id"):
        Examples.read(examples)


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
