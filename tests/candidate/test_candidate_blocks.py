"""A block of requests is answered as each request alone: generators, the blend, newcomers, recalls and quotas."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.candidate.generators.blend import Blend
from stages.candidate.generators.config import SourcesConfig
from stages.candidate.generators.ease import EaseNeighbours
from stages.candidate.generators.files import SourcesSummary
from stages.candidate.generators.generator import CandidateGenerator, Pool, RequestBlock, best_of
from stages.candidate.generators.mixing import joined_lists, mixed_lists
from stages.candidate.retrieval.retriever import Answers
from stages.candidate.retrieval.step import Recalls
from stages.contracts.best_items import allowed_entries, best_entries, best_scored
from stages.contracts.errors import DataError
from stages.contracts.exclusions import Exclusions
from stages.contracts.item_lists import ItemLists
from stages.contracts.ragged import row_offsets
from stages.contracts.snapshot import Targets
from stages.contracts.tables import ScoredItems
from stages.contracts.top_k import top_k

N = 12
CONFIG = SourcesConfig(history_length=3, history_decay=2.0)
SEEDS = st.integers(0, 10_000)


def exclusions_of(rng, n: int, n_items: int = N) -> Exclusions:
    seen = [rng.permutation(n_items)[: rng.integers(0, n_items + 1)] for _ in range(n)]
    return Exclusions(
        row_offsets([len(items) for items in seen]),
        np.concatenate([np.zeros(0, np.int64), *seen]).astype(np.int64),
        rng.integers(0, 4, n),
        rng.integers(0, 2, n),
        rng.integers(0, 5, (2, n_items)),
    )


def allowed(exclusions: Exclusions, row: int, ids: np.ndarray) -> np.ndarray:
    born = exclusions.available_ms[exclusions.period[row], ids] <= exclusions.time_ms[row]
    return born & ~np.isin(ids, exclusions.seen_by(row))


def some_scores(rng, shape) -> np.ndarray:
    """Many ties, both zeros, tiny and large numbers."""
    if rng.random() < 0.3:
        return rng.normal(size=shape).astype(np.float32)
    values = np.array([-1e38, -1.0, -1e-40, -0.0, 0.0, 1e-40, 0.5, 1.0, 1e38], np.float32)
    return rng.choice(values, shape)


def same(items: ScoredItems, ids: np.ndarray, scores: np.ndarray) -> None:
    np.testing.assert_array_equal(items.ids, ids)
    np.testing.assert_array_equal(items.scores, scores)


@settings(deadline=None, max_examples=200)
@given(SEEDS, st.sampled_from([1, 5, 40, 700]))
def test_the_best_of_a_block_are_those_of_top_k(seed, n_items):
    rng = np.random.default_rng(seed)
    n, k, m = rng.integers(0, 4), int(rng.integers(0, n_items + 3)), int(rng.integers(1, n_items + 1))
    exclusions, ids = exclusions_of(rng, n, n_items), rng.permutation(n_items)[:m]
    scores_BM = some_scores(rng, (n, m))
    by_matrix = best_scored(scores_BM, ids, exclusions, k)
    pools = row_offsets([m] * n), np.tile(ids, n), scores_BM.reshape(-1)
    by_pool = best_entries(allowed_entries(pools, exclusions), k)
    above_0 = best_entries(allowed_entries(pools, exclusions, positive=True), k)
    for row in range(n):
        kept = allowed(exclusions, row, ids)
        best = top_k(scores_BM[row, kept], k, ids[kept])
        for found in (by_matrix, by_pool):
            same(found.row(row), ids[kept][best], scores_BM[row, kept][best])
        kept &= scores_BM[row] > 0
        best = top_k(scores_BM[row, kept], k, ids[kept])
        same(above_0.row(row), ids[kept][best], scores_BM[row, kept][best])


def test_an_item_that_is_found_twice_keeps_its_best_score():
    nothing = Exclusions(np.zeros(2, np.int64), *(np.zeros(n, np.int64) for n in (0, 1, 1)), np.zeros((1, N), np.int64))
    pools = np.array([0, 5]), np.array([3, -1, 4, 3, 4]), np.array([0.5, 9, 2, 0.75, 1], np.float32)
    found = best_entries(allowed_entries(pools, nothing), 5)
    same(found.row(0), np.array([4, 3]), np.array([2, 0.75], np.float32))


def test_what_cannot_be_compared_is_refused():
    nothing = Exclusions(np.zeros(2, np.int64), *(np.zeros(n, np.int64) for n in (0, 1, 1)), np.zeros((1, N), np.int64))
    scores = np.array([[1, np.nan]], np.float32)
    with pytest.raises(DataError, match="a score is NaN"):
        best_scored(scores, np.arange(2), nothing, 2)
    with pytest.raises(DataError, match="a score is NaN"):
        allowed_entries((np.array([0, 2]), np.arange(2), scores[0]), nothing)
    with pytest.raises(DataError, match="k = -1, allowed is 0 or more"):
        best_scored(scores[:, :1], np.arange(1), nothing, -1)


def block_of(rng, n: int, longest: int = 5) -> RequestBlock:
    histories = [rng.permutation(N)[: rng.integers(0, longest + 1)] for _ in range(n)]
    history_BL = np.full((n, longest), N, dtype=np.int64)
    for row, items in enumerate(histories):
        history_BL[row, : len(items)] = items
    lengths = np.array([len(items) for items in histories], dtype=np.int64)
    return RequestBlock(history_BL, lengths, np.zeros((n, 0), np.int64), exclusions_of(rng, n))


@settings(deadline=None)
@given(SEEDS, st.integers(0, 4), st.integers(1, N + 2), st.integers(1, 6))
def test_neighbours_of_a_block_are_those_of_each_request(seed, n, k, longest):
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 5, N)
    arrays = {
        "offsets": row_offsets(counts),
        "items": np.concatenate([rng.permutation(N)[:count] for count in counts]).astype(np.int32),
        "weights": rng.choice([0.1, 0.3, 1 / 3, 0.7], counts.sum()).astype(np.float32),
    }
    generator, block = EaseNeighbours.load(CONFIG, arrays, N), block_of(rng, n, longest)
    found = generator.lists(block, None, k)
    for row in range(n):
        request = block.request(row)
        wanted = best_of(generator.candidates(request, None), request, k)
        same(found.row(row), wanted.ids, wanted.scores)


class Shrinking(CandidateGenerator):
    """All items, with scores that fall; it has no method for blocks."""

    name = "content"
    answers_newcomers = True

    @classmethod
    def load(cls, settings, arrays, n_items):
        return cls()

    def candidates(self, request, state) -> Pool:
        return np.arange(N), 1.0 / (1 + np.arange(N) + len(request.history))


def test_a_generator_without_a_method_for_blocks_is_called_for_each_request():
    block = block_of(np.random.default_rng(3), 4)
    found = Shrinking().lists(block, None, 5)
    for row in range(4):
        wanted = best_of(Shrinking().candidates(block.request(row), None), block.request(row), 5)
        same(found.row(row), wanted.ids, wanted.scores)
    assert len(found.ids)


def some_lists(rng, n: int, longest: int = N) -> ItemLists:
    """Lists of any length with scores that tie."""
    return ItemLists.join(
        [
            ScoredItems(rng.permutation(N)[:size], -np.sort(-rng.integers(1, 4, size).astype(np.float32)))
            for size in rng.integers(0, longest + 1, n) * (rng.random(n) < 0.8)
        ]
    )


def blend_of(quotas: dict[str, int], k: int, generators=()) -> Blend:
    summary = SourcesSummary(
        names=tuple(quotas),
        quotas=quotas,
        learned=False,
        candidate_k=k,
        n_items=N,
        tower_version="t",
        data_fingerprint="f",
        config=SourcesConfig(names=tuple(quotas)),
    )
    return Blend(summary, list(generators))


@settings(deadline=None, max_examples=200)
@given(SEEDS, st.integers(0, 4), st.integers(1, N + 3), st.permutations(["tower", "ease", "ials", "content"]))
def test_a_block_is_mixed_as_each_request_is(seed, n, k, names):
    rng = np.random.default_rng(seed)
    names = names[: rng.integers(1, 5)] if names[0] == "tower" else names
    shares = rng.multinomial(rng.integers(0, k + 1), np.ones(len(names)) / len(names)).tolist()
    quotas = dict(zip(names, shares, strict=True))
    lists, blend = {name: some_lists(rng, n) for name in names}, blend_of(quotas, k)
    found = mixed_lists(lists, quotas, k, N)
    for row in range(n):
        wanted = blend.mix({name: each.row(row) for name, each in lists.items()}, k)
        same(found.items.row(row), wanted.items.ids, wanted.items.scores)
        entries = slice(*found.items.offsets[row : row + 2])
        np.testing.assert_array_equal(found.source[entries], wanted.source)
        for name in ("ranks", "scores"):
            np.testing.assert_array_equal(getattr(found.sources, name)[entries], getattr(wanted.sources, name))


class Given(CandidateGenerator):
    """One list of items that may be answered."""

    name = "ease"
    answers_newcomers = True

    def __init__(self, name: str, lists: ItemLists) -> None:
        self.name, self.of_row, self.row = name, lists, 0

    @classmethod
    def load(cls, settings, arrays, n_items):
        raise NotImplementedError

    def candidates(self, request, state) -> Pool:
        items = self.of_row.row(self.row)
        return items.ids, np.linspace(2, 1, len(items))


@settings(deadline=None)
@given(SEEDS, st.integers(1, 4), st.integers(1, N + 3), st.integers(0, 2))
def test_newcomers_of_a_block_are_answered_as_each_is(seed, n, k, n_generators):
    rng = np.random.default_rng(seed)
    names = ["ease", "ials"][:n_generators]
    lists, popular = {name: some_lists(rng, n) for name in names}, some_lists(rng, n, min(k, N))
    generators = [Given(name, each) for name, each in lists.items()]
    blend = blend_of({"tower": k, **dict.fromkeys(names, 0)}, k, generators)
    cut = {name: ItemLists.join([_first(each.row(row), k) for row in range(n)]) for name, each in lists.items()}
    found = blend.block_for_newcomers(cut, popular, k, N)
    block = RequestBlock(
        np.zeros((n, 0), np.int64), np.zeros(n, np.int64), np.zeros((n, 0), np.int64), exclusions_of(rng, n)
    )
    nothing = np.zeros(0, np.int64)
    for row in range(n):
        for generator in generators:
            generator.row = row
        request = block.request(row)
        free = type(request)(nothing, 9, (), nothing, np.zeros(N, np.int64))
        wanted = blend.for_newcomer(free, None, popular.row(row), k)
        same(found.row(row), wanted.ids, wanted.scores)


def _first(items: ScoredItems, k: int) -> ScoredItems:
    return ScoredItems(items.ids[:k], items.scores[:k])


def test_nobody_is_joined_to_nothing():
    nobody = ItemLists.join([])
    assert len(joined_lists([], nobody, 3, N)) == len(joined_lists([nobody], nobody, 3, N)) == 0


@settings(deadline=None)
@given(SEEDS)
def test_recalls_of_a_block_are_those_of_each_request(seed):
    rng = np.random.default_rng(seed)
    rows, wanted = (
        np.sort(rng.permutation(9)[:5]),
        [np.sort(rng.permutation(N)[: rng.integers(0, 4)]) for _ in range(9)],
    )
    sizes = [len(each) for each in wanted]
    request_id = np.repeat(np.arange(9), sizes)
    targets = Targets(request_id, np.concatenate(wanted), np.ones(len(request_id), np.float32), None)
    lists, popular = {name: some_lists(rng, 5) for name in ("", "tower")}, rng.random(5) < 0.3
    measured = Recalls(targets, 9, N, ("tower",), N)
    empty = np.zeros((5, 1), np.float32)
    measured.add(Answers(rows, empty, lists[""], np.zeros(0, np.int8), None, popular, rows, {"tower": lists["tower"]}))
    for name in ("", "tower"):
        for place, row in enumerate(rows):
            answer = lists["" if popular[place] else name].row(place).ids
            expected = np.isin(wanted[row], answer).mean() if sizes[row] else np.nan
            np.testing.assert_array_equal(measured._values[name][row], expected)
