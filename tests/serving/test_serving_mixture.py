"""A release whose lists are mixed by a trained network: online equals offline, explanations, exclusions, its file."""

import shutil

import numpy as np
import pytest

from serving.events import Event
from serving.funnel import Funnel
from serving.release import load_release
from stages.candidate.generators.config import SourcesConfig
from stages.candidate.generators.generator import CandidateRequest
from stages.contracts.errors import ReleaseError
from stages.contracts.item_filter import ItemFilter
from stages.contracts.sources import source_name
from stages.contracts.tables import SERVING
from stages.features.config import TrendingConfig
from stages.features.history import Moment, tower_inputs

NOW_MS = 1_700_000_000_000 + 3_600_000
N_ITEMS, K, POOL, WITHHELD = 300, 60, 90, (3, 17, 298)
SOURCES = SourcesConfig(
    names=("tower", "covisitation", "trending", "ease", "content"),
    history_length=4,
    trending=TrendingConfig(windows_minutes=(1440, 5 * 1440), weights=(1.0, 0.2)),
    mixture={"kind": "learned", "pool": POOL},
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory, build_once):
    return build_once(tmp_path_factory.mktemp("mixture") / "release", "mixture", 0, sources=SOURCES)


@pytest.fixture
def funnel(directory) -> Funnel:
    return Funnel(load_release(directory), clock=lambda: NOW_MS)


def offline(release, user: int):
    """Mix a request's candidates from lists of ``POOL`` items."""
    state, scorer, blend = release.state, release.candidate, release.blend
    available_ms = release.items.available_from_ms(SERVING)
    history, seen = state.history(user), state.touched(user)
    query = scorer.embed(tower_inputs([history], [Moment(NOW_MS, user)], release.config, N_ITEMS))
    tower = scorer.search(query, POOL, [np.union1d(seen, np.flatnonzero(available_ms > NOW_MS))])[0]
    request = CandidateRequest(history.items, NOW_MS, (), seen, available_ms)
    lists = blend.complete(blend.read(request, state, POOL), request, state, tower, POOL)
    return lists, blend.mix(lists, K, len(history.items))


def test_online_candidates_are_the_mixtures(funnel, directory):
    release = load_release(directory)
    for item in (100, 7, 55):
        funnel.apply_event(Event("e", "u3", f"i{item}", "click", 1.0, NOW_MS))
        release.state.apply(3, item, 1, 1.0, NOW_MS)
    for user in (0, 3, 25):
        lists, blended = offline(release, user)
        assert max(len(each) for each in lists.values()) == POOL
        assert blended.sources.ranks.max() >= K, "an item beyond the first candidate_k of a list is among the best"
        answer = funnel.recommend(f"u{user}", 20, explain=True)
        assert answer.counts["retrieved"] == K
        row_of = {f"i{item}": row for row, item in enumerate(blended.items.ids)}
        for item in answer.items:
            row, place = row_of[item.item_id], item.places["candidate"]
            assert (place.rank, place.score) == (row, float(blended.items.scores[row]))
            ranks = dict(zip(SOURCES.names, blended.sources.ranks[row].tolist(), strict=True))
            named = {name: rank for name, rank in ranks.items() if rank >= 0}
            assert {name: place.rank for name, place in item.named_by.items()} == named
            assert item.source == min(named, key=lambda name: named[name]) == source_name(blended.source[row])


def test_the_explanation_says_that_scores_are_the_mixtures(funnel):
    answer = funnel.recommend("u2", 20, explain=True)
    body = answer.as_dict()
    assert body["explain"]["mixture"] == "learned"
    assert all(item["explain"]["candidate"]["score"] < 0 for item in body["items"]), "logarithms of probabilities"
    assert sum(answer.counts[f"retrieved_{name}"] for name in SOURCES.names) == K
    assert "explain" not in funnel.recommend("u2", 20).as_dict()


def test_over_http_the_explanation_names_the_mixture(directory, start, over_http):
    client = over_http(start(directory))
    body = client.get("/v1/recommendations", params={"user_id": "u1", "k": 5, "explain": "true"}).json()
    assert body["path"] == "funnel" and body["explain"]["mixture"] == "learned"


def test_exclusions_and_filters_hold(funnel):
    categories = funnel.release.items
    for user in range(0, 30, 7):
        answer = funnel.recommend(f"u{user}", 50, wanted=ItemFilter(categories=("c2",)))
        items = [int(item.item_id[1:]) for item in answer.items]
        assert len(items) == 50 == len(set(items)) and not set(items) & set(WITHHELD)
        assert not set(items) & set(funnel.release.state.touched(user).tolist())
        for item in items:
            own = slice(categories.category_offsets[item], categories.category_offsets[item + 1])
            assert 2 in categories.category_codes[own]


def test_users_without_a_history_are_answered_as_without_a_mixture(funnel):
    answer = funnel.recommend("nobody", 10, explain=True)
    assert answer.path == "popular" and len(answer.items) == 10


def test_a_mixture_of_another_training_is_refused_even_when_sealed(directory, reseal, tmp_path):
    release = tmp_path / "release"
    shutil.copytree(directory, release)
    path = release / "sources" / "mixture.onnx"
    path.write_bytes(path.read_bytes().replace(b"mixture", b"fixture"))
    with pytest.raises(ReleaseError, match=r"mixture\.onnx"):
        load_release(release)
    reseal(release, "2023-11-14-mixture")
    with pytest.raises(ReleaseError, match=r"sha256 of sources/mixture\.onnx is .* \(train the sources again\)"):
        load_release(release)
    path.unlink()
    reseal(release, "2023-11-14-mixture")
    with pytest.raises(ReleaseError, match=r"sources/mixture\.onnx is missing, sources/sources\.json names it"):
        load_release(release)
