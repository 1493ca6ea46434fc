"""Candidate generators: the one table of their names, and each one's score and rank of every candidate.

Recipes, files and answers call them sources. Shapes: R candidate rows, S generators.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stages.contracts.errors import DataError


class GeneratorRow(NamedTuple):
    """A row of ``GENERATORS``.

    Attributes:
        code: the generator's number in ``CandidateTable.source`` and its bit in the int32 column ``sources`` of
            ``source_scores.parquet``; 0 to ``LAST_CODE``. Finished steps hold it, so it never changes.
        path: "module:Class" of its ``CandidateGenerator``; empty for the two-tower index and the popular list.
    """

    code: int
    path: str = ""


LAST_CODE = 30
GENERATORS: dict[str, GeneratorRow] = {
    "tower": GeneratorRow(0),
    "popular": GeneratorRow(1),
    "covisitation": GeneratorRow(2, "stages.candidate.generators.covisitation:Covisitation"),
    "trending": GeneratorRow(3, "stages.candidate.generators.trending:Trending"),
    "ease": GeneratorRow(4, "stages.candidate.generators.ease:EaseNeighbours"),
    "ials": GeneratorRow(5, "stages.candidate.generators.ials:IalsNeighbours"),
    "content": GeneratorRow(6, "stages.candidate.generators.content:ContentNeighbours"),
    "directed_ridge": GeneratorRow(7, "stages.candidate.generators.directed_ridge:RidgeNeighbours"),
    "item_knn": GeneratorRow(8, "stages.candidate.generators.item_knn:ItemKnnNeighbours"),
    "trending_10m": GeneratorRow(9, "stages.candidate.generators.trending:TenMinutes"),
    "trending_1h": GeneratorRow(10, "stages.candidate.generators.trending:OneHour"),
    "trending_6h": GeneratorRow(11, "stages.candidate.generators.trending:SixHours"),
    "trending_1d": GeneratorRow(12, "stages.candidate.generators.trending:OneDay"),
    "trending_7d": GeneratorRow(13, "stages.candidate.generators.trending:SevenDays"),
    "segment_trending_10m": GeneratorRow(14, "stages.candidate.generators.trending:SegmentTenMinutes"),
    "segment_trending_1h": GeneratorRow(15, "stages.candidate.generators.trending:SegmentOneHour"),
    "segment_trending_6h": GeneratorRow(16, "stages.candidate.generators.trending:SegmentSixHours"),
    "segment_trending_1d": GeneratorRow(17, "stages.candidate.generators.trending:SegmentOneDay"),
    "segment_trending_7d": GeneratorRow(18, "stages.candidate.generators.trending:SegmentSevenDays"),
}
"""All candidate generators by name. A new one is a class in a module of its own, and a row at the end."""

SOURCE_SCORES_FILE = "source_scores.parquet"
_MASK = "sources"


def source_code(name: str) -> int:
    """Return the code of a generator."""
    return GENERATORS[name].code


def source_name(code: int) -> str:
    """Return the name of a generator."""
    return next(name for name, row in GENERATORS.items() if row.code == code)


@dataclass(frozen=True)
class SourceScores:
    """Score and rank of each candidate in the list of each generator.

    They are kept in ``source_scores.parquet``, with the rows of ``candidates.parquet``.

    Attributes:
        names: S generators, in the order of the columns.
        scores: float32 ``[R, S]``, the generator's own score; NaN where its list does not hold the item.
        ranks: int32 ``[R, S]``, 0-based position in the generator's list; -1 where it does not hold the item.
    """

    names: tuple[str, ...]
    scores: np.ndarray
    ranks: np.ndarray

    def __post_init__(self) -> None:
        shape = (len(self.ranks), len(self.names))
        for name, values, dtype in (("scores", self.scores, np.float32), ("ranks", self.ranks, np.int32)):
            if values.shape != shape or values.dtype != dtype:
                raise DataError(
                    f"SourceScores.{name} must be {np.dtype(dtype)} {list(shape)}, found {values.dtype} "
                    f"{list(values.shape)}"
                )
        if not np.array_equal(np.isnan(self.scores), self.ranks < 0):
            raise DataError("SourceScores: a source has a score exactly where it has a rank")

    def __len__(self) -> int:
        return len(self.ranks)

    @classmethod
    def nothing(cls, names: Sequence[str], rows: int) -> SourceScores:
        """Return rows that are in no generator's list, such as those of the popular list."""
        shape = rows, len(names)
        return cls(tuple(names), np.full(shape, np.nan, dtype=np.float32), np.full(shape, -1, dtype=np.int32))

    @classmethod
    def concatenate(cls, parts: Sequence[SourceScores]) -> SourceScores:
        """Return the rows of one or more tables of the same generators."""
        scores, ranks = (np.concatenate([getattr(part, name) for part in parts]) for name in ("scores", "ranks"))
        return cls(parts[0].names, scores, ranks)

    def mask(self) -> np.ndarray:
        """Return int32 ``[R]``: bit c is set where the list of the generator of code c holds the item."""
        bits = np.array([1 << source_code(name) for name in self.names], dtype=np.int32)
        mask: np.ndarray = ((self.ranks >= 0) * bits).sum(axis=1, dtype=np.int32)
        return mask

    def take(self, rows: np.ndarray | slice) -> SourceScores:
        """Return some rows."""
        return SourceScores(self.names, self.scores[rows], self.ranks[rows])

    def table(self) -> pa.Table:
        """Return the columns ``sources`` (the mask), ``<name>_score`` and ``<name>_rank``."""
        columns = {_MASK: self.mask()}
        for place, name in enumerate(self.names):
            columns |= {f"{name}_score": self.scores[:, place], f"{name}_rank": self.ranks[:, place]}
        return pa.table(columns)

    @classmethod
    def groups(cls, path: Path, names: Sequence[str]) -> Iterator[SourceScores]:
        """Yield the columns of ``names``, a row group at a time; empty row groups are left out.

        Raises:
            DataError: if the file is unreadable, or was written for other generators.
        """
        try:
            with pq.ParquetFile(path) as file:
                found = [name.removesuffix("_rank") for name in file.schema_arrow.names if name.endswith("_rank")]
                if found != list(names):
                    raise DataError(f"{path} holds the sources {found}, expected {list(names)}")
                for group in range(file.num_row_groups):
                    table = file.read_row_group(group)
                    if len(table):
                        yield cls._of_columns(table, names)
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{path} is not a readable Parquet file: {error}") from None

    @classmethod
    def read(cls, path: Path, names: Sequence[str]) -> SourceScores:
        """Read the columns of ``names``.

        Raises:
            DataError: if the file is unreadable, or was written for other generators.
        """
        return cls.concatenate([cls.nothing(names, 0), *cls.groups(path, names)])

    @classmethod
    def _of_columns(cls, table: pa.Table, names: Sequence[str]) -> SourceScores:
        scores, ranks = np.empty((len(table), len(names)), np.float32), np.empty((len(table), len(names)), np.int32)
        for place, name in enumerate(names):
            scores[:, place] = table[f"{name}_score"].to_numpy()
            ranks[:, place] = table[f"{name}_rank"].to_numpy()
        return cls(tuple(names), scores, ranks)
