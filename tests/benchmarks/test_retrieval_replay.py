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
from benchmarks.retrieval.product_steps import workplace
from benchmarks.retrieval.registry import REPLAYED, configure
from benchmarks.retrieval.replay.log import Log
from benchmarks.retrieval.replay.models import (
    ANSWERS,
    Covisitation,
    LastWeek,
    Popularity,
    RecencyReplayEase,
    ReplayEase,
    ReplayIals,
    ReplayItemKnn,
    Trending,
)
from benchmarks.retrieval.replay.protocols import REPLAYS, read_globo, read_movielens_replay
from benchmarks.retrieval.replay.run import METRICS, Replay, report
from benchmarks.retrieval.replay.stage import ReplayLearnedMixture, ReplayQuotas
from stages.candidate.linear.config import EaseSettings
from stages.candidate.linear.models import Ease
from stages.contracts.config import parse_config
from stages.contracts.errors import ConfigError, DataError

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
    return Replay(log, {"first": slice(250, 331), "second": slice(331, 400)}, train=250)


class SlowState:
    """What is known before an event, advanced one event at a time; only first touches count."""

    def __init__(self) -> None:
        self.touches: list[tuple[int, int, int]] = []
        self.history: dict[int, list[int]] = defaultdict(list)
        self.links: dict[int, Counter[int]] = defaultdict(Counter)
        self.count: Counter[int] = Counter()

    def advance(self, user: int, item: int, time_ms: int, region: int) -> None:
        history = self.history[user]
        if item in history:
            return
        for distance, earlier in enumerate(history[::-1][:10], start=1):
            self.links[earlier][item] += 1 / distance
            self.links[item][earlier] += 1 / distance
        history.append(item)
        self.count[item] += 1
        self.touches.append((item, time_ms, region))


def slow_ranks(replay: Replay, score: object) -> list[int | None]:
    """Rank each judged event's item by ``score(state, user, time, region)``; None for a user without history."""
    log, state, found = replay.log, SlowState(), []
    columns = log.user, log.item, replay.time_ms, log.segments["region"]
    judged = set(replay.judged.tolist())
    for event, (user, item, time_ms, region) in enumerate(zip(*(each.tolist() for each in columns), strict=True)):
        if event in judged and not state.history[user]:
            found.append(None)
        elif event in judged:
            scores = score(state, user, time_ms, region)
            order = sorted((-np.float32(value), other) for other, value in scores.items() if value > 0)
            ranking = [other for _, other in order if other not in state.history[user]][:ANSWERS]
            found.append(ranking.index(item) + 1 if item in ranking else 0)
        state.advance(user, item, time_ms, region)
    return found


def check(replay: Replay, found: np.ndarray, score: object) -> None:
    expected = slow_ranks(replay, score)
    assert len(found) == len(expected) == len(replay.judged)
    known = [place for place, rank in enumerate(expected) if rank is not None]
    assert [int(found[place]) for place in known] == [expected[place] for place in known]
    ranks = found[known]
    assert len(known) > 50 and (ranks > 0).sum() > 0 and len(set(ranks.tolist())) > 5


@pytest.mark.parametrize("minutes", [3.0, 30.0])
def test_trending_event_by_event(replay: Replay, minutes: float) -> None:
    """Each event from the state just before it, though many events have the same time."""

    def score(state: SlowState, user: int, time_ms: int, region: int) -> Counter[int]:
        return Counter(item for item, at_ms, _ in state.touches if at_ms >= time_ms - minutes * MINUTE)

    model = Trending(sources={"trending": {"windows_minutes": [minutes], "weights": [1.0]}})
    check(replay, model.ranks(replay), score)


def test_trends_of_a_segment_event_by_event(replay: Replay) -> None:
    def score(state: SlowState, user: int, time_ms: int, region: int) -> dict[int, float]:
        window = [touch for touch in state.touches if touch[1] >= time_ms - 20 * MINUTE]
        mine = [touch for touch in window if touch[2] == region]
        everybody, own = Counter(item for item, *_ in window), Counter(item for item, *_ in mine)
        return {item: (own[item] + 3 * n / len(window)) / (len(mine) + 3) for item, n in everybody.items()}

    trends = {"windows_minutes": [20], "weights": [1.0], "segment": "region", "segment_smoothing": 3}
    check(replay, Trending(sources={"trending": trends}).ranks(replay), score)
    wrong = Trending(sources={"trending": {**trends, "segment": "os"}})
    with pytest.raises(DataError, match=r"sources.trending.segment = 'os'.*region, device"):
        wrong.check(replay)


def test_covisitation_event_by_event(replay: Replay) -> None:
    def score(state: SlowState, user: int, time_ms: int, region: int) -> dict[int, float]:
        found: Counter[int] = Counter()
        for place, item in enumerate(state.history[user][::-1][:20]):
            for other, link in state.links[item].items():
                found[other] += link * np.exp(-place / 5) / np.sqrt(state.count[item])
        return {item: value / np.sqrt(state.count[item] + 10) for item, value in found.items()}

    check(replay, Covisitation().ranks(replay), score)


@pytest.mark.parametrize(("model", "decay"), [(ReplayEase, 1e9), (RecencyReplayEase, 5.0)])
def test_trained_weights_on_live_histories(replay: Replay, model: type, decay: float) -> None:
    log, train = replay.log, replay.train
    dense = np.zeros((log.users, log.items))
    dense[log.user[:train], log.item[:train]] = 1
    weights = np.maximum(Ease.fit(dense, EaseSettings(regularisation=3)).weights.astype(float), 0)

    def score(state: SlowState, user: int, time_ms: int, region: int) -> dict[int, float]:
        history = state.history[user][::-1]
        total = sum(np.exp(-place / decay) * weights[item] for place, item in enumerate(history))
        return dict(enumerate(np.asarray(total).tolist()))

    found = model(sources={"ease": {"regularisation": 3}}).ranks(replay)
    expected = slow_ranks(replay, score)
    known = [place for place, rank in enumerate(expected) if rank is not None]
    off = [abs(int(found[place]) - expected[place]) for place in known]
    assert max(off) <= 1 and np.mean(np.array(off) > 0) < 0.05, "but for the order of equal scores"


def test_without_a_history_the_popular_list_answers() -> None:
    """What the generator itself has comes first; nobody's first item is known before it is met."""
    log = Log.of(np.array([0, 0, 1, 1, 2, 3]), np.array([5, 6, 6, 7, 6, 8]), np.arange(6) * MINUTE)
    replay = Replay(log, {"all": slice(4, 6)}, train=4)
    for model in (ReplayEase(), ReplayIals(sources={"ials": {"factors": 2}}), Covisitation(), Popularity()):
        assert model.ranks(replay).tolist() == [1, 0]


@pytest.mark.parametrize(
    "model", [Popularity(), Trending(), Covisitation(), RecencyReplayEase(), ReplayItemKnn(), ReplayIals()]
)
def test_nothing_later_is_used(log: Log, model: object) -> None:
    """Ranks stay as they are when everything from some event on becomes something else."""
    segments = {name: values.copy() for name, values in log.segments.items()}
    other = Log(log.user.copy(), log.item.copy(), log.time_ms.copy(), segments)
    for values in segments.values():
        values[320:] = values.max()
    other.item[320:], other.user[320:] = log.item.max(), log.user.max()
    kept = []
    for found in (log, other):
        replay = Replay(found, {"all": slice(300, 400)}, train=300)
        kept.append(model.ranks(replay)[replay.judged < 320].tolist())
    assert kept[0] == kept[1] and any(kept[0])


def test_items_that_were_met_are_no_answers_and_events_on_them_no_questions(replay: Replay) -> None:
    log, seen, first = replay.log, defaultdict(set), []
    for event, (user, item) in enumerate(zip(log.user.tolist(), log.item.tolist(), strict=True)):
        if event >= 250 and item not in seen[user]:
            first.append(event)
        seen[user].add(item)
    assert replay.judged.tolist() == first and len(first) < 150
    assert (np.diff(replay.time_ms) > 0).all() and (replay.time_ms - log.time_ms).max() < MINUTE
    rows = replay.rows_with(learning=50, asked=20, seed=1)
    assert (rows.requests.part[:20] == 1).all() and (rows.requests.part[20:] == 2).all()
    assert rows.requests.request_time_ms[20:].tolist() == replay.time_ms[replay.judged].tolist()
    assert np.bincount(rows.events.part).tolist() == [200, 50, 150]
    assert (log.first_touch & (log.place > 0))[
        np.searchsorted(replay.time_ms, rows.requests.request_time_ms[:20])
    ].all()
    born = rows.created_at_ms[log.item]
    assert (born[log.first_touch] <= replay.time_ms[log.first_touch] + 1).all()
    _, firsts = np.unique(log.item, return_index=True)
    assert (rows.created_at_ms == replay.time_ms[firsts] + 1).all()


def test_report_counts_first_meetings_only(replay: Replay) -> None:
    rank = LastWeek().ranks(replay)
    rows = report(replay, rank, samples=50)
    first = replay.judged < 331
    assert rows["first"]["events"] == first.sum() < 81
    mine = rank[first]
    assert rows["first"]["mrr@20"]["mean"] == pytest.approx(
        np.where((mine > 0) & (mine <= 20), 1 / np.maximum(mine, 1), 0).mean(), abs=1e-5
    )
    assert rows["first"]["hr@10"]["low"] <= rows["first"]["hr@10"]["mean"] <= rows["first"]["hr@10"]["high"]
    assert rows["first"]["events"] + rows["second"]["events"] == rows["all"]["events"]
    assert "new users" not in rows


TRENDS = {"windows_minutes": [10_000], "weights": [1.0], "segment": "region", "segment_smoothing": 1.0}
TOWER = {
    "candidate": {
        "model": {"dimension": 8, "category_dimension": 4, "hidden": ()},
        "training": {"epochs": 1},
        "distributed": {"device": "cpu"},
    }
}


def two_habits() -> Log:
    """Half of the events are on any of the fifty items of the event's region, half on what follows the user's last."""
    rng = np.random.default_rng(5)
    ring = rng.permutation(400)
    follows = np.empty(400, dtype=np.int64)
    follows[ring] = np.roll(ring, -1)
    users, regions, last, items = rng.integers(0, 400, 4000), rng.integers(0, 8, 4000), {}, []
    for user, region in zip(users.tolist(), regions.tolist(), strict=True):
        goes_on = user in last and rng.random() < 0.5
        last[user] = int(follows[last[user]]) if goes_on else region * 50 + int(rng.integers(50))
        items.append(last[user])
    return Log.of(users, np.array(items), np.arange(4000) * MINUTE // 4, {"region": regions})


def test_a_mixture_is_learned_from_the_latest_training_events(here: None, tmp_path: Path) -> None:
    """Trends of the region know one half of what is next, co-visitation the other, and the mixture both."""
    replay = Replay(two_habits(), {"rest": slice(3200, 4000)}, train=3200)
    known = replay.log.place[replay.judged] > 0
    names = ("tower", "trending", "covisitation")
    sources = {"names": names, "trending": TRENDS, "quotas": "learned", "mixture": {"epochs": 6}}
    models = [model(two_tower=TOWER, sources=sources) for model in (ReplayLearnedMixture, ReplayQuotas)]
    models += [Trending(sources={"trending": TRENDS}), Covisitation()]
    found = {}
    for model in models:
        model.check(replay)
        with workplace(tmp_path):
            ranks = model.ranks(replay)[known]
        found[type(model).__name__] = {name: METRICS[name](ranks).mean() for name in ("hr@10", "hr@200")}
    assert len(list((tmp_path / "train_candidate").glob("[0-9a-f]*"))) == 1, "one tower for both"
    learned, quotas, trends, linked = found.values()
    assert min(learned["hr@200"], quotas["hr@200"]) > 0.95 > 0.8 > max(trends["hr@200"], linked["hr@200"])
    assert learned["hr@10"] > linked["hr@10"] > 0.45 > quotas["hr@10"] > trends["hr@10"]


def test_a_log_without_second_items_has_nothing_to_learn_from() -> None:
    strangers = Log.of(np.arange(60), np.arange(60) % 7, np.arange(60) * MINUTE)
    with pytest.raises(DataError, match=r"nobody meets a second item in the latest 0\.2 of the training events"):
        ReplayQuotas(two_tower=TOWER).check(Replay(strangers, {"rest": slice(50, 60)}, train=50))


def test_figures_read_no_more_than_is_answered() -> None:
    with pytest.raises(ConfigError, match="candidate_k = 100: Input should be greater than or equal to 200"):
        parse_config(REPLAYED["two_tower"], {"candidate_k": 100}, "--set two_tower")


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
    assert (test.train, test.rows) == (160, slice(160, 200))
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
    change = "covisitation.sources.history_length=2"
    assert main([*command, "--models", "last_hour,covisitation,trending", "--set", change]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(result["models"]["trending"]["rows"])[:2] == ["2017-10-04", "2017-10-05"]
    assert result["models"]["covisitation"]["settings"]["sources"]["history_length"] == 2
    assert main([*command, "--models", "trending", "--set", "trending.sources.trending.segment=os"]) == 2
    assert "sources.trending.segment = 'os': the log has no such column" in capsys.readouterr().err
    assert main([*command, "--seeds", "1"]) == 2
    assert main([*command[:-1], "0"]) == 2
    assert "--samples 0: allowed" in capsys.readouterr().err
