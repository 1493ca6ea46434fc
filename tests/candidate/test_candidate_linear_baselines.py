"""EASE and implicit ALS answer requests as their definitions say, from raw events read by hand."""

import dataclasses
import re
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from stages.candidate.linear import baselines as linear_baselines
from stages.candidate.linear.baselines import Popularity, fit_baselines, history_matrix, rank_baselines
from stages.candidate.linear.config import BaselineAls, BaselineEase, BaselinesConfig, RankBaselinesConfig
from stages.candidate.linear.models import ImplicitAls
from stages.contracts.config import parse_config
from stages.contracts.errors import ConfigError, DataError, EmptyDatasetError
from stages.contracts.files import read_json
from stages.contracts.ragged import row_offsets
from stages.contracts.snapshot import ItemTable, Snapshot
from stages.contracts.tables import DAY_MS, EventTable, RankedTable
from stages.contracts.touches import first_touches, touching
from stages.features.config import FeatureConfig
from stages.features.state import FunnelState
from tests.builders import snapshots
from tests.features.plain.replay import replay

N_USERS, N_ITEMS, K, HALF_LIFE_MS = 30, 14, 6, 30 * DAY_MS
TO_COME, WITHHELD = 12, 13  # an item born at 11,600, and one that is withheld from the evaluation
LATE = 26  # from here on users of the evaluation part alone; the last two touch nothing that training knew
BASELINES = BaselinesConfig(ease=BaselineEase(regularisation=7), ials=BaselineAls(factors=3, iterations=4))
CONFIG = RankBaselinesConfig(baselines=BASELINES, k=K, features=FeatureConfig())


@pytest.fixture(scope="module")
def world(tmp_path_factory, snapshot_writer, event_table, request_table):
    """Random events of every part, kind and activity, and requests among them, some at the time of an event."""
    rng, n = np.random.default_rng(5), 420
    time_ms = np.sort(rng.integers(0, 1_200, n)) * 10
    part = (time_ms >= 10_000).astype(int) + (time_ms >= 11_000)
    user = np.where(part < 2, rng.integers(0, LATE, n), rng.integers(0, N_USERS, n))
    user[-1] = N_USERS - 1
    item = rng.integers(np.where(user >= N_USERS - 2, N_ITEMS - 3, 0), np.where(part == 0, N_ITEMS - 3, N_ITEMS))
    events = event_table(user, item, time_ms, part, signal=rng.random(n) < 0.15, active=rng.random(n) < 0.8)
    n_requests = 90
    asked = np.sort(rng.choice(np.arange(1_000, 1_200), n_requests)) * 10
    asking = rng.integers(0, N_USERS, n_requests)
    asking[-6:] = (N_USERS - 2, N_USERS - 1) * 3
    requests = request_table(
        request_id=np.arange(n_requests),
        user_index=asking,
        request_time_ms=asked,
        part=(1 + (asked >= 11_000)).astype(np.int8),
    )
    created = np.zeros(N_ITEMS, np.int64)
    created[TO_COME] = 11_600
    directory = tmp_path_factory.mktemp("linear")
    targets = np.arange(n_requests), rng.integers(0, N_ITEMS, n_requests)
    snapshot_writer(directory, events, requests, targets, created, [[0]] * N_ITEMS)
    items = pq.read_table(directory / "items.parquet")
    mask = np.full(N_ITEMS, 0b111, np.int8)
    mask[WITHHELD] = 0b101
    place = items.column_names.index("eligible")
    pq.write_table(items.set_column(place, "eligible", pa.array(mask)), directory / "items.parquet")
    return directory


@pytest.fixture(scope="module")
def answered(world, tmp_path_factory):
    directory = tmp_path_factory.mktemp("ranked")
    metrics, _ = rank_baselines(CONFIG, {"snapshot": world}, directory)
    return metrics, directory


def touched_by_hand(events: EventTable) -> np.ndarray:
    """Ones where an active user chose an item in the candidate part."""
    matrix = np.zeros((N_USERS, N_ITEMS))
    for row in range(len(events)):
        if events.part[row] == 0 and events.active[row] and events.signal[row] == 0:
            matrix[events.user_index[row], events.item_index[row]] = 1
    return matrix[matrix.any(axis=1)]


def history_by_hand(events: EventTable, user: int, time_ms: int) -> list[int]:
    """What the user chose strictly before, oldest first."""
    rows = (events.user_index == user) & (events.event_time_ms < time_ms) & (events.signal == 0)
    return list(dict.fromkeys(events.item_index[rows].tolist()))


def ease_by_hand(touched: np.ndarray, weights: np.ndarray) -> np.ndarray:
    inverse = np.linalg.inv(touched.T @ touched + BASELINES.ease.regularisation * np.eye(N_ITEMS))
    coefficients = -inverse / np.diag(inverse)
    np.fill_diagonal(coefficients, 0)
    return weights @ coefficients


def als_by_hand(touched: np.ndarray, weights: np.ndarray) -> np.ndarray:
    model = ImplicitAls.fit(sparse.csr_matrix(touched), BASELINES.ials, BASELINES.ials.seed)
    return model.score(sparse.csr_matrix(weights[None]))[0]


def popular_by_hand(events: EventTable, time_ms: int) -> np.ndarray:
    """First touches of each user and item before a moment, halved every thirty days."""
    first: dict[tuple[int, int], int] = {}
    for user, item, signal, moment in zip(
        events.user_index, events.item_index, events.signal, events.event_time_ms, strict=True
    ):
        if signal == 0 and moment < time_ms:
            first.setdefault((int(user), int(item)), int(moment))
    scores = np.zeros(N_ITEMS)
    for (_, item), moment in first.items():
        scores[item] += 2.0 ** ((moment - time_ms) / HALF_LIFE_MS)
    return scores


def check_answers(world, ranked: RankedTable, score_by_hand, decay: float | None = None) -> list[int]:
    """Compare every request's answer with the definition; return the requests that got the popular list."""
    snapshot = Snapshot(world)
    events, requests = snapshot.events(), snapshot.requests()
    touched, popular = touched_by_hand(events), []
    held_out = np.flatnonzero(requests.part == 2)
    assert np.unique(ranked.request_id).tolist() == held_out.tolist()
    for request in held_out:
        time_ms = int(requests.request_time_ms[request])
        history = history_by_hand(events, requests.user_index[request], time_ms)
        weights = np.zeros(N_ITEMS)
        for place, item in enumerate(reversed(history)):
            weights[item] = 1.0 if decay is None else np.exp(-place / decay)
        if touched[:, history].any():
            wanted = score_by_hand(touched, weights)
        else:
            popular.append(int(request))
            wanted = popular_by_hand(events, time_ms)
        allowed = [
            i for i in range(N_ITEMS) if i not in history and i != WITHHELD and (i != TO_COME or time_ms >= 11_600)
        ]
        answer = ranked.take(ranked.request_id == request)
        assert answer.rank.tolist() == list(range(min(K, len(allowed))))
        assert set(answer.item_index.tolist()) <= set(allowed)
        assert len(set(answer.item_index.tolist())) == len(answer)
        np.testing.assert_allclose(answer.score, np.sort(wanted[allowed])[::-1][:K], atol=1e-5)
        np.testing.assert_allclose(answer.score, wanted[answer.item_index], atol=1e-5)
    return popular


@pytest.mark.parametrize(("name", "by_hand"), [("ease", ease_by_hand), ("ials", als_by_hand)])
def test_every_answer_is_that_of_the_definition(world, answered, name, by_hand):
    metrics, directory = answered
    popular = check_answers(world, RankedTable.read(directory / f"{name}.parquet"), by_hand)
    snapshot = Snapshot(world)
    touched = touched_by_hand(snapshot.events())
    held_out = int((snapshot.requests().part == 2).sum())
    assert 0 < len(popular) < held_out / 2
    assert metrics == {
        "requests": held_out,
        "popular_share": len(popular) / held_out,
        "training_users": len(touched),
        "training_touches": touched.sum(),
    }
    assert read_json(directory / "baselines.json") == {"rows": ["ease", "ials"], "left_out": {}}


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10_000), st.integers(0, 40), st.integers(1, 10))
def test_popularity_is_that_of_the_state(seed, n, n_requests):
    """With repeated touches, exposures, and touches at the very time of a request."""
    rng, (half_life, n_items) = np.random.default_rng(seed), (30.0, 6)
    time_ms, asked = (np.sort(rng.integers(0, 50, size)) * DAY_MS for size in (n, n_requests))
    events = snapshots.event_table(
        rng.integers(0, 4, n), rng.integers(0, n_items, n), time_ms, signal=rng.integers(0, 2, n)
    )
    requests = snapshots.request_table(rng.integers(0, 5, n_requests), asked, 2)
    items = ItemTable(
        **{name: np.array([""] * n_items, object) for name in ("item_id", "title")},
        created_at_ms=np.zeros(n_items, np.int64),
        duration_s=np.ones(n_items, np.float32),
        category_offsets=np.zeros(n_items + 1, np.int64),
        category_codes=np.zeros(0, np.int32),
        n_categories=1,
    )
    features = FeatureConfig(half_lives_days=(1.0, 3.0, half_life))
    state = FunnelState.empty(items, features, ("click", "impression"), (snapshots.CLICK,), 5)
    first = np.sort(first_touches(events, touching(("click", "impression"), features.exposure_signals)))
    popularity = Popularity(events.take(first), n_items, half_life * DAY_MS)
    half = n_requests // 2
    found = np.concatenate([popularity.scores(asked[:half]), popularity.scores(asked[half:])])
    offsets, seen = popularity.before.items(requests.user_index, asked)
    for row in replay(events, requests, state):
        np.testing.assert_allclose(found[row], state.popularity(int(asked[row]), -1), rtol=3e-7)
        touched = state.touched(int(requests.user_index[row]))
        assert seen[offsets[row] : offsets[row + 1]].tolist() == touched.tolist()


def test_a_history_may_forget(world, tmp_path):
    baselines = BaselinesConfig(rows=("ease",), ease=BaselineEase(regularisation=7, decay=2))
    _, info = rank_baselines(CONFIG.model_copy(update={"baselines": baselines}), {"snapshot": world}, tmp_path)
    check_answers(world, RankedTable.read(tmp_path / "ease.parquet"), ease_by_hand, decay=2.0)
    assert info == {"left_out": {"ials": "baselines.rows = ['ease']"}, "methods": {"ease": "dense"}}
    assert not (tmp_path / "ials.parquet").exists()


def test_a_history_of_things_unknown_to_training_is_none(world, answered):
    """Items 11 to 13 have no training row: whoever touched nothing else gets the popular list."""
    snapshot = Snapshot(world)
    events, requests = snapshot.events(), snapshot.requests()
    found = [
        request
        for request in np.flatnonzero(requests.part == 2)
        if (history := history_by_hand(events, requests.user_index[request], requests.request_time_ms[request]))
        and min(history) >= N_ITEMS - 3
    ]
    assert found, "the world holds such a request"
    for name in ("ease", "ials"):
        ranked = RankedTable.read(answered[1] / f"{name}.parquet")
        best = ranked.take((ranked.request_id == found[0]) & (ranked.rank == 0))
        assert best.score[0] > 1, "a count of users, not a score of the model"


def test_the_block_size_changes_nothing(world, answered, tmp_path, monkeypatch):
    monkeypatch.setattr(linear_baselines, "_SCORES", 3 * N_ITEMS)
    rank_baselines(CONFIG, {"snapshot": world}, tmp_path)
    for name in ("ease", "ials"):
        first, second = (RankedTable.read(place / f"{name}.parquet") for place in (answered[1], tmp_path))
        np.testing.assert_array_equal(second.request_id, first.request_id)
        np.testing.assert_allclose(second.score, first.score, atol=1e-6)


def test_what_needs_too_much_memory_is_left_out_with_a_reason():
    wide = sparse.csr_matrix((np.ones(2), ([0, 0], [1, 99_999])), shape=(1, 100_000))
    config = BaselinesConfig(ease=BaselineEase(method="dense"), ials=BaselineAls(factors=2, iterations=1))
    fitted, left_out = fit_baselines(config, wide)
    assert list(fitted) == ["ials"]
    assert left_out == {"ease": "100,000 items need 120 GB with dense item-item matrices, baselines.memory_gb = 4"}
    fitted, left_out = fit_baselines(config.changed(ease={"method": "auto"}, memory_gb=1e-3), wide)
    assert fitted == {}
    assert re.fullmatch(
        r"100,000 items need 1\.\d+ GB on the 200 nearest items of each, baselines.memory_gb = 0.001", left_out["ease"]
    )
    assert left_out["ials"] == "100,000 items need 0.0408 GB, baselines.memory_gb = 0.001"


def test_a_large_catalogue_has_the_sparse_ease():
    wide = sparse.csr_matrix((np.ones(3), ([0, 0, 1], [1, 99_999, 1])), shape=(2, 100_000))
    fitted, left_out = fit_baselines(BaselinesConfig(rows=("ease",)), wide)
    assert list(left_out) == ["ials"]
    scores = fitted["ease"].model.score(wide)
    assert fitted["ease"].model.method == "sparse" and scores.shape == (2, 100_000)
    assert np.flatnonzero(scores[1]).tolist() == [99_999]


def test_a_run_without_any_row_still_says_why(world, tmp_path):
    baselines = BASELINES.model_copy(update={"memory_gb": 1e-7})
    metrics, info = rank_baselines(CONFIG.model_copy(update={"baselines": baselines}), {"snapshot": world}, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["baselines.json"]
    assert read_json(tmp_path / "baselines.json") == {"rows": [], "left_out": info["left_out"]}
    assert sorted(info["left_out"]) == ["ease", "ials"]
    assert "requests" not in metrics


@pytest.mark.parametrize(("former", "now"), BaselinesConfig.renamed.items())
def test_a_former_key_is_refused_with_the_new_one(former, now):
    with pytest.raises(ConfigError, match=rf"f\.yaml: {former} = False: this key is now {re.escape(now)}$"):
        parse_config(BaselinesConfig, {former: False}, "f.yaml")
    section, _, key = now.partition(".")
    assert section in BaselinesConfig.model_fields and (not key or hasattr(getattr(BASELINES, section), key))


def test_settings_that_are_not_given_are_those_of_a_baseline():
    config = parse_config(BaselinesConfig, {"rows": ["ials"], "ials": {"confidence": 3}}, "f.yaml")
    assert config.ials == BaselineAls(confidence=3, factors=32, regularisation=0.3, iterations=15, seed=42)


def test_histories_weigh_by_place():
    histories = [np.array([3, 1]), np.array([], np.int64), np.array([0, 2, 3])]
    offsets, items = row_offsets([len(each) for each in histories]), np.concatenate(histories)
    dense = history_matrix(offsets, items, 4, decay=1.0).toarray()
    wanted = [[0, 1, 0, np.exp(-1)], [0, 0, 0, 0], [np.exp(-2), 0, np.exp(-1), 1]]
    np.testing.assert_allclose(dense, wanted)
    np.testing.assert_array_equal(history_matrix(offsets, items, 4).toarray() > 0, dense > 0)


def test_bad_events_are_refused_before_anything_is_fitted(world, tmp_path):
    shutil.copytree(world, tmp_path / "snapshot")
    events = EventTable.read(world / "events.parquet")
    items = events.item_index.copy()
    items[7] = N_ITEMS
    dataclasses.replace(events, item_index=items).write(tmp_path / "snapshot" / "events.parquet")
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match=r"events.parquet: item_index = 14 at position 7 .* allowed are 0 to 13"):
        rank_baselines(CONFIG, {"snapshot": tmp_path / "snapshot"}, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
    events = EventTable.read(world / "events.parquet")
    events.take(events.part > 0).write(tmp_path / "snapshot" / "events.parquet")
    with pytest.raises(EmptyDatasetError, match="can train the candidate model: 0 lie in its part"):
        rank_baselines(CONFIG, {"snapshot": tmp_path / "snapshot"}, tmp_path / "out")
