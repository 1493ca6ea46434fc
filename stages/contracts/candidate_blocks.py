"""Reads what ``retrieve`` wrote, a row group at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stages.contracts.errors import DataError
from stages.contracts.sources import SOURCE_SCORES_FILE, SourceScores
from stages.contracts.tables import CandidateTable

CANDIDATES_FILE = "candidates.parquet"
ROW_BYTES = 6
"""Bytes of a row of ``candidates.parquet``: 5.6 with 300 of 40,000 items a request and normally distributed scores."""

SOURCE_BYTES = 5
"""Bytes that a generator adds to a row in ``source_scores.parquet``: 2.8 where its list holds 3 of 10 candidates, 4.9
where it holds 6."""


def candidate_bytes(n_requests: int, candidate_k: int, n_sources: int = 1, dim: int = 0) -> int:
    """Estimate what ``retrieve`` writes.

    Args:
        n_requests: of all parts.
        candidate_k: candidates of each.
        n_sources: candidate generators; with one there is no ``source_scores.parquet``.
        dim: D of the users' vectors in ``queries.npy``.
    """
    a_row = ROW_BYTES + (SOURCE_BYTES * n_sources if n_sources > 1 else 0)
    return n_requests * (candidate_k * a_row + 4 * dim)


@dataclass(frozen=True)
class CandidateBlock:
    """Candidates of consecutive requests, whole requests only.

    Attributes:
        rows: n candidates, sorted by (request_id, rank).
        sources: score and rank of each in every generator's list; None where there is one generator.
    """

    rows: CandidateTable
    sources: SourceScores | None = None

    def take(self, chosen: np.ndarray) -> CandidateBlock:
        """Return some rows, by an index or boolean array ``[n]``."""
        return CandidateBlock(self.rows.take(chosen), None if self.sources is None else self.sources.take(chosen))

    @classmethod
    def join(cls, blocks: Sequence[CandidateBlock]) -> CandidateBlock:
        """Return the rows of one or more blocks of the same generators, one after the other."""
        columns = {
            name: np.concatenate([getattr(block.rows, name) for block in blocks]) for name in CandidateTable.TYPES
        }
        sources = [block.sources for block in blocks if block.sources is not None]
        return cls(CandidateTable(**columns), SourceScores.concatenate(sources) if sources else None)


def candidate_rows(path: Path) -> Iterator[CandidateTable]:
    """Yield the rows of ``candidates.parquet``, a row group at a time; no more is in memory.

    Raises:
        DataError: if the file is missing or unreadable, or the rows are not sorted by request.
    """
    last = -1
    for rows in CandidateTable.groups(path):
        if rows.request_id[0] <= last or (np.diff(rows.request_id) < 0).any():
            raise DataError(f"{path} must be sorted by request_id, and each request must lie in one row group")
        last = int(rows.request_id[-1])
        yield rows


def candidate_blocks(directory: Path, sources: Sequence[str] = ()) -> Iterator[CandidateBlock]:
    """Yield the candidates of a finished ``retrieve`` directory, a row group at a time; no more is in memory.

    Args:
        directory: holds ``candidates.parquet`` and, with several generators, ``source_scores.parquet``, whose row
            groups hold the same rows.
        sources: names of the generators; empty where there is one.

    Raises:
        DataError: if a file is missing or unreadable, the row groups of the two files differ, or the rows are not
            sorted by request.
    """
    path, scores_path = directory / CANDIDATES_FILE, directory / SOURCE_SCORES_FILE
    if not sources and scores_path.is_file():
        raise DataError(f"{scores_path} has scores by generator, but sources = []: retrieve followed another recipe")
    scores = iter(SourceScores.groups(scores_path, sources)) if sources else None
    for rows in candidate_rows(path):
        found = None if scores is None else next(scores, None)
        if scores is not None and (found is None or len(found) != len(rows)):
            n_scores, n_rows = (CandidateTable.count(each) for each in (scores_path, path))
            raise DataError(f"{scores_path} has {n_scores} rows, the candidates have {n_rows}, in other row groups")
        yield CandidateBlock(rows, found)
