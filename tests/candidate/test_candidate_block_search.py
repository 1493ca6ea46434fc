"""Many requests a search answer as each of them alone does, for every kind of index and whatever they exclude."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import stages.candidate.index.block_search as block_module
import stages.candidate.index.search as module
from stages.candidate.config import IndexConfig
from stages.candidate.index.block_search import BlockSearch
from stages.candidate.index.device import IndexDevice
from stages.candidate.index.kinds import index_type, make_index
from stages.candidate.index.search import ItemSearch
from stages.contracts.errors import DataError
from stages.contracts.exclusions import Exclusions
from stages.contracts.ragged import row_offsets

N, D = 300, 8
KINDS = ("flat", "ivf_flat", "ivf_sq8", "ivf_pq", "hnsw")


def unit(shape, seed):
    vectors = np.random.default_rng(seed).normal(size=(*shape, D)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


VECTORS = unit((N,), 0)
VECTORS[200:220] = VECTORS[100:120]  # items that tie
INDEXED = np.setdiff1d(np.arange(N), [3, 77, 150])


def made(kind):
    config = IndexConfig(n_lists=8)
    index = make_index(index_type(kind, len(INDEXED), D, config), VECTORS[INDEXED], INDEXED, config, IndexDevice("cpu"))
    ivf = module._inverted(index)
    if ivf is not None:
        ivf.nprobe = 2
    return index


INDEXES = {kind: made(kind) for kind in KINDS}


def world(seed, n, crowded):
    """Requests in the order of time: some users have seen much, items come into being all along."""
    rng = np.random.default_rng(seed)
    times = np.sort(rng.integers(0, 100, n))
    seen = [rng.permutation(N)[: rng.integers(0, 250 if rng.random() < crowded else 20)] for _ in range(n)]
    available = np.where(rng.random((2, N)) < 0.5, 0, rng.integers(0, 130, (2, N)))
    return Exclusions(
        row_offsets([len(items) for items in seen]),
        np.concatenate([np.zeros(0, np.int64), *seen]).astype(np.int64),
        times,
        rng.integers(0, 2, n),
        available,
    )


def alone(search, queries, k, exclusions):
    """The answer of each request by itself."""
    for row in range(len(exclusions)):
        unborn = np.flatnonzero(exclusions.available_ms[exclusions.period[row]] > exclusions.time_ms[row])
        yield search.search(queries[row][None], k, [np.concatenate([exclusions.seen_by(row), unborn])])[0]


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 1000),
    n=st.integers(1, 30),
    k=st.sampled_from([1, 5, 40, 400]),
    tastes=st.integers(1, 2),
    overfetch=st.sampled_from([0, 15, 60, 512]),
    exact=st.sampled_from([0, 40, 1000]),
    crowded=st.sampled_from([0.0, 0.3]),
)
def test_a_block_answers_as_each_request_alone(kind, seed, n, k, tastes, overfetch, exact, crowded):
    exclusions, queries = world(seed, n, crowded), unit((n, tastes), seed + 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "OVERFETCH", overfetch)
        patch.setattr(module, "EXACT_UP_TO", exact)
        patch.setattr(block_module, "_SCORES", 4 * N if seed % 2 else 1 << 22)
        search = ItemSearch(INDEXES[kind], VECTORS, 2 if kind == "ivf_pq" else 1)
        found = BlockSearch(search, exclusions.available_ms).search(queries, k, exclusions)
        expected = list(alone(search, queries, k, exclusions))
    assert len(found) == n
    for row, wanted in enumerate(expected):
        items = found.row(row)
        assert len(items) == len(wanted)
        if kind == "hnsw":  # a graph is walked farther where more is fetched
            assert not set(items.ids) & set(exclusions.seen_by(row))
            continue
        np.testing.assert_allclose(items.scores, wanted.scores, atol=1e-6)
        same_order(items, wanted)


def same_order(items, wanted):
    """The same items in the same order, but for such as tie or nearly tie."""
    different = np.flatnonzero(items.ids != wanted.ids)
    for place in different:
        near = np.abs(wanted.scores - items.scores[place]) < 2e-6
        assert near.sum() > 1 or place == len(wanted) - 1 or near[-1], (items.ids, wanted.ids)


def test_ties_go_to_the_lower_item():
    vectors = np.tile(VECTORS[:1], (6, 1))
    config = IndexConfig()
    index = make_index(index_type("flat", 6, D, config), vectors, np.arange(6), config, IndexDevice("cpu"))
    exclusions = Exclusions(
        np.array([0, 1, 1]), np.array([2]), np.array([5, 5]), np.array([0, 0]), np.array([[0, 0, 0, 9, 0, 0]])
    )
    found = BlockSearch(ItemSearch(index, vectors), exclusions.available_ms).search(VECTORS[[0, 0]], 6, exclusions)
    assert [found.row(row).ids.tolist() for row in (0, 1)] == [[0, 1, 4, 5], [0, 1, 2, 4, 5]]


def test_who_has_seen_everything_gets_nothing():
    search = ItemSearch(INDEXES["flat"], VECTORS)
    nothing_yet = np.full((1, N), 50)
    everything = Exclusions(np.array([0, N, N]), np.arange(N), np.array([60, 40]), np.array([0, 0]), nothing_yet)
    found = BlockSearch(search, nothing_yet).search(unit((2,), 1), 5, everything)
    assert found.lengths.tolist() == [0, 0]


def test_no_request_is_no_answer():
    none = np.zeros(0, np.int64)
    exclusions = Exclusions(np.zeros(1, np.int64), none, none, none, np.zeros((1, N), np.int64))
    found = BlockSearch(ItemSearch(INDEXES["flat"], VECTORS), exclusions.available_ms).search(
        np.zeros((0, D), np.float32), 5, exclusions
    )
    assert len(found) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seen": np.array([N])}, r"Exclusions\.seen = 300: allowed are 0 to 299"),
        ({"period": np.array([1])}, r"Exclusions\.period = 1: allowed are 0 to 0"),
        ({"period": np.array([0, 0])}, r"Exclusions\.period: 2 requests, expected those of time_ms, 1"),
    ],
)
def test_exclusions_that_do_not_fit_are_refused(change, message):
    one = np.zeros(1, np.int64)
    good = {"seen_offsets": np.array([0, 1]), "seen": one, "time_ms": one, "period": one}
    with pytest.raises(DataError, match=message):
        Exclusions(**{**good, **change}, available_ms=np.zeros((1, N), np.int64))
