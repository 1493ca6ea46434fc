"""Nearest items against dense cosines, and the generator that keeps them."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from scipy import sparse

from stages.candidate.generators.config import SourcesConfig
from stages.candidate.generators.generator import FitData, FitSize, RequestBlock, best_of
from stages.candidate.generators.item_knn import ItemKnnNeighbours
from stages.candidate.generators.table import generator_class
from stages.candidate.linear import item_knn
from stages.candidate.linear.config import ItemKnnSettings, LimitedItemKnn
from stages.candidate.linear.item_knn import knn_gigabytes, nearest_items, weighted_histories
from stages.contracts.config import parse_config
from stages.contracts.errors import ConfigError, DataError
from stages.contracts.exclusions import Exclusions
from stages.contracts.item_lists import ItemLists
from stages.contracts.ragged import row_offsets
from stages.contracts.snapshot import NEVER_AVAILABLE_MS
from stages.features.config import FeatureConfig

USERS, ITEMS = 60, 17


@pytest.fixture
def history() -> sparse.csr_matrix:
    dense = (np.random.default_rng(3).random((USERS, ITEMS)) < np.linspace(0.05, 0.6, ITEMS)).astype(float)
    dense[:, 4] = 0
    return sparse.csr_matrix(dense)


def rows_of(lists: ItemLists) -> list[dict[int, float]]:
    return [
        dict(zip(lists.ids[a:b].tolist(), lists.scores[a:b].tolist(), strict=True)) for a, b in pairwise(lists.offsets)
    ]


def dense_weights(dense: np.ndarray, settings: ItemKnnSettings) -> np.ndarray:
    """The weight from each item (row) to each other one, by the formula."""
    squares = (dense**2).sum(axis=0)
    norms = squares[:, None] ** settings.alpha * squares[None, :] ** (1 - settings.alpha)
    weights = dense.T @ dense / np.maximum(norms + settings.shrink, 1e-12)
    np.fill_diagonal(weights, 0)
    return weights


@pytest.mark.parametrize("cells", [3, 40, 1 << 22])
@pytest.mark.parametrize("neighbours", [1, 4, 99])
@pytest.mark.parametrize(
    "settings",
    [
        ItemKnnSettings(shrink=0, alpha=0.5, weighting="none"),
        ItemKnnSettings(shrink=3, alpha=0.5, weighting="none"),
        ItemKnnSettings(shrink=0, alpha=0.8, weighting="tf_idf"),
        ItemKnnSettings(shrink=1, alpha=0.0, weighting="bm25"),
    ],
)
def test_the_nearest_by_dense_cosines(history, settings, neighbours, cells, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(item_knn, "_CELLS", cells)
    found = nearest_items(history, settings, neighbours)
    weights = dense_weights(weighted_histories(history, settings).toarray().astype(float), settings)
    wanted = np.zeros((ITEMS, ITEMS))
    for target in range(ITEMS):
        nearest = np.argsort(-weights[:, target], kind="stable")[:neighbours]
        wanted[nearest, target] = weights[nearest, target]
    matrix = sparse.csr_matrix((found.scores, found.ids, found.offsets), shape=(ITEMS, ITEMS)).toarray()
    np.testing.assert_allclose(np.sort(matrix, axis=0), np.sort(wanted, axis=0), rtol=1e-5)
    np.testing.assert_allclose(matrix[matrix > 0], weights[matrix > 0], rtol=1e-5)
    for row in rows_of(found):
        assert list(row.values()) == sorted(row.values(), reverse=True)
    assert rows_of(found)[4] == {}, "nobody touched it"


def test_equal_weights_go_to_the_lower_item_and_closed_items_are_not_scored() -> None:
    history = sparse.csr_matrix(np.ones((3, 5)))
    settings = ItemKnnSettings(shrink=0, alpha=0.5, weighting="none")
    found = nearest_items(history, settings, 2)
    assert [list(row) for row in rows_of(found)] == [[1, 2, 3, 4], [0, 2, 3, 4], [0, 1], [], []]
    allowed = nearest_items(history, settings, 2, np.array([1, 4]))
    assert [list(row) for row in rows_of(allowed)] == [[1, 4], [4], [1], [], []]
    shorter = nearest_items(history, settings, 2, longest=3)
    assert [list(row) for row in rows_of(shorter)] == [[1, 2, 3], [0, 2, 3], [0, 1], [], []]


def test_weights_go_from_the_history_to_what_is_scored() -> None:
    """Two users have item 0; one of them has item 1 too. With alpha = 1 a weight is the share of i's users with j."""
    history = sparse.csr_matrix(np.array([[1.0, 1.0], [1.0, 0.0]]))
    found = rows_of(nearest_items(history, ItemKnnSettings(alpha=1, weighting="none"), 5))
    assert found == [{1: 0.5}, {0: 1.0}]


def test_long_histories_weigh_less_by_either_weighting(history: sparse.csr_matrix) -> None:
    length = np.diff(history.indptr)
    order = np.argsort(length)
    assert length[order[0]] < length[order[-1]]
    for weighting, expected in (
        ("none", np.ones(USERS)),
        ("tf_idf", np.log(1 + ITEMS / np.maximum(length, 1))),
        ("bm25", 2.2 / (1.2 * (0.25 + 0.75 * length / length[length > 0].mean()) + 1)),
    ):
        weighted = weighted_histories(history, ItemKnnSettings(weighting=weighting))
        np.testing.assert_allclose(weighted.toarray(), expected[:, None] * history.toarray(), rtol=1e-6)
    assert history.data.tolist() == [1.0] * history.nnz, "the input is not changed"


def test_bad_input(history: sparse.csr_matrix) -> None:
    settings = ItemKnnSettings()
    for wrong in (sparse.csr_matrix((2, 3)), sparse.csr_matrix(np.array([[1.0, np.nan, 1.0], [0, 0, 1]]))):
        with pytest.raises(DataError, match=r"item-KNN: the history matrix \[2, 3\] must hold finite values"):
            nearest_items(wrong, settings, 5)
    for values, message in (
        ({"shrink": -1}, "shrink = -1"),
        ({"alpha": 1.5}, "alpha = 1.5"),
        ({"weighting": "tfidf"}, "weighting = 'tfidf'.*'bm25'"),
    ):
        with pytest.raises(ConfigError, match=message):
            parse_config(ItemKnnSettings, values, "settings")


def fitted(history: sparse.csr_matrix, allowed: np.ndarray, **settings) -> dict[str, np.ndarray]:
    data = FitData(None, FeatureConfig(), None, allowed, lambda: history, lambda: None)
    return ItemKnnNeighbours.fit(SourcesConfig(**settings), data)


def test_the_generator_keeps_neighbours_that_may_be_recommended(history: sparse.csr_matrix) -> None:
    own = LimitedItemKnn(shrink=2)
    allowed = np.arange(0, ITEMS, 2)
    arrays = fitted(history, allowed, neighbours=3, item_knn=own)
    assert {name: values.dtype for name, values in arrays.items()} == dict(ItemKnnNeighbours.arrays)
    wanted = nearest_items(history, own, 3, allowed)
    np.testing.assert_array_equal(arrays["items"], wanted.ids)
    assert set(arrays["items"].tolist()) <= set(allowed.tolist())
    assert generator_class("item_knn") is ItemKnnNeighbours
    with pytest.raises(DataError, match="item-KNN"):
        fitted(sparse.csr_matrix((2, ITEMS)), allowed)


def test_a_block_is_answered_like_each_request_alone(history: sparse.csr_matrix) -> None:
    settings = SourcesConfig(history_length=4, history_decay=2.0, neighbours=5)
    generator = ItemKnnNeighbours.load(settings, fitted(history, np.arange(ITEMS), neighbours=5), ITEMS)
    rng = np.random.default_rng(0)
    lengths = np.array([0, 1, 3, 6])
    newest = np.stack([rng.permutation(ITEMS)[:6] for _ in lengths])
    seen = [np.sort(row[:length]) for row, length in zip(newest, lengths, strict=True)]
    available_ms = np.zeros((1, ITEMS), dtype=np.int64)
    available_ms[0, 7] = NEVER_AVAILABLE_MS
    zeros = np.zeros(4, dtype=np.int64)
    exclusions = Exclusions(row_offsets(lengths), np.concatenate(seen), zeros + 5, zeros, available_ms)
    block = RequestBlock(newest, lengths, np.zeros((4, 0), dtype=np.int64), exclusions)
    together = generator.lists(block, None, 6)
    for number in range(4):
        request = block.request(number)
        alone = best_of(generator.candidates(request, None), request, 6)
        assert together.row(number).ids.tolist() == alone.ids.tolist()
        np.testing.assert_array_equal(together.row(number).scores, alone.scores)
    assert len(together.row(0)) == 0
    assert len(together.row(3)) > 0
    assert 7 not in together.ids


def test_new_items_have_no_neighbours_after_a_refresh(history: sparse.csr_matrix) -> None:
    arrays = fitted(history, np.arange(ITEMS), neighbours=2)
    grown = ItemKnnNeighbours.refresh(SourcesConfig(), arrays, range(ITEMS + 3))
    assert np.diff(grown["offsets"])[ITEMS:].tolist() == [0, 0, 0]
    np.testing.assert_array_equal(grown["offsets"][: ITEMS + 1], arrays["offsets"])
    assert isinstance(ItemKnnNeighbours.load(SourcesConfig(), grown, ITEMS + 3), ItemKnnNeighbours)


def test_what_it_needs_grows_with_neighbours_not_with_the_square_of_the_catalogue() -> None:
    settings = SourcesConfig(neighbours=50)
    small, large = (
        ItemKnnNeighbours.needs(settings, FitSize(items, 10, 1000, 200)) for items in (1_000_000, 2_000_000)
    )
    assert small == knn_gigabytes(10, 1_000_000, 1000, 50)
    assert small < large < 2.1 * small < 10
