"""The step against each request on its own, on small worlds made by hand with rankers that can be followed by eye."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.contracts import disk
from stages.contracts.errors import DataError, EmptyDatasetError, OutOfSpaceError, ReleaseError
from stages.contracts.ranking import SOURCE_POPULAR, SOURCE_TOWER, RankingInputs
from stages.contracts.ranking_stages import RANKING_STAGES
from stages.contracts.results import StageResult
from stages.contracts.snapshot import Snapshot
from stages.contracts.sources import SOURCE_SCORES_FILE, SourceScores
from stages.contracts.steps import run_step
from stages.contracts.tables import DAY_MS, PART_EVALUATION, PART_RANKER, CandidateTable, RankedTable
from stages.features.config import FeatureConfig
from stages.features.ranking import ranking_features
from stages.features.state import FunnelState
from stages.held_out import step as step_module
from stages.held_out.config import RankHeldOutConfig
from stages.held_out.step import needed_bytes, rank_held_out
from tests.builders.snapshots import catalogue, event_table, request_table, write_snapshot
from tests.features.plain.replay import replay
from tests.plain_ranking import rank_rows

T0 = 10_000 * DAY_MS
N_ITEMS, N_USERS, DIM, LIGHT_K = 12, 4, 3, 3
CONFIG = RankHeldOutConfig(features=FeatureConfig(history_length=3), light_k=LIGHT_K, objective={"click": 2.0})
SOURCES = ("tower", "covisitation")


class _Scorer:
    """Reads ``model.txt``: what a score starts from."""

    def __init__(self, start: float, weight: float) -> None:
        self.start, self.weight = start, weight

    @classmethod
    def load(cls, directory: Path, feature_schema_hash: str, objective: Mapping[str, float]) -> _Scorer:
        try:
            return cls(float((directory / "model.txt").read_text()), objective["click"])
        except FileNotFoundError:
            raise ReleaseError(f"{directory / 'model.txt'}: missing") from None


class FirstScorer(_Scorer):
    """Coarse, so that there are ties."""

    def score_rows(self, inputs: RankingInputs, rows: np.ndarray) -> np.ndarray:
        return first_scores(self.start, inputs.features[rows])


class SecondScorer(_Scorer):
    """Reads what the first stage said, and the vectors."""

    def score_rows(self, inputs: RankingInputs, rows: np.ndarray) -> np.ndarray:
        liked = (inputs.query(rows) * inputs.vectors(rows)).sum(axis=-1)
        return self.weight * liked + inputs.scores["light"][rows] / (1 + inputs.ranks["light"][rows])


def first_scores(start: float, features: np.ndarray) -> np.ndarray:
    return np.round(start + features.sum(axis=1) / 4).astype(np.float32)


@pytest.fixture(autouse=True)
def stages(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, scorer in (("light", "FirstScorer"), ("heavy", "SecondScorer")):
        monkeypatch.setitem(RANKING_STAGES, name, replace(RANKING_STAGES[name], module=__name__, scorer=scorer))


@dataclass
class World:
    """Requests of the ranker part and the evaluation part, some answered from the popular list."""

    inputs: dict[str, Path]
    rows: CandidateTable
    sources: SourceScores | None
    queries: np.ndarray
    vectors: np.ndarray


def write_world(
    root: Path, seed: int, popular: list[bool], held: list[bool], with_sources: bool = False, group: int = 7
) -> World:
    """Write the directories of the steps before; a request's candidates are 0 to 7 items."""
    draw, n = np.random.default_rng(seed), len(popular)
    times = np.sort(draw.integers(0, 50, 40))
    events = event_table(draw.integers(0, N_USERS, 40), draw.integers(0, N_ITEMS, 40), T0 + times)
    request_times = T0 + np.sort(draw.integers(0, 60, n))
    requests = request_table(draw.integers(0, N_USERS, n), request_times, np.where(held, PART_EVALUATION, PART_RANKER))
    snapshot = write_snapshot(
        root / "snapshot",
        (T0, T0 + 10, T0 + 20, T0 + 60),
        categories="ab",
        events=events,
        requests=requests,
        items=catalogue(N_ITEMS, categories=[[item % 2] for item in range(N_ITEMS)]),
        users=[f"u{user}" for user in range(N_USERS)],
    )
    lengths = draw.integers(0, 8, n)
    request_id = np.repeat(np.arange(n), lengths)
    rank = np.concatenate([np.zeros(0, np.int64), *(np.arange(length) for length in lengths)]).astype(np.int32)
    rows = CandidateTable(
        request_id=request_id,
        item_index=np.concatenate([np.zeros(0, np.int64), *(draw.permutation(N_ITEMS)[:length] for length in lengths)]),
        score=(1.0 / (1 + rank)).astype(np.float32),
        rank=rank,
        source=np.where(np.array(popular)[request_id], SOURCE_POPULAR, SOURCE_TOWER).astype(np.int8),
    )
    inputs = {name: root / name for name in ("snapshot", "candidate", "retrieve", "light", "heavy")}
    for name in ("candidate", "retrieve", "light", "heavy"):
        inputs[name].mkdir()
    sources = None
    write_groups(rows, inputs["retrieve"] / "candidates.parquet", group)
    if with_sources:
        ranks = np.where(draw.random((len(rows), 2)) < 0.3, -1, rank[:, None]).astype(np.int32)
        scores = np.where(ranks < 0, np.nan, draw.random(ranks.shape)).astype(np.float32)
        sources = SourceScores(SOURCES, scores, ranks)
        with pq.ParquetWriter(inputs["retrieve"] / SOURCE_SCORES_FILE, sources.table().schema) as file:
            for part in groups(rows, group):
                file.write_table(sources.take(part).table())
    queries = draw.normal(size=(n, DIM)).astype(np.float32)
    vectors = draw.normal(size=(N_ITEMS, DIM)).astype(np.float32)
    np.save(inputs["retrieve"] / "queries.npy", queries)
    np.save(inputs["candidate"] / "item_vectors.npy", vectors)
    for name in ("light", "heavy"):
        (inputs[name] / "model.txt").write_text("1.5")
    assert snapshot == inputs["snapshot"]
    return World(inputs, rows, sources, queries, vectors)


def groups(rows: CandidateTable, size: int) -> Iterator[np.ndarray]:
    """Yield rows of whole requests, ``size`` requests at a time."""
    for first in range(0, int(rows.request_id.max(initial=0)) + 1, size):
        yield np.flatnonzero((rows.request_id >= first) & (rows.request_id < first + size))


def write_groups(rows: CandidateTable, path: Path, size: int) -> None:
    with CandidateTable.writer(path) as write:
        for part in groups(rows, size):
            write(rows.take(part))


def expected(world: World) -> dict[str, RankedTable]:
    """Rank request by request, and let ``rank_rows`` put them in order."""
    snapshot = Snapshot(world.inputs["snapshot"])
    requests, meta = snapshot.requests(), snapshot.meta
    state = FunnelState.empty(snapshot.items(), CONFIG.features, meta.signals, meta.tasks, N_USERS)
    rows, scores = world.rows, {name: np.full(len(world.rows), -np.inf, np.float32) for name in ("light", "heavy")}
    for request in replay(snapshot.events(), requests, state):
        mine = np.flatnonzero(rows.request_id == request)
        if not len(mine):
            continue
        features = ranking_features(
            state,
            int(requests.user_index[request]),
            int(requests.request_time_ms[request]),
            rows.item_index[mine],
            rows.score[mine],
            rows.rank[mine],
            world.vectors,
            source_scores=None if world.sources is None else world.sources.take(mine),
        )
        scores["light"][mine] = light = first_scores(1.5, features)
        passed = np.argsort(-light, kind="stable")[:LIGHT_K]
        liked = (world.queries[request] * world.vectors[rows.item_index[mine[passed]]]).sum(axis=-1)
        scores["heavy"][mine[passed]] = 2.0 * liked + light[passed] / (1 + np.arange(len(passed), dtype=np.int32))
    held = requests.part[rows.request_id] == PART_EVALUATION
    mine = rows.take(held)
    return {
        "light": rank_rows(mine, scores["light"][held]),
        "heavy": rank_rows(mine, scores["heavy"][held], keep=LIGHT_K),
    }


def check(world: World, out: Path) -> None:
    for name, table in expected(world).items():
        found = RankedTable.read(out / f"{name}.parquet")
        for column in ("request_id", "item_index", "rank"):
            np.testing.assert_array_equal(getattr(found, column), getattr(table, column), err_msg=f"{name} {column}")
        np.testing.assert_allclose(found.score, table.score, rtol=1e-6, err_msg=name)


FLAGS = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=20)


@settings(max_examples=25)
@given(FLAGS, st.integers(0, 99), st.integers(1, 30), st.integers(1, 9), st.integers(1, 3), st.booleans())
def test_rankings_are_those_of_each_request_alone(
    tmp_path_factory: pytest.TempPathFactory,
    flags: list[tuple[bool, bool]],
    seed: int,
    rows: int,
    group: int,
    threads: int,
    with_sources: bool,
) -> None:
    root = tmp_path_factory.mktemp("held")
    world = write_world(root, seed, [popular for popular, _ in flags], [held for _, held in flags], with_sources, group)
    wanted = {number for number, (_, held) in enumerate(flags) if held} & set(world.rows.request_id.tolist())
    config = CONFIG.model_copy(update={"threads": threads, "sources": SOURCES if with_sources else ()})
    out = root / "out"
    out.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step_module, "ROWS", rows)
        if not wanted:
            with pytest.raises(EmptyDatasetError, match="evaluation"):
                rank_held_out(config, world.inputs, out)
            return
        metrics, info = rank_held_out(config, world.inputs, out)
    check(world, out)
    for name in ("light", "heavy"):
        requests = [set(table.request_id.tolist()) for table in RankedTable.groups(out / f"{name}.parquet")]
        assert sum(map(len, requests)) == len(set().union(*requests)), "a request lies in one row group"
        lengths = [len(table) for table in RankedTable.groups(out / f"{name}.parquet")]
        assert max(lengths) <= 2 * max(rows, 7)
    held = RankedTable.read(out / "light.parquet")
    assert metrics["requests"] == len(wanted) == len(set(held.request_id.tolist()))
    assert metrics["rows_light"] == len(held)
    assert info["stages"] == ["light", "heavy"]


def test_no_block_is_larger_than_it_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = write_world(tmp_path, 3, [False] * 30, [True] * 30, group=30)
    monkeypatch.setattr(step_module, "ROWS", 10)
    sizes = []
    whole = step_module.feature_blocks

    def seen(blocks: Any, *others: Any) -> Any:
        return whole((sizes.append(len(block.rows)) or block for block in blocks), *others)

    monkeypatch.setattr(step_module, "feature_blocks", seen)
    (tmp_path / "out").mkdir()
    rank_held_out(CONFIG, world.inputs, tmp_path / "out")
    assert max(sizes) <= 10 and len(sizes) > 5
    assert sum(sizes) == len(world.rows)
    assert pq.read_metadata(tmp_path / "out" / "light.parquet").num_row_groups == len(sizes)
    check(world, tmp_path / "out")


@pytest.fixture
def world(tmp_path: Path) -> World:
    (tmp_path / "out").mkdir()
    return write_world(tmp_path, 5, [False, True, False, False, False], [False, True, True, True, True])


def test_the_light_ranker_may_be_alone(world: World, tmp_path: Path) -> None:
    del world.inputs["heavy"]
    _, info = rank_held_out(CONFIG, world.inputs, tmp_path / "out")
    assert info["stages"] == ["light"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["light.parquet"]


def _without(name: str) -> Any:
    return lambda world: world.inputs.pop(name)


def _model_lost(world: World) -> None:
    (world.inputs["heavy"] / "model.txt").unlink()


def _none_trained(world: World) -> None:
    del world.inputs["heavy"], world.inputs["light"]


def _no_candidates(world: World) -> None:
    (world.inputs["retrieve"] / "candidates.parquet").unlink()


def _unknown_item(world: World) -> None:
    rows = replace(world.rows, item_index=world.rows.item_index + N_ITEMS)
    rows.write(world.inputs["retrieve"] / "candidates.parquet")


def _unknown_request(world: World) -> None:
    rows = replace(world.rows, request_id=world.rows.request_id + 5)
    rows.write(world.inputs["retrieve"] / "candidates.parquet")


def _few_queries(world: World) -> None:
    np.save(world.inputs["retrieve"] / "queries.npy", world.queries[:2])


def _few_vectors(world: World) -> None:
    np.save(world.inputs["candidate"] / "item_vectors.npy", world.vectors[:2])


def _no_queries(world: World) -> None:
    (world.inputs["retrieve"] / "queries.npy").unlink()


def _no_held_out(world: World) -> None:
    write_snapshot(world.inputs["snapshot"], (0, 1, 2, 3), requests=request_table([0], [0], [PART_RANKER]))


@pytest.mark.parametrize(
    ("damage", "kind", "words"),
    [
        (_model_lost, ReleaseError, r"heavy/model\.txt: missing"),
        (_without("light"), DataError, "the heavy ranker reads the scores of light, which was not trained"),
        (_none_trained, DataError, "no ranking stage was trained, at least one of light, heavy is needed"),
        (_no_candidates, DataError, r"candidates\.parquet is not a readable Parquet file"),
        (_unknown_item, DataError, r"candidates\.parquet: item_index spans \d+ to \d+, allowed are 0 to 11"),
        (_unknown_request, DataError, r"candidates\.parquet: request_id spans \d to \d, allowed are 0 to 4"),
        (_few_queries, DataError, r"queries\.npy has shape \[2, 3\] .*needed are \[5, D\] and \[12, D\]"),
        (_few_vectors, DataError, r"item_vectors\.npy has shape \[2, 3\], the snapshot has 12 items"),
        (_no_queries, DataError, r"queries\.npy is not a readable array"),
        (_no_held_out, EmptyDatasetError, "none of 1 requests is of the evaluation part, at least one is needed"),
    ],
)
def test_bad_input_is_named(world: World, tmp_path: Path, damage: Any, kind: type[Exception], words: str) -> None:
    damage(world)
    with pytest.raises(kind, match=words):
        rank_held_out(CONFIG, world.inputs, tmp_path / "out")


def _run(world: World, root: Path) -> StageResult:
    results = {
        name: StageResult(step=name, path=str(path), fingerprint=name * 8) for name, path in world.inputs.items()
    }
    return run_step("rank_held_out", "1", rank_held_out, CONFIG, results, root)


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "free_bytes", lambda directory: 10)
    with pytest.raises(
        OutOfSpaceError, match=r"rank_held_out: it will write about .* 10 are free .* funnel.candidate_k"
    ):
        _run(world, tmp_path / "runs")
    assert list((tmp_path / "runs").rglob("*.parquet")) == []


def test_a_disk_that_fills_in_the_middle_leaves_nothing_and_the_next_run_goes_on(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_module, "ROWS", 3)
    whole, appended = RankedTable.writer, []

    @contextmanager
    def failing(path: Path) -> Iterator[Any]:
        with whole(path) as write:

            def append(table: RankedTable) -> None:
                write(table)
                appended.append(path.name)
                if len(appended) == 3:
                    raise OSError(errno.ENOSPC, "No space left on device", str(path))

            yield append

    with monkeypatch.context() as patch:
        patch.setattr(RankedTable, "writer", failing)
        with pytest.raises(OutOfSpaceError, match=r"step rank_held_out: a disk is full: .*lower funnel.candidate_k"):
            _run(world, tmp_path / "runs")
    assert [path for path in (tmp_path / "runs").rglob("*") if path.is_file()] == []
    result = _run(world, tmp_path / "runs")
    check(world, result.directory)
    assert result.disk_bytes == sum(
        path.stat().st_size for path in result.directory.iterdir() if path.name != "result.json"
    )


def test_the_estimate_counts_what_each_stage_gets() -> None:
    loaded = [step_module.LoadedStage(RANKING_STAGES[name], FirstScorer(0.0, 0.0)) for name in ("light", "heavy")]
    wanted = np.array([True, True, False, False])
    a_row = step_module.ROW_BYTES
    assert needed_bytes(CONFIG, 4 * 100, wanted, loaded) == 2 * (100 + LIGHT_K) * a_row
    assert needed_bytes(CONFIG, 4 * 2, wanted, loaded) == 2 * (2 + 2) * a_row
    assert needed_bytes(CONFIG, 400, wanted, loaded[:1]) == 200 * a_row
