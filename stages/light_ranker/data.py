"""The rows that the light ranker learns from, and LightGBM's data made from them row group by row group.

Shapes: R rows of the file, M rows to learn from, F features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import lightgbm as lgb
import numpy as np

from stages.contracts.errors import DataError
from stages.contracts.example_windows import late_requests
from stages.contracts.examples import ExampleRows, ExamplesFile
from stages.contracts.memory import require_memory
from stages.contracts.progress import Advance, progress_of
from stages.contracts.ragged import run_offsets
from stages.contracts.ranking import SOURCE_POPULAR

STEP = "light ranker"
SMALLER = "examples.requests or examples.negatives.per_request"

_SAMPLED_ROWS = 200_000
_BYTES_SAMPLED, _BYTES_BINNED = 17, 2.2
"""LightGBM's memory for a value, measured with 500,000 and 2 million rows of 80 features (see docs/log.md): of the rows
that it samples to choose the bins of a feature, and of all rows once they are binned."""
_BYTES_OF_ROW = 120
"""Memory of a row apart from its features: its keys, gradients and scores."""


@dataclass(frozen=True)
class TrainingSet:
    """The rows that the light ranker learns from, in the order of the file.

    Attributes:
        rows: int64 ``[M]`` positions in the file: the rows of every usable request.
        request_id, user_index: int64 ``[M]``.
        grade: int32 ``[M]``, 0 = not relevant, then one grade for each distinct relevance.
        late: bool ``[M]``, rows of the requests that choose the number of rounds.
        gains: relevance of each grade.
    """

    rows: np.ndarray
    request_id: np.ndarray
    user_index: np.ndarray
    grade: np.ndarray
    late: np.ndarray
    gains: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.rows)


def select_training(rows: ExampleRows) -> TrainingSet:
    """Choose the requests that have both a history and a positive candidate.

    Args:
        rows: all R rows; features are not read.

    Raises:
        DataError: if none is left, or only one, with the counts that explain it.
    """
    ids = rows.request_id
    personal = rows.source != SOURCE_POPULAR
    with_positive = np.unique(ids[personal & (rows.relevance > 0)])
    chosen = np.flatnonzero(personal & np.isin(ids, with_positive))
    if len(chosen) == 0:
        raise DataError(
            f"{STEP}: none of {len(np.unique(ids))} requests has a positive among its candidates "
            f"({len(np.unique(ids[personal]))} of them come from the index, the others from the popular list)"
        )
    relevance = rows.relevance[chosen]
    levels = np.unique(relevance[relevance > 0])
    grade = np.where(relevance > 0, np.searchsorted(levels, relevance) + 1, 0)
    starts = run_offsets(ids[chosen])
    late = late_requests(STEP, rows.window[chosen][starts[:-1]], np.ones(len(starts) - 1, dtype=bool))
    return TrainingSet(
        rows=chosen,
        request_id=ids[chosen],
        user_index=rows.user_index[chosen],
        grade=grade.astype(np.int32),
        late=np.repeat(late, np.diff(starts)),
        gains=(0.0, *(float(level) for level in levels)),
    )


def check_memory(file: ExamplesFile) -> None:
    """Refuse examples that do not fit the memory.

    Raises:
        ConfigError: with the bytes that are needed and available, and the settings.
    """
    n, width = file.n_rows, len(file.feature_names)
    binned = max(n + _BYTES_SAMPLED * min(n, _SAMPLED_ROWS), _BYTES_BINNED * n) * width
    largest = int(file.group_rows.max(initial=0))
    # A row group is decoded, checked and its rows are chosen: three times its float32 values.
    needed = round(binned) + _BYTES_OF_ROW * n + 12 * largest * width
    require_memory(f"train_light ({n:,} rows x {width} features)", needed, SMALLER)


def binned(file: ExamplesFile, training: TrainingSet, parameters: Mapping[str, Any]) -> lgb.Dataset:
    """Return LightGBM's data of the training rows.

    LightGBM reads each row group twice: for a sample of rows that chooses the bins, then to bin all rows. The features
    are never in memory as a whole, only their bins of one byte each.

    Args:
        file: the examples.
        training: the rows.
        parameters: of LightGBM.
    """
    with progress_of("light: reading", 2 * len(training.rows), "row") as advance:
        reader = _GroupReader(file, training.rows, advance)
        data = lgb.Dataset(
            reader.sequences(),
            label=training.grade,
            group=np.diff(run_offsets(training.request_id)),
            feature_name=list(file.feature_names),
            params=dict(parameters),
        )
        return data.construct()


def subset(data: lgb.Dataset, rows: np.ndarray) -> lgb.Dataset:
    """Return the data of some rows, whole requests, without reading features again.

    Args:
        data: of M rows.
        rows: bool ``[M]``.
    """
    part = data.subset(())
    # Given to ``subset``, the positions would become a list of Python integers: a third of the memory of the bins.
    part.used_indices = np.flatnonzero(rows).astype(np.int32)
    return part


class _GroupReader:
    """Reads the features of chosen rows, a row group at a time; only the last one is in memory.

    Attributes:
        advance: called with the number of rows that were read; LightGBM reads each twice.
    """

    def __init__(self, file: ExamplesFile, rows: np.ndarray, advance: Advance) -> None:
        """Prepare to read.

        Args:
            file: the examples.
            rows: int64 ``[M]`` positions in the file, ascending.
            advance: see the attribute.
        """
        self.file, self.rows = file, rows
        self.borders = np.searchsorted(rows, file.group_starts)
        self.advance = advance
        self._number, self._features = -1, np.zeros((0, 0), dtype=np.float32)

    def sequences(self) -> list[_GroupSequence]:
        """Return one sequence for each row group with chosen rows."""
        lengths = np.diff(self.borders)
        return [_GroupSequence(self, int(number), int(lengths[number])) for number in np.flatnonzero(lengths)]

    def features(self, number: int) -> np.ndarray:
        """Return float32 ``[m, F]`` features of the chosen rows of a row group."""
        if number != self._number:
            self._number, self._features = -1, self._features[:0]  # the last group goes before the next one comes
            of_group = self.rows[self.borders[number] : self.borders[number + 1]] - self.file.group_starts[number]
            features = self.file.group(number).features
            whole = len(of_group) == len(features)
            self._number, self._features = number, features if whole else features[of_group]
            self.advance(len(of_group))
        return self._features


class _GroupSequence(lgb.Sequence):  # type: ignore[misc]
    """The rows of one row group, as LightGBM asks for them: single rows for its sample, then all of them."""

    def __init__(self, reader: _GroupReader, number: int, length: int) -> None:
        self._reader, self._number, self._length = reader, number, length
        self.batch_size = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: Any) -> np.ndarray:
        """Return float64 ``[F]`` of one row, or float32 ``[m, F]`` of a slice."""
        found: np.ndarray = self._reader.features(self._number)[index]
        return found.astype(np.float64) if found.ndim == 1 else found
