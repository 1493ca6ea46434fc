"""Searching every kind of index, with exclusions, filters and several tastes, against brute force."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import stages.candidate.index.search as module
from stages.candidate.config import IndexConfig
from stages.candidate.index.device import IndexDevice
from stages.candidate.index.kinds import index_type, make_index
from stages.candidate.index.search import ItemSearch

N, D = 400, 8
EXACT = ("flat", "hnsw")
"""Kinds whose filtered search compares with every allowed vector."""


def unit(shape, seed):
    vectors = np.random.default_rng(seed).normal(size=(*shape, D)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


VECTORS = unit((N,), 0)
EVEN = np.arange(0, N, 2)


def made(kind, ids, n_probe=None):
    config = IndexConfig(n_lists=8)
    index = make_index(index_type(kind, len(ids), D, config), VECTORS[ids], ids, config, IndexDevice("cpu"))
    ivf = module._inverted(index)
    if ivf is not None and n_probe is not None:
        ivf.nprobe = n_probe
    return index


INDEXES = {
    (kind, len(ids)): made(kind, ids, 1)
    for kind in ("flat", "ivf_flat", "ivf_sq8", "hnsw")
    for ids in (EVEN, np.arange(N))
}


@pytest.fixture(autouse=True)
def nothing_is_few(monkeypatch):
    """So small a catalogue would always be compared item by item."""
    monkeypatch.setattr(module, "EXACT_UP_TO", 0)


def brute_force(query_TD, k, allowed):
    scores = (VECTORS @ np.atleast_2d(query_TD).T).max(axis=1)
    ids = np.flatnonzero(allowed)
    return ids[np.lexsort((ids, -scores[ids]))][:k]


exclusions = st.lists(st.integers(0, N - 1), max_size=60)
shares = st.sampled_from([1.0, 0.5, 0.05, 0.005, 0.0])


@settings(deadline=None, max_examples=60)
@given(exclusions, shares, st.integers(1, 30), st.integers(1, 3), st.sampled_from([0, 512]), st.integers(0, 50))
def test_an_exact_index_equals_brute_force(exclude, share, k, tastes, overfetch, seed):
    rng = np.random.default_rng(seed)
    mask = None if share == 1.0 else rng.random(N) < share
    query_TD = unit((tastes,), seed + 1)
    allowed = np.ones(N, bool) if mask is None else mask.copy()
    allowed[exclude] = False
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "OVERFETCH", overfetch)
        patch.setattr(module, "EXACT_UP_TO", 0 if seed % 2 else 1000)
        for ids in (np.arange(N), EVEN):
            search = ItemSearch(INDEXES["flat", len(ids)], VECTORS)
            found = search.search(query_TD[None], k, [np.array(exclude, np.int64)], [mask])[0]
            np.testing.assert_array_equal(found.ids, brute_force(query_TD, k, allowed & np.isin(np.arange(N), ids)))
            np.testing.assert_allclose(found.scores, (VECTORS[found.ids] @ query_TD.T).max(axis=1), atol=1e-6)


@pytest.mark.parametrize("kind", ["ivf_flat", "ivf_sq8", "hnsw"])
@settings(deadline=None, max_examples=40)
@given(
    exclude=exclusions,
    share=shares,
    k=st.integers(1, 30),
    tastes=st.integers(1, 3),
    overfetch=st.sampled_from([0, 512]),
    seed=st.integers(0, 50),
)
def test_any_index_finds_k_allowed_items_where_they_remain(kind, exclude, share, k, tastes, overfetch, seed):
    mask = np.random.default_rng(seed).random(N) < share
    allowed = mask & (np.arange(N) % 2 == 0)
    allowed[exclude] = False
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "OVERFETCH", overfetch)
        search = ItemSearch(INDEXES[kind, len(EVEN)], VECTORS)
        assert search.indexed.tolist() == EVEN.tolist()
        queries_BTD = unit((2, tastes), seed)
        nothing = np.empty(0, np.int64)
        some, plain = search.search(queries_BTD, k, [np.array(exclude, np.int64), nothing], [mask, None])
    assert len(some) == min(k, allowed.sum()) and allowed[some.ids].all()
    assert len(plain) == k and (plain.ids % 2 == 0).all()
    if kind in EXACT and len(some):
        np.testing.assert_array_equal(some.ids, brute_force(queries_BTD[0], k, allowed))


@pytest.mark.parametrize("kind", ["ivf_flat", "ivf_sq8"])
def test_a_filter_of_far_away_items_loses_nothing(kind):
    """The allowed items are those farthest from the query: its nearest lists hold none of them."""
    query = unit((1,), 5)
    mask = np.zeros(N, bool)
    mask[np.argsort(VECTORS @ query[0])[:40]] = True
    search = ItemSearch(made(kind, np.arange(N), 4), VECTORS)
    found = search.search(query, 10, [np.empty(0, np.int64)], [mask])[0]
    assert np.isin(brute_force(query, 10, mask), found.ids).mean() >= 0.9


def test_a_filter_compares_at_least_as_many_vectors_as_a_search_without():
    index = made("ivf_flat", np.arange(N), 3)
    lists, compared = ItemSearch(index, VECTORS).filtered, []
    assert isinstance(lists, module._Lists)
    mask = np.random.default_rng(1).random(N) < 0.5
    original = module.faiss.SearchParametersIVF
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            module.faiss, "SearchParametersIVF", lambda **given: compared.append(given["nprobe"]) or original(**given)
        )
        lists.search(unit((1,), 3), 5, mask)
    assert compared[0] > 3


def test_product_codes_are_scored_again_by_whole_vectors():
    index = made("ivf_pq", np.arange(N), 8)
    query = unit((2,), 4)
    found = ItemSearch(index, VECTORS, refine=8).search(query[None], 10, [np.empty(0, np.int64)])[0]
    np.testing.assert_allclose(found.scores, (VECTORS[found.ids] @ query.T).max(axis=1), atol=1e-6)
    assert np.isin(brute_force(query, 10, np.ones(N, bool)), found.ids).mean() >= 0.8
    mask = np.arange(N) % 3 == 0
    some = ItemSearch(index, VECTORS, refine=8).search(query[None], 10, [np.empty(0, np.int64)], [mask])[0]
    assert len(some) == 10 and mask[some.ids].all()


def test_ties_are_broken_by_item():
    vectors = np.tile(VECTORS[:1], (6, 1))
    config = IndexConfig()
    index = make_index(index_type("flat", 6, D, config), vectors, np.arange(6), config, IndexDevice("cpu"))
    answer = ItemSearch(index, vectors).search(VECTORS[:1], 6, [np.array([2])])[0]
    assert answer.ids.tolist() == [0, 1, 3, 4, 5]


@pytest.mark.parametrize(("n_allowed", "exactly"), [(8, True), (9, True), (40, True), (41, False), (60, False)])
def test_few_allowed_items_and_sparse_ones_are_compared_exactly(monkeypatch, n_allowed, exactly):
    """Up to 8 items of any index, or 40 where they are at most a tenth of it; else lists are searched."""
    monkeypatch.setattr(module, "EXACT_UP_TO", 8)
    for ids, few in ((np.arange(N), exactly), (np.arange(80), n_allowed <= 8)):
        search, asked = ItemSearch(made("ivf_flat", ids, 1), VECTORS, 1), []
        inner = search.filtered.search
        monkeypatch.setattr(
            search.filtered, "search", lambda *a, inner=inner, asked=asked: asked.append(1) or inner(*a)
        )
        search.search(VECTORS[:1], 3, [np.empty(0, np.int64)], [np.arange(N) < n_allowed])
        assert bool(asked) != few, len(ids)
