"""The replay against a loop that goes through a small log event by event with dictionaries."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.retrieval.__main__ import main
from benchmarks.retrieval.registry import REPLAYED, configure
from benchmarks.retrieval.replay.learned_blend import LearnedBlend, WindowShare
from benchmarks.retrieval.replay.log import Log
from benchmarks.retrieval.replay.models import (
    Blend,
    CoVisitation,
    RecencyReplayEase,
    ReplayEase,
    ReplayIals,
    SegmentBlend,
    SegmentShare,
    Trending,
)
from benchmarks.retrieval.replay.protocols import REPLAYS, read_globo, read_movielens_replay
from benchmarks.retrieval.replay.run import METRICS, Pool, Replay, rank_targets, report, walk
from stages.candidate.linear.config import EaseSettings
from stages.candidate.linear.models import Ease
from stages.contracts.errors import DataError

MINUTE = 60_000
DAY_S = 86_400


@pytest.fixture
def log() -> Log:
    """Few users and items, so that items are met again; many events at equal times."""
    rng = np.random.default_rng(3)
    size = 400
    times = np.sort(rng.integers(0, 90, size)) * MINUTE
    users, items = rng.integers(0, 40, size) * 7, rng.geometric(0.12, size)
    return Log.of(users, items, times, {"region": rng.integers(10, 13, size), "device": rng.integers(0, 2, size)})


@pytest.fixture
def replay(log: Log) -> Replay:
    return Replay(log, {"first": slice(250, 331), "second": slice(331, 400)}, train=250, block=20)


class SlowState:
    """What is known before an event, advanced one event at a time; mirrors nothing of the fast code."""

    def __init__(self, lag: int = 2) -> None:
        self.clicks: list[tuple[int, int]] = []
        self.history: dict[int, list[int]] = defaultdict(list)
        self.together: dict[int, list[int]] = defaultdict(list)
        self.lag = lag

    def advance(self, user: int, item: int, time_ms: int) -> None:
        self.clicks.append((item, time_ms))
        for earlier in self.history[user][::-1][: self.lag]:
            if earlier != item:
                self.together[earlier].append(item)
                self.together[item].append(earlier)
        self.history[user].append(item)

    def recent(self, now_ms: int, minutes: float) -> Counter[int]:
        return Counter(item for item, time_ms in self.clicks if time_ms >= now_ms - minutes * MINUTE)

    def shares(self, user: int, model: CoVisitation) -> Counter[int]:
        found: Counter[int] = Counter()
        for place, item in enumerate(self.history[user][::-1][: model.latest]):
            near = self.together[item][-model.recent :]
            for other in near:
                found[other] += model.decay**place / (len(near) + model.smoothing)
        return found


def slow_ranks(replay: Replay, score: object, lag: int = 2) -> list[int]:
    """Rank each judged event's item by ``score(state, state at the block's start, user, time at its start)``."""
    log, state, found = replay.log, SlowState(lag), []
    at_start: Counter[int] = Counter()
    for event, (user, item, time_ms) in enumerate(zip(*map(list, (log.user, log.item, log.time_ms)), strict=True)):
        part = next((part for part in replay.parts.values() if part.start <= event < part.stop), None)
        if part is not None:
            if (event - part.start) % replay.block == 0:
                at_start = score.refresh(state, time_ms)
            scores = Counter(at_start)
            scores.update(score.personal(state, user))
            order = sorted((-value, other) for other, value in scores.items() if value > 0)
            ranking = [other for _, other in order if other not in state.history[user]]
            found.append(ranking.index(item) + 1 if item in ranking else 0)
        state.advance(user, item, time_ms)
    return found


class SlowTrending:
    def __init__(self, minutes: float) -> None:
        self.minutes = minutes

    def refresh(self, state: SlowState, now_ms: int) -> Counter[int]:
        return state.recent(now_ms, self.minutes)

    def personal(self, state: SlowState, user: int) -> Counter[int]:
        return Counter()


class SlowBlend:
    def __init__(self, model: CoVisitation, windows: dict[float, float], together: float) -> None:
        self.model, self.windows, self.together = model, windows, together

    def refresh(self, state: SlowState, now_ms: int) -> Counter[int]:
        found: Counter[int] = Counter()
        for minutes, weight in self.windows.items():
            counts = state.recent(now_ms, minutes)
            for item, count in counts.items():
                found[item] += weight * count / counts.total()
        return found

    def personal(self, state: SlowState, user: int) -> Counter[int]:
        shares = state.shares(user, self.model)
        return Counter({item: self.together * share for item, share in shares.items()})


@pytest.mark.parametrize("block", [1, 20, 500])
@pytest.mark.parametrize("minutes", [3.0, 30.0])
def test_trending_event_by_event(replay: Replay, minutes: float, block: int) -> None:
    replay = Replay(replay.log, replay.parts, replay.train, block)
    found = walk(replay, Trending(minutes=minutes).prepare(replay.log, replay.train))
    assert found.tolist() == slow_ranks(replay, SlowTrending(minutes))
    assert 0 < (found > 0).sum() < len(found)


@pytest.mark.parametrize("block", [1, 20])
@pytest.mark.parametrize(("lag", "recent", "latest"), [(1, 1000, 1), (2, 5, 3), (3, 40, 2)])
def test_co_visitation_event_by_event(replay: Replay, lag: int, recent: int, latest: int, block: int) -> None:
    replay = Replay(replay.log, replay.parts, replay.train, block)
    model = CoVisitation(lag=lag, recent=recent, latest=latest, smoothing=0.37)
    found = walk(replay, model.prepare(replay.log, replay.train))
    assert found.tolist() == slow_ranks(replay, SlowBlend(model, {}, 1.0), lag)
    assert (found > 0).sum() > 20


def test_blend_event_by_event(replay: Replay) -> None:
    model = Blend(lag=2, recent=9, latest=2, smoothing=0.37, ten_minutes=0.7, hour=0.31, day=0.013, together=1.9)
    found = walk(replay, model.prepare(replay.log, replay.train))
    assert found.tolist() == slow_ranks(replay, SlowBlend(model, {10: 0.7, 60: 0.31, 1440: 0.013}, 1.9))


SHARES = (
    SegmentShare(name="region", minutes=20, weight=0.7, smoothing=3),
    SegmentShare(name="device", minutes=60, weight=0.2, smoothing=0),
)


def test_shares_of_a_segment_event_by_event(log: Log) -> None:
    rows = slice(331, 351)
    plain, pool = Blend().prepare(log, 250)(rows), SegmentBlend(segments=SHARES).prepare(log, 250)(rows)
    assert pool.items.tolist() == plain.items.tolist()
    for place, event in enumerate(range(rows.start, rows.stop)):
        for column, item in enumerate(pool.items.tolist()):
            expected = max(float(np.broadcast_to(plain.scores, pool.scores.shape)[place, column]), 0.0)
            for share in SHARES:
                value = log.segments[share.name]
                since = log.time_ms[rows.start] - share.minutes * MINUTE
                window = [e for e in range(rows.start) if log.time_ms[e] >= since]
                mine = [e for e in window if value[e] == value[event]]
                everybody = sum(log.item[e] == item for e in window) / len(window)
                count = sum(log.item[e] == item for e in mine)
                expected += share.weight * (count + share.smoothing * everybody) / (len(mine) + share.smoothing)
            assert pool.scores[place, column] == pytest.approx(expected if expected > 0 else -np.inf)
    assert not np.allclose(pool.scores[0], pool.scores[1:].max(axis=0))
    wrong = SegmentBlend(segments=(SegmentShare(name="os", minutes=5),))
    with pytest.raises(DataError, match=r"segments.name = 'os'.*region, device"):
        wrong.prepare(log, 250)


@pytest.mark.parametrize("block", [1, 20])
@pytest.mark.parametrize("model", [ReplayEase(regularisation=3), RecencyReplayEase(regularisation=3)])
def test_trained_weights_on_live_histories(replay: Replay, model: ReplayEase, block: int) -> None:
    log, train = replay.log, replay.train
    dense = np.zeros((log.users, log.items))
    dense[log.user[:train], log.item[:train]] = 1
    weights = Ease.fit(dense, EaseSettings(regularisation=3)).weights.astype(float)
    found = walk(Replay(log, replay.parts, train, block), model.prepare(log, train)).tolist()
    for event, rank in zip(range(250, 400), found, strict=True):
        first = 250 if event < 331 else 331
        known = set(log.item[: event - (event - first) % block].tolist())
        mine = log.item[:event][log.user[:event] == log.user[event]].tolist()
        target = int(log.item[event])
        if target in mine or target not in known:
            assert rank == 0
        elif mine:
            history = np.zeros(log.items)
            for place, item in enumerate(reversed(mine)):
                history[item] = history[item] or (1 if model.decay is None else np.exp(-place / model.decay))
            scores = history @ weights
            others = known - set(mine) - {target}
            ahead = sum(scores[other] > scores[target] + 1e-6 for other in others)
            level = sum(abs(scores[other] - scores[target]) <= 1e-6 for other in others)
            assert ahead < rank <= ahead + level + 1


def test_without_a_history_the_popular_list_answers() -> None:
    log = Log.of(np.array([0, 0, 1, 1, 2]), np.array([5, 6, 6, 7, 6]), np.arange(5))
    for model in (ReplayEase(), ReplayIals(factors=2)):
        pool = model.prepare(log, 4)(slice(4, 5))
        assert pool.scores.tolist() == [[1, 2, 1]]


@pytest.mark.parametrize(
    "model",
    [
        Trending(),
        CoVisitation(),
        Blend(),
        SegmentBlend(segments=SHARES),
        RecencyReplayEase(),
        ReplayIals(factors=2),
        LearnedBlend(windows=(WindowShare(minutes=9),), segments=SHARES, block=20, epochs=1),
    ],
)
def test_nothing_later_is_used(log: Log, model: object) -> None:
    """Scores of a block stay as they are when everything from its last event on becomes something else."""
    segments = {name: values.copy() for name, values in log.segments.items()}
    other = Log(log.user.copy(), log.item.copy(), log.time_ms.copy(), segments)
    for values in segments.values():
        values[320:] = values.max()
    other.item[320:] = log.item.max()
    other.user[320:] = log.user.max()
    rows = slice(310, 321)
    kept = []
    for found in (log, other):
        pool = model.prepare(found, 300)(rows)
        dense = np.full((11, log.items), -np.inf)
        dense[:, pool.items] = pool.scores
        kept.append(dense[:10])
    np.testing.assert_array_equal(*kept)


def test_ranks_leave_out_what_was_met_and_order_ties() -> None:
    log = Log.of(np.array([0, 1, 0, 0, 1]), np.array([0, 1, 2, 3, 2]), np.arange(5))
    pool = Pool(np.array([0, 1, 2, 3]), np.array([[9.0, 4.0, 4.0, 4.0]]))
    assert rank_targets(log, slice(2, 5), lambda rows: pool).tolist() == [2, 2, 2]
    missing = Pool(np.array([1, 3]), np.array([[1.0, -np.inf]]))
    assert rank_targets(log, slice(2, 4), lambda rows: missing).tolist() == [0, 0]
    nothing = Pool(np.array([], dtype=np.int64), np.zeros((1, 0)))
    assert rank_targets(log, slice(2, 4), lambda rows: nothing).tolist() == [0, 0]
    for items, scores, message in (
        ([1, 0], [[1.0, 2.0]], "ascending"),
        ([0, 1], [[1.0]], "ascending"),
        ([0, 1], [[1.0, np.nan]], "NaN"),
    ):
        with pytest.raises(DataError, match=message):
            rank_targets(log, slice(2, 4), lambda rows, i=items, s=scores: Pool(np.array(i), np.array(s)))


def test_report_counts_first_meetings_only(replay: Replay) -> None:
    log = replay.log
    rank = walk(replay, Trending().prepare(log, replay.train))
    rows = report(replay, rank, samples=50)
    fresh = [
        event
        for event in range(250, 331)
        if log.item[event] not in log.item[:event][log.user[:event] == log.user[event]]
    ]
    assert rows["first"]["events"] == len(fresh) < 81
    mine = rank[np.array(fresh) - 250]
    assert rows["first"]["mrr@20"]["mean"] == pytest.approx(
        np.where((mine > 0) & (mine <= 20), 1 / np.maximum(mine, 1), 0).mean(), abs=1e-5
    )
    assert rows["first"]["hr@10"]["low"] <= rows["first"]["hr@10"]["mean"] <= rows["first"]["hr@10"]["high"]
    assert rows["first"]["events"] + rows["second"]["events"] == rows["all"]["events"]
    assert "new users" not in rows


def test_metrics_of_ranks() -> None:
    rank = np.array([0, 1, 3, 10, 11, 20, 21, 200, 201])
    found = {name: of(rank).tolist() for name, of in METRICS.items()}
    assert found["hr@10"] == [0, 1, 1, 1, 0, 0, 0, 0, 0]
    assert found["ndcg@10"][:3] == [0, 1, 0.5]
    assert found["mrr@20"] == [0, 1, 1 / 3, 1 / 10, 1 / 11, 1 / 20, 0, 0, 0]
    assert found["hr@200"] == [0, 1, 1, 1, 1, 1, 1, 1, 0]


@pytest.fixture
def clicks(tmp_path: Path) -> Path:
    rng = np.random.default_rng(4)
    size, days = 600, 5
    seconds = np.sort(rng.integers(0, days * DAY_S, size)) + 17_440 * DAY_S
    columns = {"user_id": rng.integers(0, 40, size), "article_id": rng.integers(0, 30, size)}
    columns["region"] = rng.integers(0, 3, size)
    times = pa.array(seconds * 1_000_000, pa.timestamp("us"))
    pq.write_table(pa.table({**columns, "clicked_at": times}), tmp_path / "clicks.parquet")
    return tmp_path


def test_globo_days(clicks: Path, tmp_path: Path) -> None:
    test, validation = read_globo(clicks, False), read_globo(clicks, True)
    assert list(test.parts) == ["2017-10-04", "2017-10-05"]
    assert list(validation.parts) == ["2017-10-02", "2017-10-03"]
    assert len(validation.log) == test.train == test.rows.start
    assert list(test.log.segments) == ["region"]
    assert len(validation.log.segments["region"]) == len(validation.log)
    for replay in (test, validation):
        for name, rows in replay.parts.items():
            days = np.unique(replay.log.time_ms[rows].astype("datetime64[ms]").astype("datetime64[D]"))
            assert [str(day) for day in days] == [name]
    with pytest.raises(DataError, match="0 Parquet files"):
        read_globo(tmp_path / "none", False)


def test_movielens_tenths(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    rows = [f"{u}\t{i}\t4\t{rng.integers(0, 50)}" for u, i in rng.permutation(np.argwhere(np.ones((10, 20))))]
    (tmp_path / "u.data").write_text("\n".join(rows))
    test, validation = read_movielens_replay(tmp_path, False), read_movielens_replay(tmp_path, True)
    assert (test.train, test.rows, test.block) == (160, slice(160, 200), 1)
    assert (validation.train, validation.rows, len(validation.log)) == (128, slice(128, 160), 160)
    assert len(test.parts) == 10
    raw = [line.split() for line in rows]
    order = sorted(range(200), key=lambda row: (int(raw[row][3]), row))
    assert [int(raw[row][3]) * 1000 for row in order] == test.log.time_ms.tolist()


@pytest.mark.parametrize("protocol", REPLAYS)
def test_every_protocols_settings_are_those_of_its_models(protocol: str) -> None:
    settings = REPLAYS[protocol].settings
    names = [*REPLAYS[protocol].models, *settings]
    assert list(configure(REPLAYED, names, settings, [])) == list(dict.fromkeys(names))


def test_the_command_replays(clicks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--protocol", "globo", "--data", str(clicks), "--samples", "5"]
    assert main([*command, "--models", "last_hour,blend", "--set", "blend.together=2"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(result["models"]["blend"]["rows"])[:2] == ["2017-10-04", "2017-10-05"]
    assert result["models"]["blend"]["settings"]["together"] == 2
    assert main([*command, "--models", "segment_blend"]) == 2  # its settings name a column that is not there
    assert "'referrer_type'" in capsys.readouterr().err
    assert main([*command, "--seeds", "1"]) == 2
    assert main([*command[:-1], "0"]) == 2
    assert "--samples 0: allowed" in capsys.readouterr().err
