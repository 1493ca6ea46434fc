"""Rankings of held-out requests, read piece by piece: memory does not grow with the number of requests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np

from stages.contracts.errors import DataError
from stages.contracts.tables import CandidateTable, RankedTable
from stages.evaluation.metrics import HeldOut

Ranking = TypeVar("Ranking", RankedTable, CandidateTable)


def ranking_pieces(kind: type[Ranking], path: Path, held: HeldOut) -> Iterator[Ranking]:
    """Yield the rows of held-out requests, whole requests only, about a row group at a time.

    No more than a row group and the rows of one request are in memory.

    Args:
        kind: of the table.
        path: a Parquet file sorted by request.
        held: the requests.

    Raises:
        DataError: if the file is missing, malformed or not sorted by request, or holds none of the requests: a ranking
            of other requests is no ranking that found nothing.
    """
    open_ones: list[Ranking] = []  # the rows of the last request so far: the next row group may go on with it
    last, n_rows, found = -1, 0, False
    for group in kind.groups(path):
        if group.request_id[0] < last or (np.diff(group.request_id) < 0).any():
            raise DataError(f"{path} must be sorted by request_id")
        last, n_rows = int(group.request_id[-1]), n_rows + len(group)
        ours = group.take(held.rows(group.request_id) >= 0)
        if not len(ours):
            continue
        found = True
        open_ones.append(ours)
        whole = kind.concatenate(open_ones)
        border = int(np.searchsorted(whole.request_id, whole.request_id[-1]))
        if border:
            yield whole.take(np.arange(border))
        open_ones = [whole.take(np.arange(border, len(whole)))]
    if not found:
        raise DataError(f"{path}: {n_rows} rows, none for the {len(held)} held-out requests")
    yield from open_ones
