"""The funnel against an offline run of the same stages, and its promises about what it returns."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.errors import FieldError
from serving.events import Event
from serving.funnel import Funnel
from serving.release import load_release
from stages.candidate.generators.config import SourcesConfig
from stages.contracts.manifest import FunnelSpec
from stages.contracts.newcomers import NewcomerList
from stages.contracts.tables import DAY_MS, CandidateTable
from stages.features.history import Moment, tower_inputs
from stages.features.ranking import heavy_features, ranking_features
from tests.plain_ranking import rank_rows

AS_OF_MS = 1_700_000_000_000
NOW_MS = AS_OF_MS + 3_600_000
N_ITEMS, FUTURE_ITEM = 300, 299
WITHHELD = (3, 17, 298)


def event(user: str, item: str, signal: str = "click", value: float = 1.0, time_ms: int = NOW_MS) -> Event:
    return Event("e", user, item, signal, value, time_ms)


def make_funnel(directory) -> Funnel:
    return Funnel(load_release(directory), clock=lambda: NOW_MS)


@pytest.fixture
def funnel(releases):
    return make_funnel(releases["alpha"])


def ids_of(answer) -> list[str]:
    return [item.item_id for item in answer.items]


def indices_of(answer) -> list[int]:
    return [int(item.item_id[1:]) for item in answer.items]


def offline(release, users, time_ms):
    """Answer requests stage by stage with tables, as training and evaluation do."""
    state, spec, scorer = release.state, release.manifest.funnel, release.candidate
    histories, moments = [state.history(user) for user in users], [Moment(time_ms, user) for user in users]
    queries = scorer.embed(tower_inputs(histories, moments, release.config, N_ITEMS))
    excluded = [np.concatenate([state.touched(user), [FUTURE_ITEM, *WITHHELD]]) for user in users]
    found = scorer.search(queries, spec.candidate_k, excluded)
    sizes = [len(items) for items in found]
    rows = CandidateTable(
        request_id=np.repeat(np.arange(len(users)), sizes),
        item_index=np.concatenate([items.ids for items in found]),
        score=np.concatenate([items.scores for items in found]),
        rank=np.concatenate([np.arange(size, dtype=np.int32) for size in sizes]),
        source=np.zeros(sum(sizes), dtype=np.int8),
    )
    features = np.concatenate(
        [
            ranking_features(
                state,
                user,
                time_ms,
                items.ids,
                items.scores,
                np.arange(len(items), dtype=np.int32),
                scorer.item_vectors,
            )
            for user, items in zip(users, found, strict=True)
        ]
    )
    scorers = {stage.row.name: stage.scorer for stage in release.stages}
    light_scores = scorers["light"].score(features)
    light = rank_rows(rows, light_scores)
    position = {(r, i): n for n, (r, i) in enumerate(zip(rows.request_id, rows.item_index, strict=True))}
    chosen = np.array([position[pair] for pair in zip(light.request_id, light.item_index, strict=True)])
    kept = light.rank < spec.light_k
    passed = chosen[kept]
    vectors = scorer.item_vectors
    inputs = np.concatenate(
        [
            heavy_features(
                features[[n]],
                light_scores[[n]],
                light.rank[kept][[m]],
                queries[rows.request_id[n]],
                vectors[rows.item_index[[n]]],
            )
            for m, n in enumerate(passed)
        ]
    )
    scores = np.full(len(rows), -np.inf, dtype=np.float32)
    scores[passed] = scorers["heavy"].probabilities(inputs) @ np.array([0.25, 2.0], dtype=np.float32)
    return rows, light, rank_rows(rows, scores)


def test_online_scores_equal_offline_scores(funnel, releases):
    users = [0, 3, 11, 25]
    rows, light, heavy = offline(load_release(releases["alpha"]), users, NOW_MS)
    for request, user in enumerate(users):
        answer = funnel.recommend(f"u{user}", 20, explain=True)
        wanted = heavy.take(heavy.request_id == request)
        assert indices_of(answer) == wanted.item_index[:20].tolist()
        np.testing.assert_allclose([item.score for item in answer.items], wanted.score[:20], rtol=1e-5)
        for stage, table in (("candidate", rows), ("light", light), ("heavy", heavy)):
            mine = table.take(table.request_id == request)
            by_item = {int(i): (s, r) for i, s, r in zip(mine.item_index, mine.score, mine.rank, strict=True)}
            for item in answer.items:
                score, rank = by_item[int(item.item_id[1:])]
                assert item.places[stage].rank == rank
                assert item.places[stage].score == pytest.approx(float(score), rel=1e-5)


def test_features_see_posted_events(funnel, releases):
    """Posting events online gives the answer that a state with these events gives offline."""
    release = load_release(releases["alpha"])
    for item in (100, 7, 55):
        funnel.apply_event(event("u3", f"i{item}"))
        release.state.apply(3, item, 1, 1.0, NOW_MS)
    _, _, heavy = offline(release, [3], NOW_MS)
    answer = funnel.recommend("u3", 20)
    assert indices_of(answer) == heavy.item_index[:20].tolist()
    assert [item.score for item in answer.items] == pytest.approx(heavy.score[:20].tolist(), rel=1e-5)


def test_an_unknown_user_gets_the_popular_list(funnel):
    answer = funnel.recommend("nobody", 10, explain=True)
    popular = funnel.release.state.popular(NOW_MS, 10, np.array(WITHHELD))
    assert 3 in funnel.release.state.popular(NOW_MS, 10, np.empty(0, dtype=np.int64)).ids
    assert answer.path == "popular"
    assert indices_of(answer) == popular.ids.tolist()
    assert {item.source for item in answer.items} == {"popular"}
    assert [item.places["popular"].rank for item in answer.items] == list(range(10))


@pytest.mark.parametrize(("name", "days"), [("half_life_1d", 1.0), ("all_time", None)])
def test_the_list_that_was_measured_answers_an_unknown_user(make_release, tmp_path, name, days):
    """Also after a live event, and the answer says which list it is and why."""
    newcomers = NewcomerList(name=name, half_life_days=days, reason="NDCG@10 0.5")
    release = load_release(make_release(tmp_path / "release", "list", 0, SourcesConfig(), newcomers=newcomers))
    funnel, position = Funnel(release, clock=lambda: NOW_MS), None if days is None else 0
    asked = NOW_MS, 10, np.array(WITHHELD), None, position
    before = release.state.popular(*asked)
    assert before.ids.tolist() != release.state.popular(NOW_MS, 10, np.array(WITHHELD)).ids.tolist()
    answer = funnel.recommend("nobody", 10, explain=True)
    assert indices_of(answer) == before.ids.tolist()
    assert answer.as_dict()["explain"]["newcomers"] == {"list": name, "reason": "NDCG@10 0.5"}
    for user in range(300):
        funnel.apply_event(event(f"new {user}", "i250"))
    assert indices_of(funnel.recommend("nobody", 10))[0] == 250
    assert indices_of(funnel.recommend("nobody", 10)) == release.state.popular(*asked).ids.tolist()
    assert "newcomers" not in funnel.recommend("u3", 10, explain=True).as_dict()["explain"]


def test_a_known_user_without_history_gets_the_popular_list(funnel):
    assert funnel.recommend("u39", 5).path == "popular"


def test_three_events_lead_an_unknown_user_into_the_funnel(funnel):
    before = funnel.recommend("nobody", 10)
    for item in ("i200", "i210", "i220"):
        funnel.apply_event(event("nobody", item))
    after = funnel.recommend("nobody", 10)
    assert after.path == "funnel"
    assert ids_of(after) != ids_of(before)
    assert not {"i200", "i210", "i220"} & set(ids_of(after))


def test_an_alias_counts_as_its_item(funnel):
    funnel.apply_event(event("nobody", "copy-of-i5"))
    answer = funnel.recommend("nobody", 50, explain=True)
    assert answer.counts["seen_excluded"] == 1
    assert "i5" not in ids_of(answer)


def test_an_exposure_is_no_history(funnel):
    funnel.apply_event(event("nobody", "i5", signal="impression"))
    assert funnel.recommend("nobody", 5).path == "popular"


def test_an_item_is_returned_only_after_its_birth(make_release, tmp_path):
    spec = FunnelSpec(candidate_k=N_ITEMS, light_k=N_ITEMS, max_k=N_ITEMS)
    funnel = make_funnel(make_release(tmp_path / "release", "all", 0, funnel=spec))
    early, late = (funnel.recommend("u1", N_ITEMS, moment, explain=True) for moment in (NOW_MS, AS_OF_MS + 2 * DAY_MS))
    gone = len(set(funnel.release.state.touched(1).tolist()) | set(WITHHELD))
    assert (len(early.items), early.counts["not_yet_available"]) == (N_ITEMS - gone - 1, 1)
    assert (len(late.items), late.counts["not_yet_available"]) == (N_ITEMS - gone, 0)
    assert not {*indices_of(early), *indices_of(late)} & set(WITHHELD)
    assert FUTURE_ITEM not in indices_of(early)
    assert FUTURE_ITEM in indices_of(late)


def test_the_explanation_is_consistent(funnel):
    answer = funnel.recommend("u2", 15, explain=True)
    seen = len(funnel.release.state.touched(2))
    counts = answer.counts
    assert counts == {
        "catalogue": N_ITEMS,
        "withheld_excluded": len(WITHHELD),
        "seen_excluded": seen,
        "not_yet_available": 1,
        "retrieved": 60,
        "after_light": 20,
        "after_heavy": 20,
        "filled": 0,
        "returned": 15,
    }
    for rank, item in enumerate(answer.items):
        assert list(item.places) == ["candidate", "light", "heavy"]
        assert item.rank == item.places["heavy"].rank == rank
        assert item.score == item.places["heavy"].score
        assert item.places["light"].rank < 20 and item.places["candidate"].rank < 60
    for stage in ("candidate", "light", "heavy"):
        places = sorted((item.places[stage] for item in answer.items), key=lambda place: place.rank)
        assert all(a.score >= b.score for a, b in pairwise(places))
    assert {"history", "embed", "candidate", "features", "light", "heavy", "total"} <= set(answer.timings_ms)


def test_what_is_missing_is_filled_from_the_popular_list(make_release, tmp_path):
    spec = FunnelSpec(candidate_k=10, light_k=4, max_k=50)
    funnel = make_funnel(make_release(tmp_path / "release", "small", 0, funnel=spec))
    answer = funnel.recommend("u2", 9, explain=True)
    assert answer.path == "funnel"
    assert [item.source for item in answer.items] == ["tower"] * 4 + ["popular"] * 5
    assert [item.rank for item in answer.items] == list(range(9))
    assert len(set(ids_of(answer))) == 9
    assert not set(indices_of(answer)) & set(funnel.release.state.touched(2).tolist())
    assert (answer.counts["filled"], answer.counts["returned"]) == (5, 9)


def test_a_user_who_has_seen_nearly_everything(funnel):
    for item in range(3, N_ITEMS):
        funnel.apply_event(event("glutton", f"i{item}"))
    assert sorted(ids_of(funnel.recommend("glutton", 10))) == ["i0", "i1", "i2"]
    for item in range(3):
        funnel.apply_event(event("glutton", f"i{item}"))
    assert funnel.recommend("glutton", 10).items == ()


@pytest.mark.parametrize("stages", [(), ("light",), ("heavy",)])
def test_a_stage_left_out_is_bypassed(make_release, tmp_path, stages):
    spec = FunnelSpec(candidate_k=60, light_k=20, max_k=50, stages=stages)
    funnel = make_funnel(make_release(tmp_path / "release", "bypass", 0, funnel=spec))
    answer = funnel.recommend("u2", 10, explain=True)
    last = ("candidate", *stages)[-1]
    for rank, item in enumerate(answer.items):
        assert list(item.places) == ["candidate", *stages]
        assert (item.places[last].rank, item.places[last].score) == (rank, item.score)
    if stages == ("heavy",):
        assert all(item.places["candidate"].rank < 20 for item in answer.items)


def test_a_bypassed_stage_is_not_loaded_and_the_explanation_says_why(make_release, reseal, tmp_path):
    release = make_release(tmp_path / "release", "bypassed", 0)
    for name in ("heavy_ranker.onnx", "heavy_ranker.json"):
        (release / name).unlink()
    bypassed = {"heavy": "loses to light: -0.0146 [-0.0155, -0.0137] in ndcg@10"}
    spec = FunnelSpec(candidate_k=60, light_k=20, max_k=50, stages=("light",))
    reseal(release, "2023-11-14-bypassed", funnel=spec, bypassed=bypassed)
    funnel = make_funnel(release)
    assert [stage.row.name for stage in funnel.release.stages] == ["light"]
    for user in ("u2", "nobody at all"):
        answer = funnel.recommend(user, 10, explain=True).as_dict()
        assert answer["explain"]["bypassed"] == bypassed
        assert all("heavy" not in item["explain"] for item in answer["items"])
    assert "explain" not in funnel.recommend("u2", 10).as_dict()


def test_where_all_counts_have_decayed_the_releases_list_answers(funnel):
    answer = funnel.recommend("nobody", 50, time_ms=AS_OF_MS + 36_500 * DAY_MS)
    kept = [index for index in range(50) if index not in WITHHELD]
    assert ids_of(answer)[: len(kept)] == [f"i{index}" for index in kept]
    assert [item.score for item in answer.items[:2]] == [50.0, 49.0]


@pytest.mark.parametrize(
    ("changes", "field", "allowed"),
    [
        ({"user": ""}, "user_id", "a string of 1 to 256 characters"),
        ({"user": "u" * 257}, "user_id", "a string of 1 to 256 characters"),
        ({"item": "nothing"}, "item_id", "an item id of release 2023-11-14-alpha (300 items)"),
        ({"signal": "stare"}, "signal", "one of impression, click, like"),
        ({"value": float("nan")}, "value", "1 for signal 'click'"),
        ({"value": float("-inf")}, "value", "1 for signal 'click'"),
        ({"value": float("nan"), "signal": "impression"}, "value", "a finite number below 1e30"),
        ({"time_ms": -1}, "event_time_ms", "int ms UTC from 0 (1970)"),
        ({"time_ms": NOW_MS + 60_001}, "event_time_ms", f"to {NOW_MS + 60_000} (now)"),
    ],
)
def test_a_wrong_event_changes_nothing(funnel, changes, field, allowed):
    with pytest.raises(FieldError) as caught:
        funnel.apply_event(event(**{"user": "nobody", "item": "i5", **changes}))
    (fault,) = caught.value.faults
    assert fault.field == field
    assert allowed in fault.allowed
    assert field in str(caught.value)
    assert caught.value.status == 422
    assert funnel.recommend("nobody", 5).path == "popular"


def test_a_time_within_the_skew_counts_as_now(funnel):
    funnel.apply_event(event("nobody", "i5", time_ms=NOW_MS + 60_000))
    user = len(funnel.release.user_index)
    assert funnel.release.state.history(user).times_ms.tolist() == [NOW_MS]


@pytest.mark.parametrize(("user", "k", "fields"), [("u1", 0, ["k"]), ("u1", 51, ["k"]), ("", -1, ["user_id", "k"])])
def test_a_wrong_request_names_every_field(funnel, user, k, fields):
    with pytest.raises(FieldError) as caught:
        funnel.recommend(user, k)
    assert [fault.field for fault in caught.value.faults] == fields
    assert caught.value.faults[-1].allowed == "an integer from 1 to 50"


events = st.lists(
    st.tuples(
        st.sampled_from(["u0", "u1", "new", "newer"]), st.integers(0, FUTURE_ITEM), st.sampled_from(["click", "like"])
    ),
    max_size=25,
)


@given(posted=events, k=st.integers(1, 50))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_never_a_seen_item_never_a_duplicate(releases, posted, k):
    funnel = make_funnel(releases["alpha"])
    touched: dict[str, set[int]] = {user: set(funnel.release.state.touched(int(user[1:]))) for user in ("u0", "u1")}
    for user, item, signal in posted:
        funnel.apply_event(event(user, f"i{item}", signal))
        touched.setdefault(user, set()).add(item)
    for user, seen in touched.items():
        found = indices_of(funnel.recommend(user, k))
        assert len(found) == len(set(found)) == k
        assert not seen & set(found)
        assert not {FUTURE_ITEM, *WITHHELD} & set(found)


def test_rather_fewer_items_than_a_withheld_one(make_release, tmp_path):
    spec = FunnelSpec(candidate_k=N_ITEMS, light_k=N_ITEMS, max_k=N_ITEMS)
    funnel = make_funnel(make_release(tmp_path / "release", "all", 0, funnel=spec))
    left = {5, 40, *WITHHELD, FUTURE_ITEM}
    for user in ("u1", "somebody"):
        for item in sorted(set(range(N_ITEMS)) - left):
            funnel.apply_event(event(user, f"i{item}"))
        funnel.apply_event(event(user, "i3"))  # a withheld item exists: what happens to it is taken
        gone = set(funnel.release.state.touched(1).tolist()) if user == "u1" else set()
        assert set(indices_of(funnel.recommend(user, 10))) == {5, 40} - gone
    assert set(indices_of(funnel.recommend("nobody", N_ITEMS))) == set(range(N_ITEMS)) - {*WITHHELD, FUTURE_ITEM}


def test_an_event_on_a_blocked_item_says_why_it_is_unknown(funnel):
    with pytest.raises(FieldError, match=r"item_id.*blocked by the content policy: weapons"):
        funnel.apply_event(event("u1", "banned"))
    with pytest.raises(FieldError) as caught:
        funnel.apply_event(event("u1", "never-heard-of"))
    assert "blocked" not in str(caught.value)


def test_without_a_clock_old_data_runs_on_from_its_as_of_time(releases):
    funnel = Funnel(load_release(releases["alpha"]))
    assert AS_OF_MS <= funnel.recommend("u1", 1).time_ms < AS_OF_MS + 600_000
