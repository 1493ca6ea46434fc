import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.candidate.config import IndexConfig, RetrieveConfig
from stages.candidate.generators.blend import Blend
from stages.candidate.generators.config import SourcesConfig
from stages.candidate.generators.covisitation import Covisitation
from stages.candidate.generators.files import SourcesSummary
from stages.candidate.index.step import build_index
from stages.candidate.retrieval.retriever import Retriever, empty_state
from stages.candidate.retrieval.step import retrieve
from stages.candidate.scorer import CandidateScorer
from stages.contracts.errors import ConfigError
from stages.contracts.ranking import SOURCE_POPULAR, SOURCE_TOWER
from stages.contracts.snapshot import Snapshot
from stages.contracts.tables import CandidateTable
from stages.features.config import FeatureConfig
from stages.features.state import FunnelState

FEATURES = FeatureConfig(history_length=8, history_decay=4.0)
K = 12


@pytest.fixture(scope="module")
def answered(planted, trained, indexed, tmp_path_factory):
    directory = tmp_path_factory.mktemp("retrieved")
    inputs = {"snapshot": planted, "candidate": trained, "index": indexed}
    metrics, _ = retrieve(RetrieveConfig(candidate_k=K, block=37, features=FEATURES), inputs, directory)
    return metrics, CandidateTable.read(directory / "candidates.parquet"), np.load(directory / "queries.npy")


def test_rows_are_complete_and_sorted(planted, answered):
    _, table, queries = answered
    requests = Snapshot(planted).requests()
    assert np.bincount(table.request_id).tolist() == [K] * len(requests)
    assert table.rank.tolist() == list(range(K)) * len(requests)
    assert (np.diff(table.score.reshape(-1, K), axis=1) <= 0).all()
    assert queries.shape == (len(requests), 16)


def test_no_item_is_seen_or_not_yet_available(planted, answered):
    _, table, _ = answered
    snapshot = Snapshot(planted)
    events, requests, born = snapshot.events(), snapshot.requests(), snapshot.items().created_at_ms
    time_ms = requests.request_time_ms[table.request_id]
    assert (born[table.item_index] <= time_ms).all()
    assert (born > requests.request_time_ms.min()).any()
    for request in range(0, len(requests), 7):
        before = events.event_time_ms < requests.request_time_ms[request]
        seen = events.item_index[before & (events.user_index == requests.user_index[request])]
        assert not set(seen.tolist()) & set(table.item_index[table.request_id == request].tolist())


def test_a_withheld_item_answers_no_request_of_its_part(planted, trained, answered, tmp_path):
    _, before, _ = answered
    best = np.bincount(before.item_index).argsort()[::-1][:3]
    snapshot = tmp_path / "snapshot"
    shutil.copytree(planted, snapshot)
    items = pq.read_table(snapshot / "items.parquet")
    mask = items["eligible"].to_numpy().copy()
    mask[best] = (0b001, 0b110, 0b000)  # for the ranker part only; not for it; never
    place = items.column_names.index("eligible")
    pq.write_table(items.set_column(place, "eligible", pa.array(mask)), snapshot / "items.parquet")
    for name in ("index", "retrieved"):
        (tmp_path / name).mkdir()
    inputs = {"snapshot": snapshot, "candidate": trained, "index": tmp_path / "index"}
    metrics, _ = build_index(IndexConfig(), inputs, tmp_path / "index")
    assert (metrics["n_indexed"], metrics["n_items"]) == (len(mask) - 1, len(mask))
    retrieve(RetrieveConfig(candidate_k=K, features=FEATURES), inputs, tmp_path / "retrieved")
    table = CandidateTable.read(tmp_path / "retrieved" / "candidates.parquet")
    part = Snapshot(planted).requests().part[table.request_id]
    found = {number: set(table.item_index[part == number].tolist()) for number in (1, 2)}
    ranker_only, later_only, never = best.tolist()
    assert ranker_only in found[1] and ranker_only not in found[2]
    assert later_only in found[2] and later_only not in found[1]
    assert never not in found[1] | found[2]
    assert np.bincount(table.request_id).tolist() == [K] * len(Snapshot(planted).requests())


def test_requests_without_history_get_the_popular_list(planted, answered):
    metrics, table, queries = answered
    snapshot = Snapshot(planted)
    events, requests = snapshot.events(), snapshot.requests()
    first = np.full(requests.user_index.max() + 1, np.iinfo(np.int64).max)
    np.minimum.at(first, events.user_index, events.event_time_ms)
    empty = first[requests.user_index] >= requests.request_time_ms
    assert empty.sum() == 4
    popular = np.unique(table.request_id[table.source == SOURCE_POPULAR])
    assert popular.tolist() == np.flatnonzero(empty).tolist()
    assert (np.abs(queries).sum(axis=1) == 0).tolist() == empty.tolist()
    assert set(table.source[~empty[table.request_id]].tolist()) == {SOURCE_TOWER}
    assert metrics["popular_share"] == pytest.approx(4 / len(requests))


def test_recall_is_far_above_popularity(planted, answered):
    """Users stay in one block of 15: a tower that knows the block finds what popularity cannot."""
    metrics, table, _ = answered
    snapshot = Snapshot(planted)
    targets, requests = snapshot.targets(), snapshot.requests()
    found = set(zip(table.request_id.tolist(), table.item_index.tolist(), strict=True))
    hits = np.array([pair in found for pair in zip(targets.request_id, targets.item_index, strict=True)])
    for name, part in (("ranker", 1), ("evaluation", 2)):
        rows = requests.part[targets.request_id] == part
        assert metrics[f"{name}_recall"] == pytest.approx(hits[rows].mean())
        assert metrics[f"{name}_recall"] > 0.85
    state = FunnelState.empty(snapshot.items(), FEATURES, snapshot.meta.signals, snapshot.meta.tasks)
    for row in zip(*(getattr(snapshot.events(), n) for n in ("user_index", "item_index")), strict=True):
        state.apply(int(row[0]), int(row[1]), 0, 1.0, 0)
    popular = state.popular(0, K, np.empty(0, np.int64)).ids
    assert np.isin(targets.item_index, popular).mean() < 0.6


def test_users_without_training_rows_are_served_from_events_alone(planted, answered):
    _, table, _ = answered
    snapshot = Snapshot(planted)
    targets, requests = snapshot.targets(), snapshot.requests()
    newcomers = np.flatnonzero((requests.part == 2) & (requests.user_index >= 156))
    assert len(newcomers) == 4
    for request in newcomers:
        block = targets.item_index[targets.request_id == request][0] // 15
        items = table.item_index[table.request_id == request]
        assert (items // 15 == block).mean() > 0.7


def test_the_block_size_changes_nothing(planted, trained, indexed, answered, tmp_path):
    inputs = {"snapshot": planted, "candidate": trained, "index": indexed}
    retrieve(RetrieveConfig(candidate_k=K, block=1000, features=FEATURES), inputs, tmp_path)
    table = pq.read_table(tmp_path / "candidates.parquet")
    np.testing.assert_array_equal(table["item_index"].to_numpy(), answered[1].item_index)


def test_other_features_than_the_towers_are_refused(planted, trained, indexed, tmp_path):
    inputs = {"snapshot": planted, "candidate": trained, "index": indexed}
    with pytest.raises(ConfigError, match=r"features.history_decay = 10.0, the candidate tower was trained with 4.0"):
        retrieve(RetrieveConfig(features=FeatureConfig(history_length=8)), inputs, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_liked_cold_item_is_found_through_its_category(planted, trained, indexed, single_items):
    """Item 7 has no training row: it must stand nearer to its own block's users than to others'."""
    scorer = CandidateScorer.load(trained, indexed)
    scores = scorer.embed(single_items([1, 16, 31, 46])) @ scorer.item_vectors[7]
    assert scores.argmax() == 0


def test_without_an_index_a_generator_answers_as_beside_one(planted, trained, indexed):
    """With all places its own; what an index would fill up is missing, and there is no query."""
    snapshot, scorer = Snapshot(planted), CandidateScorer.load(trained, indexed)
    sources = SourcesConfig(names=("tower", "covisitation"))
    summary = SourcesSummary(
        names=sources.names,
        quotas={"tower": 0, "covisitation": K},
        learned=False,
        candidate_k=K,
        n_items=scorer.n_items,
        tower_version="",
        data_fingerprint="f",
        config=sources,
    )
    blend = Blend(summary, [Covisitation.load(sources, {}, scorer.n_items)])
    lists, answers = [], []
    for index in (scorer, None):
        retriever = Retriever(index, empty_state(snapshot, FEATURES, blend), snapshot, K, blend)
        found = list(retriever.answers(snapshot.events(), 100))
        lists.append([each.lists["covisitation"].ids.tolist() for each in found])
        answers.append(found)
    assert lists[0] == lists[1]
    for with_index, without in zip(*answers, strict=True):
        assert (with_index.queries.shape[1], without.queries.shape[1]) == (16, 0)
        assert without.popular.tolist() == with_index.popular.tolist()
        assert len(without.lists["tower"].ids) == 0 < len(with_index.lists["tower"].ids)
        for row, popular in enumerate(without.popular.tolist()):
            own = without.lists["covisitation"].row(row).ids if not popular else with_index.items.row(row).ids
            assert without.items.row(row).ids.tolist() == own.tolist()
