"""The estimate of what ``retrieve`` writes, against files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from stages.contracts.candidate_blocks import CANDIDATES_FILE, candidate_bytes
from stages.contracts.sources import SOURCE_SCORES_FILE, SourceScores
from stages.contracts.tables import CandidateTable

N_REQUESTS, K, N_ITEMS = 300, 300, 40_000


@pytest.mark.parametrize("n_sources", [1, 3])
def test_the_estimate_is_near_and_not_below(tmp_path: Path, n_sources: int) -> None:
    draw, n = np.random.default_rng(0), N_REQUESTS * K
    scores = -np.sort(-draw.normal(size=(N_REQUESTS, K)), axis=1).astype(np.float32)
    rows = CandidateTable(
        request_id=np.repeat(np.arange(N_REQUESTS), K),
        item_index=np.concatenate([draw.choice(N_ITEMS, K, replace=False) for _ in range(N_REQUESTS)]),
        score=scores.ravel(),
        rank=np.tile(np.arange(K, dtype=np.int32), N_REQUESTS),
        source=draw.integers(0, n_sources, n).astype(np.int8),
    )
    with CandidateTable.writer(tmp_path / CANDIDATES_FILE) as write:
        write(rows)
    if n_sources > 1:
        ranks = np.where(draw.random((n, n_sources)) < 0.4, -1, draw.integers(0, K, (n, n_sources))).astype(np.int32)
        own = np.where(ranks < 0, np.nan, draw.normal(size=ranks.shape)).astype(np.float32)
        table = SourceScores(("tower", "covisitation", "trending")[:n_sources], own, ranks).table()
        pq.write_table(table, tmp_path / SOURCE_SCORES_FILE, compression="zstd")
    np.save(tmp_path / "queries.npy", np.zeros((N_REQUESTS, 64), np.float32))
    written = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert written * 0.9 < candidate_bytes(N_REQUESTS, K, n_sources, 64) < 1.6 * written
