"""Rankings in pieces: of files with row groups of any size, down to one request."""

import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.contracts.errors import DataError
from stages.contracts.snapshot import Targets, Task
from stages.contracts.tables import PART_EVALUATION, CandidateTable, RankedTable
from stages.evaluation.evaluate import EvaluationConfig, evaluate
from stages.evaluation.measure import measure
from stages.evaluation.metrics import HeldOut
from stages.evaluation.pieces import ranking_pieces
from tests.builders.snapshots import catalogue, event_table, request_table, write_snapshot

N_ITEMS = 8
CONFIG = EvaluationConfig(ks=(2, 4), candidate_k=6, bootstrap_samples=200, seed=1, half_life_days=1.0)


def held_of(requests):
    """Hold out requests that want item 1 each."""
    ids = np.array(sorted(requests), dtype=np.int64)
    ones = np.ones(len(ids), dtype=np.float32)
    return HeldOut.make(ids, Targets(ids, ones.astype(np.int64), ones, ones[:, None]), N_ITEMS)


def ranked_of(answers):
    rows = [(request, item, rank) for request, items in answers.items() for rank, item in enumerate(items)]
    request, item, rank = np.array(rows, dtype=np.int64).reshape(-1, 3).T.copy()
    return RankedTable(request, item, -rank.astype(np.float32), rank.astype(np.int32))


def test_a_request_in_two_pieces_is_refused():
    held = held_of([3])
    pieces = [ranked_of({3: [1]}), ranked_of({3: [2]})]
    with pytest.raises(DataError, match="request 3: its answers lie in two pieces of a ranking"):
        measure(pieces, held, (1,), 2, np.zeros(N_ITEMS, dtype=bool))


@given(st.lists(st.integers(0, 4), max_size=12), st.integers(1, 9), st.sets(st.integers(0, 14), min_size=1))
def test_pieces_of_a_file_hold_whole_requests_of_those_held_out(lengths, rows_of_group, ids):
    held = held_of(ids)
    ranked = ranked_of({request: list(range(length)) for request, length in enumerate(lengths)})
    wanted = ranked.take(np.isin(ranked.request_id, held.request_id))
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "light.parquet"
        ranked.write(path)
        pq.write_table(pq.read_table(path), path, row_group_size=rows_of_group)
        if not len(wanted):
            with pytest.raises(DataError, match=f"{len(ranked)} rows, none for the {len(held)} held-out requests"):
                list(ranking_pieces(RankedTable, path, held))
            return
        pieces = list(ranking_pieces(RankedTable, path, held))
    found = RankedTable.concatenate(pieces)
    for name in RankedTable.TYPES:
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))
    requests = [set(piece.request_id.tolist()) for piece in pieces]
    assert sum(map(len, requests)) == len(set().union(*requests))
    assert max(map(len, pieces)) <= rows_of_group + 4


def test_one_held_out_request_is_enough(tmp_path):
    """One request, one user, one event."""
    snapshot = write_snapshot(
        tmp_path / "snapshot",
        (0, 400, 500, 1000),
        signals=["view"],
        tasks=[Task(name="view", signals=("view",), relevance=1.0)],
        categories=["none"],
        events=event_table(np.array([0]), np.array([1]), np.array([600]), PART_EVALUATION),
        requests=request_table([0], [600], [PART_EVALUATION]),
        targets={"request_id": [0], "item_index": [1]},
        items=catalogue(3, categories=[[0]] * 3, duration_s=np.ones(3)),
        users=["u0"],
    )
    columns = {
        "request_id": np.zeros(2, np.int64),
        "item_index": np.array([2, 1]),
        "rank": np.arange(2, dtype=np.int32),
    }
    (tmp_path / "retrieve").mkdir()
    scores = -np.arange(2, dtype=np.float32)
    candidates = CandidateTable(**columns, score=scores, source=np.zeros(2, np.int8))
    candidates.write(tmp_path / "retrieve" / "candidates.parquet")
    (tmp_path / "out").mkdir()
    metrics, info = evaluate(CONFIG, {"snapshot": snapshot, "retrieve": tmp_path / "retrieve"}, tmp_path / "out")
    assert (metrics["candidates/mrr@2"], info["served"]) == (0.5, "candidates")
