"""The step ``train_sources`` and a blended ``retrieve`` on the planted world, and quotas that are learned."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.candidate.config import IndexConfig, RetrieveConfig
from stages.candidate.generators.blend import Blend, Blended
from stages.candidate.generators.config import LearningConfig, NewcomersConfig, SourcesConfig, TrainSourcesConfig
from stages.candidate.generators.files import SourcesSummary, read_summary
from stages.candidate.generators.generator import CandidateGenerator, CandidateRequest
from stages.candidate.generators.newcomers import popular_half_life
from stages.candidate.generators.quotas import ListedItems, learn_quotas
from stages.candidate.index.step import build_index
from stages.candidate.retrieval.fit_generators import train_sources
from stages.candidate.retrieval.retriever import empty_state
from stages.candidate.retrieval.step import retrieve
from stages.candidate.scorer import CandidateScorer
from stages.contracts.candidate_blocks import candidate_blocks
from stages.contracts.errors import ConfigError, ReleaseError
from stages.contracts.files import sha256_file, write_json
from stages.contracts.snapshot import Snapshot
from stages.contracts.sources import SOURCE_SCORES_FILE, SourceScores
from stages.contracts.tables import CandidateTable, ScoredItems
from stages.features.config import FeatureConfig, TrendingConfig
from stages.features.history import Moment, tower_inputs
from tests.features.plain.replay import replay

FEATURES = FeatureConfig(history_length=8, history_decay=4.0)
N_ITEMS, BLOCK, K = 60, 15, 8
WINDOWS = TrendingConfig(windows_minutes=(0.01, 0.05), weights=(1.0, 0.5))  # the world lasts twelve seconds
ALL = ("tower", "covisitation", "trending", "ease", "ials", "content", "directed_ridge", "item_knn")


@pytest.fixture(scope="module")
def world(planted, trained, tmp_path_factory) -> dict[str, Path]:
    """The planted world, whose categories say nothing, with a tower that is wrong about every other item."""
    root = tmp_path_factory.mktemp("half")
    snapshot, candidate, index = (root / name for name in ("snapshot", "candidate", "index"))
    shutil.copytree(planted, snapshot)
    items = pq.read_table(snapshot / "items.parquet")
    shuffled = np.random.default_rng(5).permutation(np.arange(N_ITEMS) // BLOCK)
    column = pa.array([[int(code)] for code in shuffled], pa.list_(pa.int32()))
    # Titles are numbers that no two items share.
    place = items.column_names.index("categories")
    pq.write_table(items.set_column(place, "categories", column), snapshot / "items.parquet")
    shutil.copytree(trained, candidate)
    vectors = np.load(candidate / "item_vectors.npy")
    odd = np.arange(1, N_ITEMS, 2)
    vectors[odd] = vectors[(odd + BLOCK + 1) % N_ITEMS]
    np.save(candidate / "item_vectors.npy", vectors)
    summary = json.loads((candidate / "tower.json").read_text())
    write_json(
        candidate / "tower.json", {**summary, "item_vectors_sha256": sha256_file(candidate / "item_vectors.npy")}
    )
    index.mkdir()
    inputs = {"snapshot": snapshot, "candidate": candidate, "index": index}
    build_index(IndexConfig(), inputs, index)
    return inputs


def run(world: dict[str, Path], directory: Path, **sources) -> tuple[dict[str, float], dict[str, Path]]:
    """Train the sources; return metrics and the inputs of ``retrieve``."""
    directory.mkdir()
    config = TrainSourcesConfig(sources=SourcesConfig(**sources), candidate_k=K, features=FEATURES)
    metrics, _ = train_sources(config, world, directory)
    return metrics, {**world, "sources": directory}


def retrieved(inputs: dict[str, Path], directory: Path) -> dict[str, float]:
    directory.mkdir()
    return retrieve(RetrieveConfig(candidate_k=K, block=37, features=FEATURES), inputs, directory)[0]


def test_the_tower_alone_is_answered_as_before(world, tmp_path) -> None:
    metrics, inputs = run(world, tmp_path / "sources", newcomers=NewcomersConfig(list="half_life_30d"))
    assert metrics == {"quota_tower": 1.0}
    assert Blend.load(tmp_path / "sources" / "sources", N_ITEMS) is None
    assert [path.name for path in (tmp_path / "sources" / "sources").iterdir()] == ["sources.json"]
    without = retrieved(world, tmp_path / "without")
    assert retrieved(inputs, tmp_path / "with") == without
    tables = [(tmp_path / name / "candidates.parquet").read_bytes() for name in ("with", "without")]
    assert tables[0] == tables[1]
    assert not (tmp_path / "with" / SOURCE_SCORES_FILE).exists()


def test_learned_quotas_go_to_what_finds_more_and_hold_on_later_requests(world, tmp_path) -> None:
    sources = {
        "names": ("tower", "ease", "content"),
        "quotas": "learned",
        "learning": LearningConfig(block_share=0.125),
    }
    metrics, inputs = run(world, tmp_path / "sources", **sources)
    assert metrics["quota_content"] == 0, "categories say nothing"
    assert metrics["quota_ease"] >= 0.4, "the tower is wrong about every other item"
    assert metrics["quota_tower"] + metrics["quota_ease"] + metrics["quota_content"] == pytest.approx(1)
    assert metrics["learned_recall"] > metrics["recall_tower"] + 0.1
    later = retrieved(inputs, tmp_path / "retrieved")
    assert later["evaluation_recall"] > later["evaluation_recall_tower"] + 0.1
    assert later["evaluation_recall_content"] < later["evaluation_recall_tower"]


def test_the_evaluation_part_teaches_no_quota(world, tmp_path) -> None:
    """With the answers to later requests exchanged, quotas and neighbours are the same."""
    changed = {**world, "snapshot": tmp_path / "snapshot"}
    shutil.copytree(world["snapshot"], changed["snapshot"])
    targets = pq.read_table(changed["snapshot"] / "targets.parquet")
    requests = Snapshot(world["snapshot"]).requests()
    item = targets["item_index"].to_numpy().copy()
    later = requests.part[targets["request_id"].to_numpy()] == 2
    item[later] = (item[later] + 1) % N_ITEMS
    place = targets.column_names.index("item_index")
    pq.write_table(targets.set_column(place, "item_index", pa.array(item)), changed["snapshot"] / "targets.parquet")
    sources = {"names": ("tower", "ease", "content"), "quotas": "learned"}
    first, _ = run(world, tmp_path / "one", **sources)
    second, _ = run(changed, tmp_path / "two", **sources)
    assert later.sum() > 100
    assert first == second


def test_every_source_answers_each_request_with_unseen_items_that_exist(world, tmp_path) -> None:
    _, inputs = run(world, tmp_path / "sources", names=ALL, trending=WINDOWS)
    metrics = retrieved(inputs, tmp_path / "retrieved")
    table = CandidateTable.read(tmp_path / "retrieved" / "candidates.parquet")
    source_scores = SourceScores.read(tmp_path / "retrieved" / SOURCE_SCORES_FILE, ALL)
    snapshot = Snapshot(world["snapshot"])
    requests, events, born = snapshot.requests(), snapshot.events(), snapshot.items().created_at_ms
    assert len(source_scores) == len(table) == K * len(requests)
    assert (born[table.item_index] <= requests.request_time_ms[table.request_id]).all()
    for request in range(0, len(requests), 9):
        before = events.event_time_ms < requests.request_time_ms[request]
        seen = events.item_index[before & (events.user_index == requests.user_index[request])]
        items = table.item_index[table.request_id == request].tolist()
        assert len(set(items)) == K and not set(items) & set(seen.tolist())
    popular = table.source == 1
    assert (source_scores.ranks[popular] == -1).all()
    assert (source_scores.mask()[~popular] > 0).all()
    assert set(np.unique(table.source)) == set(range(9)), "each source is the first for something"
    # A source names its first items itself: its quota's worth, ranks 0 and on.
    for column, name in enumerate(ALL):
        ranks = source_scores.ranks[:, column]
        assert ranks.max() < K and (ranks >= 0).any(), name
        assert 0 <= metrics[f"evaluation_recall_{name}"] <= 1
    listed = list(metrics)[:5]
    assert listed == [
        "requests",
        "ranker_recall",
        "ranker_recall_tower",
        "evaluation_recall",
        "evaluation_recall_tower",
    ]
    wanted = snapshot.targets()
    found = set(zip(table.request_id.tolist(), table.item_index.tolist(), strict=True))
    hits = np.array([pair in found for pair in zip(wanted.request_id, wanted.item_index, strict=True)])
    assert metrics["evaluation_recall"] == pytest.approx(hits[requests.part[wanted.request_id] == 2].mean())


class Recent(CandidateGenerator):
    """What was touched last by anybody: it reads the state, and no replay has a reader for it."""

    name = "content"
    reads_state = True
    answers_newcomers = True

    @classmethod
    def load(cls, settings, arrays, n_items):
        return cls()

    def candidates(self, request, state):
        return np.arange(N_ITEMS), state.touches + 1.0 / (1 + np.arange(N_ITEMS))


def one_by_one(inputs: dict[str, Path], blend: Blend):
    """Yield the answer to each request by the calls that the server makes."""
    snapshot, scorer = Snapshot(inputs["snapshot"]), CandidateScorer.load(inputs["candidate"], inputs["index"])
    requests, contexts, state = snapshot.requests(), snapshot.contexts(), empty_state(snapshot, FEATURES, blend)
    for row in replay(snapshot.events(), requests, state):
        user, time_ms = int(requests.user_index[row]), int(requests.request_time_ms[row])
        history, seen, context = state.history(user), state.touched(user), tuple(contexts[requests.context[row]])
        available_ms = state.items.available_from_ms(int(requests.part[row]))
        request = CandidateRequest(history.items, time_ms, context, seen, available_ms)
        if not len(history.items):
            half_life = popular_half_life(blend.summary.newcomers, FEATURES)
            popular = state.popular(time_ms, K, seen, available_ms, half_life)
            items = blend.for_newcomer(request, state, popular, K)
            yield Blended.of_one(items, "popular", blend.names)
            continue
        query = scorer.embed(tower_inputs([history], [Moment(time_ms, user, context)], FEATURES, N_ITEMS))
        unborn = np.flatnonzero(available_ms > time_ms)
        tower = scorer.search(query, K, [np.concatenate([seen, unborn])])[0]
        yield blend.mix(blend.complete(blend.read(request, state, K), request, state, tower, K), K)


@pytest.mark.parametrize("called", [False, True])
def test_blocks_are_answered_as_the_server_answers_one_request(world, tmp_path, monkeypatch, called) -> None:
    """Also with a generator that must be called at each request, and with blocks of one and of all requests."""
    _, inputs = run(world, tmp_path / "sources", names=ALL, trending=WINDOWS, quotas={"tower": 2})
    blend = Blend.load(inputs["sources"] / "sources", N_ITEMS)
    if called:
        blend = Blend(blend.summary, [each if each.name != "content" else Recent() for each in blend._generators])
    monkeypatch.setattr(Blend, "load", lambda *_: blend)
    expected = list(one_by_one(inputs, blend))
    assert blend.visits == called
    for block in (1, 37, 10_000):
        directory = tmp_path / str(block)
        directory.mkdir()
        retrieve(RetrieveConfig(candidate_k=K, block=block, features=FEATURES), inputs, directory)
        table = CandidateTable.read(directory / "candidates.parquet")
        scores = SourceScores.read(directory / SOURCE_SCORES_FILE, ALL)
        sizes = [pq.ParquetFile(directory / name) for name in ("candidates.parquet", SOURCE_SCORES_FILE)]
        rows = [[file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)] for file in sizes]
        assert [n for n in rows[0] if n] == [n for n in rows[1] if n]
        np.testing.assert_array_equal(table.item_index, np.concatenate([each.items.ids for each in expected]))
        np.testing.assert_array_equal(table.score, np.concatenate([each.items.scores for each in expected]))
        np.testing.assert_array_equal(table.source, np.concatenate([each.source for each in expected]))
        np.testing.assert_array_equal(scores.ranks, np.concatenate([each.sources.ranks for each in expected]))
        wanted = np.concatenate([each.sources.scores for each in expected])
        np.testing.assert_allclose(scores.scores, wanted, atol=2e-6)  # the tower multiplies a block in another order
        np.testing.assert_array_equal(scores.scores[:, 1:], wanted[:, 1:])


def test_lists_of_several_windows_are_served_as_they_were_retrieved(world, tmp_path) -> None:
    names = ("tower", "trending", "trending_10m", "trending_7d")
    _, inputs = run(world, tmp_path / "sources", names=names, trending=WINDOWS)
    blend = Blend.load(inputs["sources"] / "sources", N_ITEMS)
    expected = list(one_by_one(inputs, blend))
    retrieved(inputs, tmp_path / "out")
    scores = SourceScores.read(tmp_path / "out" / SOURCE_SCORES_FILE, names)
    np.testing.assert_array_equal(scores.ranks, np.concatenate([each.sources.ranks for each in expected]))
    wanted = np.concatenate([each.sources.scores for each in expected])
    np.testing.assert_array_equal(scores.scores[:, 1:], wanted[:, 1:])
    both = (scores.ranks[:, 1] >= 0) & (scores.ranks[:, 3] >= 0)
    assert (scores.scores[both, 1] != scores.scores[both, 3]).any(), "windows differ"


@pytest.mark.parametrize("n", [0, 1])
def test_no_request_and_one_request(world, tmp_path, n) -> None:
    _, inputs = run(world, tmp_path / "sources", names=("tower", "ease"))
    snapshot = tmp_path / "snapshot"
    shutil.copytree(world["snapshot"], snapshot)
    requests = Snapshot(snapshot).requests()
    requests.take(np.arange(n)).write(snapshot / "requests.parquet")
    targets = pq.read_table(snapshot / "targets.parquet")
    pq.write_table(targets.filter(pa.compute.less(targets["request_id"], n)), snapshot / "targets.parquet")
    metrics = retrieved({**inputs, "snapshot": snapshot}, tmp_path / "out")
    assert metrics["requests"] == n
    blocks = list(candidate_blocks(tmp_path / "out", ("tower", "ease")))
    assert sum(len(block.rows) for block in blocks) == n * K
    assert np.load(tmp_path / "out" / "queries.npy").shape == (n, 16)


def test_the_towers_own_recall_is_that_of_a_run_without_other_sources(world, tmp_path) -> None:
    _, inputs = run(world, tmp_path / "sources", names=("tower", "ease"), quotas={"tower": 2, "ease": 0.5})
    assert read_summary(tmp_path / "sources" / "sources", N_ITEMS).quotas == {"tower": 2, "ease": 4}
    both, alone = retrieved(inputs, tmp_path / "both"), retrieved(world, tmp_path / "alone")
    for part in ("ranker", "evaluation"):
        assert both[f"{part}_recall_tower"] == alone[f"{part}_recall"]


def test_a_changed_or_missing_file_is_refused(world, tmp_path) -> None:
    _, inputs = run(world, tmp_path / "sources", names=("tower", "ease"))
    directory = inputs["sources"] / "sources"
    weights = np.load(directory / "ease_weights.npy")
    np.save(directory / "ease_weights.npy", weights[::-1])
    with pytest.raises(ReleaseError, match=r"ease_weights\.npy: sha256 .* sources\.json says"):
        Blend.load(directory, N_ITEMS)
    (directory / "ease_weights.npy").unlink()
    with pytest.raises(ReleaseError, match=r"ease_weights\.npy is missing, sources/sources.json names it"):
        retrieved(inputs, tmp_path / "retrieved")
    with pytest.raises(ReleaseError, match="n_items = 60, expected 61"):
        Blend.load(directory, N_ITEMS + 1)
    summary = json.loads((directory / "sources.json").read_text())
    write_json(directory / "sources.json", {**summary, "quotas": {"tower": 7, "ease": 2}})
    with pytest.raises(ReleaseError, match="sum of quotas above candidate_k = 1, expected 0"):
        Blend.load(directory, N_ITEMS)


def test_sources_of_another_run_are_refused(world, tmp_path) -> None:
    _, inputs = run(world, tmp_path / "sources", names=("tower", "ease"))
    path = inputs["sources"] / "sources" / "sources.json"
    summary = json.loads(path.read_text())
    for name, value in (("tower_version", "other"), ("data_fingerprint", "0"), ("candidate_k", K + 1)):
        write_json(path, {**summary, name: value})
        with pytest.raises(
            ReleaseError, match=rf"{name} is .*'?{value}'? in sources/sources.json.* \(train the sources again\)"
        ):
            retrieved(inputs, tmp_path / name)


def test_other_features_than_the_towers_are_refused(world, tmp_path) -> None:
    config = TrainSourcesConfig(sources=SourcesConfig(names=("tower", "ease"), quotas="learned"), candidate_k=K)
    with pytest.raises(ConfigError, match=r"features\.history_length = 50, the candidate tower was trained with 8"):
        train_sources(config, world, tmp_path)


def scored(*ids: int) -> ScoredItems:
    return ScoredItems(np.array(ids, dtype=np.int64), np.linspace(1, 0.5, len(ids), dtype=np.float32))


def listed(*requests: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]) -> ListedItems:
    """Requests (list of the tower, list of EASE, targets)."""
    pairs = [({"tower": scored(*tower), "ease": scored(*ease)}, np.array(wanted)) for tower, ease, wanted in requests]
    return ListedItems.of(("tower", "ease"), pairs)


LISTS = st.permutations(range(9)).flatmap(lambda order: st.integers(0, 6).map(lambda n: tuple(order[:n])))
REQUEST = st.tuples(st.permutations(range(9)).map(lambda order: tuple(order[:6])), LISTS, LISTS)


@given(st.lists(REQUEST, min_size=1, max_size=4), st.integers(0, 6))
def test_recall_while_learning_is_the_recall_of_what_the_blend_would_choose(requests, quota) -> None:
    quotas = {"tower": 6 - quota, "ease": quota}
    config = SourcesConfig(names=("tower", "ease"))
    summary = SourcesSummary(
        names=config.names,
        quotas=quotas,
        learned=True,
        candidate_k=6,
        n_items=9,
        tower_version="t",
        data_fingerprint="f",
        config=config,
    )
    blend = Blend(summary, [])
    wanted = []
    for tower, ease, targets in requests:
        found = blend.mix({"tower": scored(*tower), "ease": scored(*ease)}, 6).items.ids
        wanted.append(np.isin(targets, found).mean() if targets else 0.0)
    assert listed(*requests).recalls(quotas, 6) == pytest.approx(wanted)


def test_blocks_move_while_they_gain() -> None:
    """EASE has the target among its first four in eight of ten requests, the tower early in all, with others late."""
    tower, ease = tuple(range(10)), tuple(range(20, 30))
    requests = [(tower, ease, (20 + number % 4, 0)) for number in range(8)] + [(tower, ease, (1,))] * 2
    lined_up = listed(*requests)
    assert learn_quotas(lined_up, 10, 2) == {"tower": 6, "ease": 4}
    assert lined_up.alone("tower", 10) == pytest.approx((8 * 0.5 + 2) / 10)
    assert lined_up.recalls({"tower": 6, "ease": 4}, 10).mean() == pytest.approx(1)
    assert learn_quotas(lined_up, 10, 3) == {"tower": 4, "ease": 6}, "the second block gains the fourth item"


def test_no_source_alone_is_better_by_more_than_chance() -> None:
    """Each place that EASE gets first loses the tower's last item, and all six of EASE find more than the tower."""
    tower, ease = tuple(range(6)), tuple(range(20, 26))
    requests = [(tower, ease, (20 + number % 3 + 3, 5)) for number in range(9)]
    requests += [(tower, ease, (20 + number % 6,)) for number in range(9)]
    lined_up = listed(*requests)
    assert learn_quotas(lined_up, 6, 1) == {"tower": 0, "ease": 6}
    assert lined_up.alone("ease", 6) > lined_up.alone("tower", 6)


def test_what_moved_may_move_back() -> None:
    """EASE's first item gains most at first, then its place is worth more to content's second."""
    lists = {"tower": scored(0, 1, 2), "ease": scored(20, 21, 22), "content": scored(40, 41, 42)}
    wanted = [(20, 40)] * 4 + [(20, 41)] + [(41,)] * 5 + [(0,)] * 5
    lined_up = ListedItems.of(("tower", "ease", "content"), [(lists, np.array(each)) for each in wanted * 3])
    first = lined_up.recalls({"tower": 2, "ease": 1, "content": 0}, 3).mean()
    assert first > lined_up.recalls({"tower": 2, "ease": 0, "content": 1}, 3).mean()
    assert learn_quotas(lined_up, 3, 1) == {"tower": 1, "ease": 0, "content": 2}


def test_what_is_named_twice_costs_the_tower_nothing() -> None:
    """EASE repeats the tower but for its third item: three places for it take one from the tower."""
    requests = [((0, 1, 2, 3), (0, 1, 9, 8), (wanted,)) for wanted in (0, 1, 2, 9, 9, 9)]
    assert learn_quotas(listed(*requests), 4, 3) == {"tower": 1, "ease": 3}
    assert listed(*requests).recalls({"tower": 1, "ease": 3}, 4).tolist() == [1] * 6


def test_a_gain_within_its_standard_error_is_chance() -> None:
    """One request of a hundred gains by EASE: 0.01 with a standard error of 0.00995 each time; two others lose."""
    gains = [((0, 1, 2, 3), (8, 9), (8,))]
    loses = [((0, 1, 2, 3), (8, 9), (3,))]
    same = [((0, 1, 2, 3), (8, 9), (0,))] * 90
    assert learn_quotas(listed(*same, *gains * 4, *loses * 3), 4, 1) == {"tower": 4, "ease": 0}
    assert learn_quotas(listed(*same, *gains * 9, *loses * 1), 4, 1) == {"tower": 3, "ease": 1}
    assert learn_quotas(listed(*same, *loses * 9), 4, 1) == {"tower": 4, "ease": 0}


def test_a_request_with_many_targets_counts_once() -> None:
    requests = [((0, 1), (7, 8), (7, 8, 0))] + [((0, 1), (7, 8), (1,))] * 2
    assert listed(*requests).recalls({"tower": 0, "ease": 2}, 2).tolist() == [pytest.approx(2 / 3), 0, 0]
    assert listed(*requests).alone("ease", 2) == pytest.approx(2 / 9)
    assert learn_quotas(listed(*requests), 2, 1) == {"tower": 2, "ease": 0}
