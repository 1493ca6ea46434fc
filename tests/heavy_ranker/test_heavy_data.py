from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stages.contracts.errors import DataError
from stages.contracts.examples import ExamplesFile
from stages.contracts.ranking import SOURCE_POPULAR
from stages.heavy_ranker.data import BUFFER_GROUPS, Batch, HeavyData
from stages.heavy_ranker.lists import light_lists
from tests.builders.examples import example_rows
from tests.heavy_ranker.worlds import World

HELD, STREAMED = 10**6, 0


def heavy_data(world: World, memory_rows: int = HELD, keep: int = 4, **changed: Any) -> HeavyData:
    arrays = {"queries": world.queries, "vectors": world.vectors, **changed}
    lists = light_lists(world.rows, world.light_scores, keep)
    return HeavyData(ExamplesFile(world.inputs["examples"]), lists, **arrays, memory_rows=memory_rows)


SCORES = st.lists(
    st.lists(st.tuples(st.sampled_from([0.0, 1.0, 2.0]), st.sampled_from([1.0, 2.5, 3.0])), min_size=1, max_size=6),
    min_size=1,
    max_size=5,
)


@given(SCORES, st.integers(1, 9), st.data())
def test_lists_hold_the_rows_before_which_few_candidates_are_estimated(
    requests: list[list[tuple[float, float]]], keep: int, draw: st.DataObject
) -> None:
    lengths = [len(request) for request in requests]
    ids = np.repeat(np.arange(len(requests)) * 3, lengths)
    personal = np.array(draw.draw(st.lists(st.booleans(), min_size=len(requests), max_size=len(requests))))
    light, weight = np.array([row for request in requests for row in request]).T
    rows = example_rows(
        ids, np.zeros((len(ids), 1)), weight=weight, source=np.repeat(~personal, lengths).astype(int) * SOURCE_POPULAR
    )
    rank = np.array(draw.draw(st.permutations(range(100)))[: len(ids)], np.int32)
    rows = replace(rows, rank=rank)
    lists = light_lists(rows, light, keep)
    np.testing.assert_array_equal(lists.request_id, np.unique(ids)[personal])
    for position, request in enumerate(np.flatnonzero(personal)):
        mine = sorted(np.flatnonzero(ids == request * 3), key=lambda row: (-light[row], rank[row]))
        before = np.concatenate([[0.0], np.cumsum(weight[mine])[:-1]])
        kept = before < keep
        of_request = slice(lists.starts[position], lists.starts[position + 1])
        np.testing.assert_array_equal(lists.rows[of_request], np.array(mine)[kept])
        np.testing.assert_allclose(lists.light_ranks[of_request], before[kept])
    for name in ("item_index", "weight", "relevance", "labels"):
        np.testing.assert_array_equal(getattr(lists, name), getattr(rows, name)[lists.rows])


def test_ranks_estimated_from_a_sample_are_right_on_average() -> None:
    generator = np.random.default_rng(0)
    light = generator.permutation(300).astype(np.float32)
    probability = np.where(np.arange(300) < 100, 0.8, 0.3)
    estimates = []
    for _ in range(400):
        kept = np.flatnonzero((generator.random(300) < probability) | (np.arange(300) == 150))
        weight = np.where(kept == 150, 1.0, 1.0 / probability[kept])
        rows = example_rows(np.zeros(len(kept)), np.zeros((len(kept), 1)), weight=weight)
        lists = light_lists(rows, light[kept], 1000)
        estimates.append(lists.light_ranks[kept[lists.rows] == 150][0])
    assert np.mean(estimates) == pytest.approx((light > light[150]).sum(), rel=0.03)


@pytest.mark.parametrize("memory_rows", [HELD, STREAMED])
def test_a_batch_holds_whole_requests_without_padding(world: World, memory_rows: int) -> None:
    weight = np.where(np.arange(len(world.rows)) == 0, 9.0, 1.0).astype(np.float32)
    light = world.light_scores.copy()
    light[0] = 99.0  # request 0 has one row left: its weight stands for the three others
    data = heavy_data(replace(world, rows=replace(world.rows, weight=weight), light_scores=light), memory_rows)
    wanted = np.isin(data.lists.request_id, [0, 8])
    (batch,) = data.batches(wanted, 2)
    assert batch.inputs.shape == (5, data.width)
    np.testing.assert_array_equal(batch.request, [0, 1, 1, 1, 1])
    np.testing.assert_array_equal(batch.place, [0, 0, 1, 2, 3])
    np.testing.assert_array_equal(batch.weight, [9, 1, 1, 1, 1])
    rows = data.lists.rows[np.repeat(wanted, data.lists.lengths)]
    np.testing.assert_array_equal(batch.inputs[:, :4], world.rows.features[rows])
    np.testing.assert_array_equal(batch.inputs[:, data.light_column], light[rows])
    np.testing.assert_allclose(batch.inputs[:, data.light_column + 1], np.log1p([0, 0, 1, 2, 3]), rtol=1e-6)
    np.testing.assert_array_equal(batch.inputs[:, -9:-6], world.queries[[0, 8, 8, 8, 8]])
    np.testing.assert_array_equal(batch.inputs[:, -6:-3], world.vectors[world.rows.item_index[rows]])
    np.testing.assert_array_equal(batch.labels, world.rows.labels[rows])
    np.testing.assert_array_equal(batch.relevance, world.rows.relevance[rows])
    padded = batch.padded(batch.weight)
    np.testing.assert_array_equal(padded, [[9, 0, 0, 0], [1, 1, 1, 1]])


def test_padding_passes_gradients_on() -> None:
    values = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    parts = {name: torch.zeros(3) for name in ("inputs", "labels", "relevance", "weight")}
    batch = Batch(**parts, request=torch.tensor([0, 1, 1]), place=torch.tensor([0, 0, 1]), n_requests=2)
    (batch.padded(values) * torch.tensor([[1.0, 9.0], [3.0, 5.0]])).sum().backward()
    np.testing.assert_array_equal(values.grad, [1, 3, 5])


def first_scores(data: HeavyData, wanted: np.ndarray, seed: int | None, size: int = 5) -> np.ndarray:
    """Return the light score of the first row of each request, in the order of the batches."""
    generator = None if seed is None else np.random.default_rng(seed)
    batches = list(data.batches(wanted, size, generator))
    assert max(batch.n_requests for batch in batches) <= size
    return np.concatenate([batch.inputs[batch.place == 0, data.light_column] for batch in batches])


@pytest.mark.parametrize("memory_rows", [HELD, STREAMED])
def test_an_epoch_visits_every_wanted_request_once_in_shuffled_order(world: World, memory_rows: int) -> None:
    data = heavy_data(world, memory_rows, keep=3)
    wanted = np.arange(len(data.lists)) % 3 > 0
    plain, shuffled = first_scores(data, wanted, None), first_scores(data, wanted, 0)
    np.testing.assert_array_equal(plain, data.lists.light_scores[data.lists.starts[:-1]][wanted])
    assert not np.array_equal(plain, shuffled)
    np.testing.assert_array_equal(np.sort(plain), np.sort(shuffled))
    np.testing.assert_array_equal(shuffled, first_scores(data, wanted, 0))


def test_streamed_rows_are_those_held_and_few_row_groups_are_read_at_a_time(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, streamed = heavy_data(world, HELD), heavy_data(world, STREAMED)
    wanted = held.lists.request_id % 2 == 0
    wanted[held.lists.request_id < 23] = False  # nothing is wanted of the first row group
    found, expected = (torch.cat([batch.inputs for batch in data.passes(wanted)]) for data in (streamed, held))
    np.testing.assert_array_equal(found, expected)
    read: list[int] = []
    group = ExamplesFile.group

    def counted(self: ExamplesFile, number: int, columns: Any = None) -> Any:
        read.append(number)
        return group(self, number, columns)

    monkeypatch.setattr(ExamplesFile, "group", counted)
    next(iter(streamed.batches(wanted, 2, np.random.default_rng(1))))
    assert len(read) == BUFFER_GROUPS and 0 not in read
    read.clear()
    list(held.batches(wanted, 2, np.random.default_rng(1)))
    assert read == []


@pytest.mark.parametrize("memory_rows", [HELD, STREAMED])
def test_moments_are_those_of_the_matrix(world: World, memory_rows: int) -> None:
    data = heavy_data(world, memory_rows, keep=6, vectors=np.full_like(world.vectors, 0.1))
    wanted = np.arange(len(data.lists)) >= 17
    matrix = np.concatenate([batch.inputs for batch in data.batches(wanted, 1)]).astype(np.float64)
    mean, std = data.moments(wanted)
    np.testing.assert_allclose(mean, matrix.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(std[:9], matrix.std(axis=0)[:9], rtol=1e-5)
    np.testing.assert_array_equal(std[9:12], 1.0)  # vectors that do not vary


@pytest.mark.parametrize(
    ("field", "array", "name"),
    [
        ("queries", np.zeros((240, 2), np.float32), "queries.npy"),
        ("queries", np.zeros((10, 3), np.float32), "queries.npy has 10 rows"),
        ("vectors", np.zeros((5, 3), np.float32), "item_vectors.npy has 5 rows"),
    ],
)
def test_parts_that_do_not_fit_are_named(world: World, field: str, array: np.ndarray, name: str) -> None:
    with pytest.raises(DataError, match=name):
        heavy_data(world, **{field: array})
