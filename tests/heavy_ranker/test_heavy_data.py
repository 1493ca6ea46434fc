from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.contracts.errors import DataError
from stages.contracts.examples import Examples
from stages.contracts.tables import CandidateTable
from stages.heavy_ranker.data import HeavyData, light_lists

Inputs = dict[str, Path]


@pytest.fixture
def data(heavy_inputs: Inputs) -> HeavyData:
    return HeavyData(
        examples=Examples.read(heavy_inputs["examples"]),
        light_scores=np.load(heavy_inputs["light"] / "scores.npy"),
        queries=np.load(heavy_inputs["retrieve"] / "queries.npy"),
        vectors=np.load(heavy_inputs["candidate"] / "item_vectors.npy"),
    )


SCORES = st.lists(st.lists(st.sampled_from([0.0, 1.0, 2.0]), min_size=1, max_size=6), min_size=1, max_size=5)


@given(SCORES, st.integers(1, 4), st.data())
def test_lists_are_the_best_rows_by_light_score(requests: list[list[float]], keep: int, draw: st.DataObject) -> None:
    lengths = [len(request) for request in requests]
    ids = np.repeat(np.arange(len(requests)) * 3, lengths)
    rows = CandidateTable(
        request_id=ids,
        item_index=np.arange(len(ids)),
        score=np.zeros(len(ids), np.float32),
        rank=np.concatenate([np.arange(length) for length in lengths]).astype(np.int32),
        source=np.zeros(len(ids), np.int8),
    )
    wanted = np.array(draw.draw(st.lists(st.booleans(), min_size=len(requests), max_size=len(requests))))
    lists = light_lists(rows, np.concatenate(requests), np.repeat(wanted, lengths), keep)
    np.testing.assert_array_equal(lists.request_id, np.unique(ids)[wanted])
    borders = np.concatenate([[0], np.cumsum(lengths)])
    expected = [
        [borders[request] + place for place in sorted(range(lengths[request]), key=lambda at: -requests[request][at])]
        for request in np.flatnonzero(wanted)
    ]
    for position, best in enumerate(expected):
        chosen = slice(lists.starts[position], lists.starts[position + 1])
        np.testing.assert_array_equal(lists.rows[chosen], best[:keep])
        np.testing.assert_array_equal(lists.light_ranks[chosen], np.arange(len(best[:keep])))


def test_a_batch_pads_whole_requests(data: HeavyData) -> None:
    wanted = np.ones(len(data.examples.rows), dtype=bool)
    wanted[2:15] = False  # request 0 has two rows left
    lists = light_lists(data.examples.rows, data.light_scores, wanted, keep=4)
    batch = data.batch(lists, np.array([7, 0]))
    assert batch.inputs.shape == (2, 4, data.width)
    np.testing.assert_array_equal(batch.mask, [[1, 1, 1, 1], [1, 1, 0, 0]])
    assert (batch.inputs[1, 2:] == 0).all() and (batch.relevance[1, 2:] == 0).all()
    rows = lists.rows[lists.starts[7] : lists.starts[8]]
    np.testing.assert_array_equal(batch.inputs[0, :, :4], data.examples.features[rows])
    np.testing.assert_array_equal(batch.inputs[0, :, data.light_column], data.light_scores[rows])
    np.testing.assert_array_equal(batch.inputs[0, :, -9:-6], np.tile(data.queries[7], (4, 1)))
    np.testing.assert_array_equal(batch.inputs[0, :, -6:-3], data.vectors[data.examples.rows.item_index[rows]])
    np.testing.assert_array_equal(batch.labels[0], data.examples.labels[rows])
    np.testing.assert_array_equal(batch.relevance[0], data.examples.relevance[rows])


def test_an_epoch_visits_every_request_once_in_shuffled_order(data: HeavyData) -> None:
    lists = light_lists(data.examples.rows, data.light_scores, data.examples.rows.request_id < 23, keep=3)
    plain = np.concatenate([batch.inputs[:, 0, 4] for batch in data.batches(lists, 5)])
    shuffled = np.concatenate([batch.inputs[:, 0, 4] for batch in data.batches(lists, 5, np.random.default_rng(0))])
    np.testing.assert_array_equal(plain, data.light_scores[lists.rows[lists.starts[:-1]]])
    assert not np.array_equal(plain, shuffled)
    np.testing.assert_array_equal(np.sort(plain), np.sort(shuffled))


def test_moments_are_those_of_the_matrix(data: HeavyData) -> None:
    constant = np.full_like(data.vectors, 0.1)
    data = replace(data, vectors=constant)
    lists = light_lists(data.examples.rows, data.light_scores, data.examples.rows.request_id < 50, keep=6)
    matrix = np.concatenate([data.inputs(lists, request) for request in range(len(lists))]).astype(np.float64)
    mean, std = data.moments(lists)
    np.testing.assert_allclose(mean, matrix.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(std[:9], matrix.std(axis=0)[:9], rtol=1e-5)
    np.testing.assert_array_equal(std[9:12], 1.0)  # vectors that do not vary


@pytest.mark.parametrize(
    ("field", "array", "name"),
    [
        ("light_scores", np.zeros(3, np.float32), "scores.npy"),
        ("light_scores", np.full(280 * 15, np.nan, np.float32), "scores.npy"),
        ("queries", np.zeros((280, 2), np.float32), "queries.npy"),
        ("queries", np.zeros((10, 3), np.float32), "queries.npy has 10 rows"),
        ("vectors", np.zeros((5, 3), np.float32), "item_vectors.npy has 5 rows"),
    ],
)
def test_parts_that_do_not_fit_are_named(data: HeavyData, field: str, array: np.ndarray, name: str) -> None:
    with pytest.raises(DataError, match=name):
        replace(data, **{field: array})
