"""Each candidate generator against brute force on tiny data; the blend's quotas, order and origin."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from stages.candidate.generators.blend import RRF_K, Blend, Blended
from stages.candidate.generators.config import SourcesConfig
from stages.candidate.generators.covisitation import Covisitation
from stages.candidate.generators.directed_ridge import RidgeNeighbours
from stages.candidate.generators.ease import EaseNeighbours
from stages.candidate.generators.files import SourcesSummary
from stages.candidate.generators.generator import CandidateGenerator, CandidateRequest, FitData, best_of
from stages.candidate.generators.ials import IalsNeighbours
from stages.candidate.generators.neighbour_lists import content_neighbours, fitted_neighbours, sparse_neighbours
from stages.candidate.generators.trending import Trending
from stages.candidate.linear.config import EaseSettings, LimitedAls, LimitedEase, LimitedRidge
from stages.candidate.linear.directed_ridge import DirectedRidge
from stages.candidate.linear.models import ImplicitAls
from stages.contracts.errors import ConfigError, ReleaseError
from stages.contracts.snapshot import NEVER_AVAILABLE_MS, ItemTable, Task
from stages.contracts.sources import source_code
from stages.contracts.tables import ScoredItems
from stages.features.config import FeatureConfig, TrendingConfig, TrendsConfig
from stages.features.state import FunnelState

N = 8
HOUR = 3_600_000
NOW = 100 * HOUR
CONFIG = SourcesConfig(history_length=2, history_decay=2.0, covisitation_smoothing=3.0)
DECAY = math.exp(-1 / 2)


def items_of(categories: list[list[int]], titles: list[str] | None = None, created: list[int] | None = None):
    n = len(categories)
    return ItemTable(
        item_id=np.array([f"i{i}" for i in range(n)], dtype=object),
        title=np.array(titles or [""] * n, dtype=object),
        created_at_ms=np.array(created or [0] * n, dtype=np.int64),
        duration_s=np.ones(n, np.float32),
        category_offsets=np.concatenate([[0], np.cumsum([len(codes) for codes in categories])]).astype(np.int64),
        category_codes=np.array([code for codes in categories for code in codes], dtype=np.int32),
        n_categories=4,
    )


def state_of(touches: list[tuple[int, int, int]], trending: TrendsConfig | None = None) -> FunnelState:
    tasks = (Task(name="click", signals=("click",), relevance=1.0),)
    state = FunnelState.empty(items_of([[]] * N), FeatureConfig(), ("click",), tasks, trending=trending)
    for user, item, time_ms in touches:
        state.apply(user, item, 0, 1.0, time_ms)
    return state


def request_for(history: list[int], seen: list[int] | None = None, never: tuple[int, ...] = ()) -> CandidateRequest:
    available = np.zeros(N, dtype=np.int64)
    available[list(never)] = NEVER_AVAILABLE_MS
    seen_items = np.array(history if seen is None else seen, dtype=np.int64)
    return CandidateRequest(np.array(history, dtype=np.int64), NOW, (), seen_items, available)


def scored(*ids: int) -> ScoredItems:
    return ScoredItems(np.array(ids, dtype=np.int64), np.linspace(1, 0.5, len(ids), dtype=np.float32))


def test_covisitation_equals_its_formula() -> None:
    """Users 0 to 2 touch 1 then 2; user 3 touches 3, 2, 4: links 1-2 three times 1; 3-2 and 2-4 of 1, 3-4 of 1/2."""
    touches = [(user, item, user) for user in range(3) for item in (1, 2)] + [(3, item, 9) for item in (3, 2, 4)]
    state = state_of(touches)
    found = best_of(Covisitation(CONFIG).candidates(request_for([2, 3]), state), request_for([2, 3]), 5)
    link_1 = 3 / math.sqrt(4) / math.sqrt(3 + 3)
    link_4 = (1 / math.sqrt(4) + DECAY * 0.5 / math.sqrt(1)) / math.sqrt(1 + 3)
    assert found.ids.tolist() == [1, 4]
    assert found.scores == pytest.approx([link_1, link_4])
    assert link_1 > link_4, "the order is that of the formula"
    older = best_of(Covisitation(CONFIG).candidates(request_for([5, 6, 2]), state), request_for([5, 6, 2]), 5)
    assert len(older) == 0, "the third newest item is not read"


def test_trending_names_what_the_last_hours_touched_without_the_seen() -> None:
    windows = TrendsConfig(lists={"trending": TrendingConfig(windows_minutes=(60, 600), weights=(1.0, 0.1))})
    state = state_of([(0, 1, 0), (1, 2, NOW - 5 * HOUR), (2, 2, NOW - 1), (3, 3, NOW - 1), (4, 5, NOW - 1)], windows)
    found = best_of(Trending().candidates(request_for([3]), state), request_for([3]), 5)
    assert found.ids.tolist() == [2, 5]
    assert found.scores == pytest.approx([1 / 3 + 0.1 * 2 / 4, 1 / 3 + 0.1 / 4])
    with pytest.raises(ReleaseError, match="counts nothing for the generator 'trending'"):
        Trending().candidates(request_for([3]), state_of([]))


def test_trained_neighbours_are_summed_over_the_newest_items() -> None:
    offsets = np.array([0, 2, 4, 4, 5, 5, 5, 5, 5])
    arrays = {
        "offsets": offsets,
        "items": np.array([4, 5, 5, 6, 7]),
        "weights": np.array([0.5, 0.3, 0.4, 0.1, 9.0]),
    }
    source = EaseNeighbours.load(CONFIG, arrays, N)
    found = best_of(source.candidates(request_for([0, 1, 3]), state_of([])), request_for([0, 1, 3]), 9)
    assert found.ids.tolist() == [5, 4, 6]
    assert found.scores == pytest.approx([0.3 + DECAY * 0.4, 0.5, DECAY * 0.1])
    assert len(best_of(source.candidates(request_for([]), state_of([])), request_for([]), 9)) == 0


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("offsets", [0, 2, 4], r"ease_offsets\.npy: 3 offsets from 0 to 4, expected 9 ascending ones from 0 to 3"),
        ("offsets", [0, 2, 1, 3, 3, 3, 3, 3, 3], r"ease_offsets\.npy: 9 offsets from 0 to 3, expected 9 ascending"),
        ("offsets", [], r"ease_offsets\.npy: 0 offsets"),
        ("items", [1, 2, 8], r"ease_items\.npy: allowed are 3 items below 8"),
        ("items", [1, -1, 2], r"ease_items\.npy: allowed are 3 items below 8"),
        ("weights", [1.0, 2.0], r"ease_items\.npy: allowed are 2 items below 8"),
        ("weights", [[1.0], [2.0], [3.0]], r"ease_weights\.npy: shape \[3, 1\], expected one dimension"),
    ],
)
def test_neighbours_that_do_not_fit_together_are_refused(name: str, values: list, message: str) -> None:
    arrays = {
        "offsets": np.array([0, 1, 3, 3, 3, 3, 3, 3, 3]),
        "items": np.array([1, 2, 3]),
        "weights": np.array([1.0, 2.0, 3.0]),
    }
    assert isinstance(EaseNeighbours.load(CONFIG, arrays, N), EaseNeighbours)
    with pytest.raises(ReleaseError, match=message):
        EaseNeighbours.load(CONFIG, {**arrays, name: np.array(values)}, N)


def test_exclusions_and_filters_act_before_the_cut() -> None:
    """Whatever is left out makes room for what comes after it."""
    pool = np.arange(N), np.linspace(2, 1, N)
    assert best_of(pool, request_for([]), 3).ids.tolist() == [0, 1, 2]
    assert best_of(pool, request_for([], seen=[0, 2], never=(1, 4)), 3).ids.tolist() == [3, 5, 6]
    ties = best_of((np.array([5, 2, 7]), np.ones(3)), request_for([]), 2)
    assert ties.ids.tolist() == [2, 5], "ties by item index"
    assert best_of((np.array([1, 2]), np.array([0.0, -1.0])), request_for([]), 2).ids.tolist() == []


HISTORIES = np.array([[1, 1, 0, 0, 1], [1, 1, 1, 0, 0], [0, 1, 1, 0, 0], [0, 0, 1, 1, 0], [1, 0, 0, 1, 0]], dtype=float)


def fit_data(allowed: range) -> FitData:
    def touches() -> sparse.csr_matrix:
        return sparse.csr_matrix(HISTORIES)

    def sequences() -> tuple[np.ndarray, np.ndarray]:
        user, item = np.nonzero(HISTORIES)
        return user, item

    return FitData(None, FeatureConfig(), items_of([[]] * 5), np.arange(allowed.stop), touches, sequences)


def rows_of(arrays) -> list[dict[int, float]]:
    offsets, items, weights = (arrays[name] for name in ("offsets", "items", "weights"))
    return [dict(zip(items[a:b].tolist(), weights[a:b].tolist(), strict=True)) for a, b in pairwise(offsets)]


def test_ease_neighbours_are_the_best_positive_weights_of_the_closed_form() -> None:
    config = SourcesConfig(ease=LimitedEase(regularisation=2.0), neighbours=2)
    inverse = np.linalg.inv(HISTORIES.T @ HISTORIES + 2.0 * np.eye(5))
    weights = -inverse / np.diagonal(inverse)
    np.fill_diagonal(weights, 0)
    weights[:, 4] = 0  # may not be named
    found = rows_of(EaseNeighbours.fit(config, fit_data(range(4))))
    for item, row in enumerate(found):
        best = sorted((other for other in range(5) if weights[item, other] > 0), key=lambda o: -weights[item, o])[:2]
        assert list(row) == best
        assert list(row.values()) == pytest.approx([weights[item, other] for other in best], rel=1e-5)
    assert sum(map(len, found)) > 4


def test_neighbours_of_sparse_weights_are_those_of_dense_ones() -> None:
    """With as many equal weights as there are twins, and items that may not be named."""
    rng = np.random.default_rng(3)
    history = sparse.csr_matrix((rng.random((40, 12)) < 0.3).astype(float))
    for neighbours, allowed in ((3, 12), (20, 9)):
        lists = []
        for method in ("dense", "sparse"):
            settings = EaseSettings(regularisation=2.0, method=method, neighbours=11)
            config = SourcesConfig(ease=LimitedEase(**settings.model_dump()), neighbours=neighbours)
            data = FitData(None, FeatureConfig(), None, np.arange(allowed), lambda: history, lambda: None)
            lists.append(rows_of(EaseNeighbours.fit(config, data)))
        assert [list(row) for row in lists[0]] == [list(row) for row in lists[1]]
        assert max(map(len, lists[0])) > 2
    twins = sparse.csr_matrix(np.array([[9, 2, 1, 2.0], [0, 1, 0, 0], [-1, 0, 0, 0], [0, 0, 0, 5]]))
    assert rows_of(sparse_neighbours(twins, 2, np.arange(4))) == [{1: 2.0, 3: 2.0}, {}, {}, {}]
    assert rows_of(sparse_neighbours(twins, 2, np.arange(3))) == [{1: 2.0, 2: 1.0}, {}, {}, {}]


def test_the_directed_ridge_gives_what_comes_next() -> None:
    """Its own weights by place, and the weights that lead away from an item."""
    own = LimitedRidge(regularisation=2.0, power=0.5, latest=3)
    config = SourcesConfig(directed_ridge=own, neighbours=4, history_length=1)
    data = fit_data(range(5))
    model = DirectedRidge.fit(*data.sequences(), 5, own)
    arrays = RidgeNeighbours.fit(config, data)
    wanted = fitted_neighbours("directed_ridge", model, data.touches(), 4, np.arange(5))
    assert rows_of(arrays) == rows_of(wanted) and len(arrays["items"])
    assert model.weights[0, 1] > 0 > model.weights[1, 0] - 1e-6, "of users with both, 0 comes before 1"
    source = RidgeNeighbours.load(config, arrays, 5)
    history = [0, 1, 3, 2]
    ids, scores = source.candidates(request_for(history), state_of([]))
    positive = np.maximum(model.weights - np.diag(np.diag(model.weights)), 0)
    summed = np.array([1.0, 2**-0.5, 3**-0.5]) @ positive[history[:3]]
    np.testing.assert_allclose(scores, summed[ids], rtol=1e-6)
    assert set(ids.tolist()) == set(np.flatnonzero(summed).tolist()), "the fourth newest item is not read"


def test_ials_neighbours_are_the_answers_to_histories_of_one_item() -> None:
    ials = LimitedAls(factors=2, seed=5)
    config = SourcesConfig(neighbours=3, ials=ials)
    model = ImplicitAls.fit(sparse.csr_matrix(HISTORIES), ials, 5)
    found = rows_of(IalsNeighbours.fit(config, fit_data(range(5))))
    for item, row in enumerate(found):
        scores = model.score(sparse.csr_matrix(np.eye(5)[[item]]))[0]
        scores[item] = 0
        best = [other for other in np.argsort(-scores).tolist() if scores[other] > 0][:3]
        assert list(row) == best


def test_a_closed_form_of_a_large_catalogue_says_what_to_do() -> None:
    config = SourcesConfig(ease=LimitedEase(memory_gb=1e-7), directed_ridge=LimitedRidge(memory_gb=1e-7))
    for generator, what in ((EaseNeighbours, "EASE"), (RidgeNeighbours, "directed ridge")):
        with pytest.raises(ConfigError, match=rf"{what}: 5 items need .* memory_gb = 1e-07: .* or use implicit ALS"):
            generator.fit(config, fit_data(range(5)))


def test_content_neighbours_equal_dense_tf_idf_cosines() -> None:
    titles = ["the red Fox", "red fox, red dog", "blue dog", "", "blue whale"]
    categories = [[0], [0, 1], [1], [], [1]]
    features = [{"c0", "the", "red", "fox"}, {"c0", "c1", "red", "fox", "dog"}, {"c1", "blue", "dog"}, set()]
    features.append({"c1", "blue", "whale"})
    names = sorted(set().union(*features))
    held = np.array([[name in words for name in names] for words in features], dtype=float)
    weighted = held * (1 + np.log(5 / held.sum(axis=0)))
    unit = weighted / np.maximum(np.linalg.norm(weighted, axis=1, keepdims=True), 1e-12)
    cosine = unit @ unit.T
    np.fill_diagonal(cosine, 0)
    found = rows_of(content_neighbours(items_of(categories, titles), 2, np.arange(5)))
    for item, row in enumerate(found):
        best = [other for other in np.argsort(-cosine[item], kind="stable").tolist() if cosine[item, other] > 0][:2]
        assert list(row) == best
        assert list(row.values()) == pytest.approx(cosine[item, best].tolist(), rel=1e-5)
    assert found[3] == {}


def test_content_neighbours_are_the_same_in_every_process() -> None:
    """Also where strings hash otherwise: sums of weights depend on their order in the last bit."""
    program = (
        "import numpy as np; from stages.candidate.generators.neighbour_lists import content_neighbours; "
        "from tests.candidate.test_candidate_sources import items_of; rng = np.random.default_rng(0); "
        "titles = [' '.join(f'word{code}' for code in rng.integers(0, 60, 25)) for _ in range(40)]; "
        "found = content_neighbours(items_of([[]] * 40, titles), 10, np.arange(40)); "
        "print(found['items'].tolist(), found['weights'].tobytes().hex())"
    )
    found = [
        subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, env=environ).stdout
        for environ in ({**os.environ, "PYTHONHASHSEED": seed} for seed in ("1", "2"))
    ]
    assert found[0] == found[1] != b""


def test_equally_similar_items_are_told_apart_by_their_time() -> None:
    table = items_of([[0], [0], [0], [0], [1]], created=[50, 10, 60, 45, 50])
    found = rows_of(content_neighbours(table, 2, np.array([1, 2, 3, 4])))
    assert list(found[0]) == [3, 2], "items of the same category, the nearest in time first"
    assert list(found[3]) == [2, 1], "item 0 may not be named"
    assert found[4] == {}


def blend_of(quotas: dict[str, int], k: int, sources: tuple[CandidateGenerator, ...] = ()) -> Blend:
    names = tuple(quotas)
    config = SourcesConfig(names=names)
    summary = SourcesSummary(
        names=names,
        quotas=quotas,
        learned=False,
        candidate_k=k,
        n_items=N,
        tower_version="t",
        data_fingerprint="f",
        config=config,
    )
    return Blend(summary, list(sources))


def test_each_source_gives_its_quota_and_the_tower_fills_the_rest() -> None:
    blend = blend_of({"tower": 2, "trending": 2, "content": 1}, 5)
    lists = {"tower": scored(0, 1, 2, 3, 4), "trending": scored(1, 6, 7), "content": scored(6, 5)}
    mixed = blend.mix(lists, 5)
    # Tower 0, 1; trending 1, 6; content 6: three items, so that the tower goes on with 2 and 3.
    assert sorted(mixed.items.ids.tolist()) == [0, 1, 2, 3, 6]
    fused = {
        0: 2 / 5 / (RRF_K + 1),
        1: 2 / 5 / (RRF_K + 2) + 2 / 5 / (RRF_K + 1),
        2: 2 / 5 / (RRF_K + 3),
        3: 2 / 5 / (RRF_K + 4),
        6: 2 / 5 / (RRF_K + 2) + 1 / 5 / (RRF_K + 1),
    }
    order = sorted(fused, key=lambda item: -fused[item])
    assert mixed.items.ids.tolist() == order == [1, 6, 0, 2, 3]
    assert mixed.items.scores == pytest.approx([fused[item] for item in order])
    first = dict(zip(order, mixed.source.tolist(), strict=True))
    codes = {name: source_code(name) for name in blend.names}
    assert first == {1: codes["trending"], 6: codes["content"], 0: 0, 2: 0, 3: 0}
    assert mixed.sources is not None
    assert mixed.sources.ranks.tolist() == [[1, 0, -1], [-1, 1, 0], [0, -1, -1], [2, -1, -1], [3, -1, -1]]
    bits = {name: 1 << code for name, code in codes.items()}
    assert mixed.sources.mask()[:2].tolist() == [bits["tower"] | bits["trending"], bits["trending"] | bits["content"]]
    np.testing.assert_array_equal(mixed.sources.scores[0], [np.float32(0.875), 1.0, np.nan])


LISTS = st.permutations(range(N)).flatmap(lambda order: st.integers(0, N).map(lambda n: order[:n]))


@given(st.permutations(range(N)), LISTS, LISTS, st.integers(1, N), st.integers(0, 3), st.integers(0, 3))
def test_the_blend_is_the_union_of_the_quotas_and_loses_nothing(tower, one, two, k, quota_one, quota_two) -> None:
    quota_one = min(quota_one, k)
    quotas = {"tower": k - min(k, quota_one + quota_two), "ease": quota_one, "content": min(quota_two, k - quota_one)}
    lists = {"tower": scored(*tower[:k]), "ease": scored(*one[:k]), "content": scored(*two[:k])}
    mixed = blend_of(quotas, k).mix(lists, k)
    found = mixed.items.ids.tolist()
    wanted = {item for name, items in lists.items() for item in items.ids[: quotas[name]].tolist()}
    filling = [item for item in tower[:k] if item not in wanted][: k - len(wanted)]
    assert len(found) == k and set(found) == wanted | set(filling)
    assert mixed.sources is not None
    for row, item in enumerate(found):
        for column, items in enumerate(lists.values()):
            place = np.flatnonzero(items.ids == item)
            assert mixed.sources.ranks[row, column] == (place[0] if len(place) else -1)
    again = blend_of(quotas, k).mix(lists, k)
    assert again.items.ids.tolist() == found


def test_a_quota_of_nothing_changes_no_candidate() -> None:
    lists = {"tower": scored(3, 1, 0), "ease": scored(7, 6, 1)}
    mixed = blend_of({"tower": 3, "ease": 0}, 3).mix(lists, 3)
    assert mixed.items.ids.tolist() == [3, 1, 0]
    assert set(mixed.source.tolist()) == {0}
    assert mixed.sources is not None and mixed.sources.ranks[:, 1].tolist() == [-1, 2, -1]


def test_nothing_left_is_an_empty_answer() -> None:
    mixed = blend_of({"tower": 2, "ease": 1}, 3).mix({"tower": scored(), "ease": scored()}, 3)
    assert isinstance(mixed, Blended)
    assert len(mixed.items) == len(mixed.source) == 0


def test_a_newcomer_gets_what_is_trending_and_then_what_is_popular() -> None:
    windows = TrendsConfig(lists={"trending": TrendingConfig(windows_minutes=(60,), weights=(1.0,))})
    popular, request = scored(0, 2, 1, 4), request_for([], never=(5,))
    state = state_of([(1, 2, NOW - 2), (2, 2, NOW - 1), (3, 3, NOW - 1), (4, 5, NOW - 1)], windows)
    blend = blend_of({"tower": 3, "trending": 1}, 4, (Trending(),))
    found = blend.for_newcomer(request, state, popular, 4)
    assert found.ids.tolist() == [2, 3, 0, 1], "item 5 may not be named"
    assert (np.diff(found.scores) < 0).all()
    assert blend.for_newcomer(request, state, popular, 1).ids.tolist() == [2]
    quiet = state_of([(1, 2, NOW - 2 * HOUR)], windows)
    assert blend.for_newcomer(request, quiet, popular, 4) is popular
    without = blend_of({"tower": 3, "content": 1}, 4)
    assert without.for_newcomer(request, state, popular, 4) is popular
