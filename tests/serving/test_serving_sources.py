"""A release with every source: online equals offline, filters, explanations, changed parts."""

import json
import shutil
from collections import Counter
from itertools import pairwise

import httpx
import numpy as np
import pytest

from serving.events import Event
from serving.funnel import Funnel
from serving.release import load_release
from stages.candidate.generators.blend import Blend
from stages.candidate.generators.config import SourcesConfig
from stages.candidate.generators.generator import CandidateRequest
from stages.contracts.errors import ReleaseError
from stages.contracts.item_filter import ItemFilter
from stages.contracts.manifest import FunnelSpec
from stages.contracts.sources import source_name
from stages.contracts.tables import DAY_MS, SERVING
from stages.features.config import TrendingConfig
from stages.features.history import Moment, tower_inputs
from stages.features.ranking import feature_schema, ranking_features
from stages.features.state import FunnelState

AS_OF_MS = 1_700_000_000_000
NOW_MS = AS_OF_MS + 3_600_000
N_ITEMS, FUTURE_ITEM, WITHHELD = 300, 299, (3, 17, 298)
DAY_MINUTES = 1440
SOURCES = SourcesConfig(
    names=("tower", "covisitation", "trending", "ease", "content"),
    quotas={"trending": 10, "content": 0.1},
    history_length=4,
    trending=TrendingConfig(windows_minutes=(DAY_MINUTES, 5 * DAY_MINUTES), weights=(1.0, 0.2)),
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory, build_once):
    return build_once(tmp_path_factory.mktemp("sources") / "release", "blend", 0, sources=SOURCES)


@pytest.fixture
def funnel(directory) -> Funnel:
    return Funnel(load_release(directory), clock=lambda: NOW_MS)


def click(user: str, item: int) -> Event:
    return Event("e", user, f"i{item}", "click", 1.0, NOW_MS)


def indices_of(answer) -> list[int]:
    return [int(item.item_id[1:]) for item in answer.items]


def offline(release, user: int, time_ms: int, available_ms: np.ndarray, k: int = 60):
    """Blend a request's candidates as the step ``retrieve`` does; return them and their light scores."""
    state, scorer, blend = release.state, release.candidate, release.blend
    history, seen = state.history(user), state.touched(user)
    queries = scorer.embed(tower_inputs([history], [Moment(time_ms, user)], release.config, N_ITEMS))
    excluded = np.union1d(seen, np.flatnonzero(available_ms > time_ms))
    tower = scorer.search(queries, k, [excluded])[0]
    request = CandidateRequest(history.items, time_ms, (), seen, available_ms)
    blended = blend.mix(blend.complete(blend.read(request, state, k), request, state, tower, k), k)
    items, ranks = blended.items, np.arange(len(blended.items), dtype=np.int32)
    arguments = (state, user, time_ms, items.ids, items.scores, ranks, scorer.item_vectors, (), blended.sources)
    return blended, ranking_features(*arguments)


def test_online_candidates_features_and_scores_equal_offline(funnel, directory):
    release = load_release(directory)
    for item in (100, 7, 55):
        funnel.apply_event(click("u3", item))
        release.state.apply(3, item, 1, 1.0, NOW_MS)
    for user in (0, 3, 25):
        blended, features = offline(release, user, NOW_MS, release.items.available_from_ms(SERVING))
        answer = funnel.recommend(f"u{user}", 20, explain=True)
        light = np.argsort(-release.stages[0].scorer.score(features), kind="stable")
        rank_of = {int(item): rank for rank, item in enumerate(blended.items.ids)}
        for item, index in zip(answer.items, indices_of(answer), strict=True):
            row = rank_of[index]
            assert item.places["candidate"].rank == row
            assert item.places["candidate"].score == float(blended.items.scores[row])
            assert light[item.places["light"].rank] == row
            assert item.source == source_name(blended.source[row])
            listed = {
                name: (float(blended.sources.scores[row, column]), int(blended.sources.ranks[row, column]))
                for column, name in enumerate(SOURCES.names)
                if blended.sources.ranks[row, column] >= 0
            }
            assert {name: (place.score, place.rank) for name, place in item.named_by.items()} == listed
        assert answer.counts["retrieved"] == 60


def test_source_features_hold_what_the_sources_said(directory):
    release = load_release(directory)
    blended, features = offline(release, 3, NOW_MS, release.items.available_from_ms(SERVING))
    names = feature_schema(release.config, release.meta.tasks, (), SOURCES.names).names
    column = {name: features[:, place] for place, name in enumerate(names)}
    for place, name in enumerate(SOURCES.names):
        scores, ranks = blended.sources.scores[:, place], blended.sources.ranks[:, place]
        assert column[f"source_{name}_score"].tolist() == np.where(ranks < 0, 0, scores).tolist()
        wanted = [0 if rank < 0 else np.float32(1 / (1 + rank)) for rank in ranks]
        assert column[f"source_{name}_reciprocal_rank"].tolist() == wanted
        assert np.count_nonzero(ranks >= 0) > 0
    assert release.schema.names == names


def test_a_click_of_others_is_trending_in_the_very_next_answer(funnel):
    quiet = 290
    before = funnel.recommend("u4", 50, explain=True)
    assert not any("trending" in item.named_by for item in before.items if item.item_id == f"i{quiet}")
    for number in range(40):
        funnel.apply_event(click(f"visitor {number}", quiet))
    lists = []
    mix = funnel.release.blend.mix

    def spy(found, *others):
        lists.append(found)
        return mix(found, *others)

    funnel.release.blend.mix = spy
    funnel.recommend("u4", 50)
    assert lists[0]["trending"].ids[0] == quiet


def test_the_explanation_counts_items_by_source(funnel):
    answer = funnel.recommend("u2", 20, explain=True)
    counts = answer.counts
    by_source = {name: counts[f"retrieved_{name}"] for name in SOURCES.names}
    assert sum(by_source.values()) == counts["retrieved"] == 60
    assert all(count > 0 for count in by_source.values())
    shown = Counter(item.source for item in answer.items)
    assert set(shown) <= set(SOURCES.names) and all(shown[name] <= by_source[name] for name in shown)
    assert {"index", "candidate", "features"} <= set(answer.timings_ms)
    body = answer.as_dict()["items"][0]
    assert set(body["explain"]) == {"candidate", "light", "heavy"}
    assert body["sources"] and set(body["sources"]) <= set(SOURCES.names)
    for place in body["sources"].values():
        assert set(place) == {"score", "rank"}
    plain = funnel.recommend("u2", 20).as_dict()["items"][0]
    assert "sources" not in plain and plain["source"] == body["source"]


def test_over_http(directory, start, over_http):
    client: httpx.Client = over_http(start(directory))
    params = {"user_id": "u1", "k": 20, "explain": "true", "category": "c2"}
    body = client.get("/v1/recommendations", params=params).json()
    assert body["path"] == "funnel" and len(body["items"]) == 20
    assert all(item["sources"] for item in body["items"])


def test_a_filter_loses_nothing_and_lets_nothing_through(make_release, tmp_path):
    """More candidates than the filter allows: all of them come back, from whichever source."""
    spec = FunnelSpec(candidate_k=60, light_k=60, max_k=N_ITEMS)
    release = make_release(tmp_path / "release", "filter", 0, sources=SOURCES, funnel=spec)
    funnel = Funnel(load_release(release), clock=lambda: NOW_MS)
    items = funnel.release.items
    owners = np.repeat(np.arange(N_ITEMS), np.diff(items.category_offsets))
    for categories in ((0,), (1,)):
        allowed = set(owners[np.isin(items.category_codes, categories)].tolist()) - {FUTURE_ITEM, *WITHHELD}
        wanted = ItemFilter(categories=tuple(f"c{code}" for code in categories))
        for user in (1, 2, 30):
            left = allowed - set(funnel.release.state.touched(user).tolist())
            answer = funnel.recommend(f"u{user}", N_ITEMS, wanted=wanted, explain=True)
            assert set(indices_of(answer)) == left and len(answer.items) == len(left)
            assert answer.counts["retrieved"] == min(60, len(left))


def test_nothing_seen_withheld_or_not_yet_available_is_named_by_any_source(funnel):
    for item in (FUTURE_ITEM, *WITHHELD):
        for number in range(20):
            funnel.apply_event(click(f"fan {number}", item))
    seen = set(funnel.release.state.touched(3).tolist())
    for moment in (NOW_MS, AS_OF_MS + 2 * DAY_MS):
        hidden = set(WITHHELD) | ({FUTURE_ITEM} if moment == NOW_MS else set())
        found = funnel.recommend("u3", 50, time_ms=moment).items
        assert not {int(item.item_id[1:]) for item in found} & (seen | hidden)
        assert all(a.rank + 1 == b.rank for a, b in pairwise(found))


@pytest.mark.parametrize("name", ["sources/ease_weights.npy", "sources/sources.json", "state/trending_items.npy"])
def test_a_changed_part_of_the_sources_is_named(directory, tmp_path, name):
    copy = shutil.copytree(directory, tmp_path / "release")
    content = bytearray((copy / name).read_bytes())
    content[-2] ^= 1
    (copy / name).write_bytes(bytes(content))
    with pytest.raises(ReleaseError, match=rf"{name}: sha256 \w+…, the manifest says \w+…"):
        load_release(copy)


def edit(copy, **values):
    path = copy / "sources" / "sources.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def other_weights(copy):
    path = copy / "sources" / "ease_weights.npy"
    np.save(path, np.load(path)[::-1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda copy: edit(copy, tower_version="other"),
            r"tower_version is .*'other' in sources/sources.json.* \(train the sources again\)",
        ),
        (lambda copy: edit(copy, candidate_k=70), "candidate_k is 70 in sources/sources.json, 60 in manifest.json"),
        (lambda copy: edit(copy, n_items=3), "n_items is 300 in items.parquet, .*3 in sources/sources.json"),
        (lambda copy: edit(copy, names=["tower", "ease"]), "names = .* expected"),
        (lambda copy: edit(copy, secret=1), "not a readable description of sources"),
        (other_weights, r"sha256 of sources/ease_weights\.npy is '\w+…' in sources/sources.json, '\w+…' in"),
        (lambda copy: shutil.rmtree(copy / "sources"), "feature_schema_hash is"),
        (
            lambda copy: (copy / "sources" / "content_items.npy").unlink(),
            r"content_items\.npy is missing, sources/sources.json names it",
        ),
    ],
)
def test_sources_that_do_not_belong_to_the_release_are_refused_even_when_sealed(
    directory, tmp_path, reseal, change, message
):
    copy = shutil.copytree(directory, tmp_path / "release")
    change(copy)
    reseal(copy, "2023-11-14-blend")
    with pytest.raises(ReleaseError, match=message):
        load_release(copy)


def test_the_loaded_state_counts_trends_as_it_was_saved(directory):
    release = load_release(directory)
    assert isinstance(release.state, FunnelState) and release.state.trending is not None
    assert release.state.trending.config.lists == {"trending": SOURCES.trending}
    assert isinstance(release.blend, Blend)
    assert release.blend.quotas == {"tower": 14, "covisitation": 14, "trending": 10, "ease": 14, "content": 6}
