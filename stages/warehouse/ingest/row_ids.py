"""Row ids: deterministic 64-bit hashes of whole columns, and the count of identical rows.

Strings are hashed with BLAKE2b, once for each distinct value of a chunk. SplitMix64 hashes numbers and
combines columns. Among n different rows, two share an id with a probability of about n^2 / 2^65: 3e-4
for a hundred million rows.

Shapes: R rows of a chunk.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self

import duckdb
import numpy as np
import pyarrow as pa

from stages.contracts.ragged import places_in_rows
from stages.contracts.splitmix64 import GOLDEN, mix64

_NULL_NUMBER = np.uint64(0x6A09E667F3BCC909)


def hash_text(text: str) -> np.uint64:
    """Return the 64-bit hash of one string."""
    return np.uint64(int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest(), "little"))


def hash_strings(column: Any) -> np.ndarray:
    """Return uint64 ``[R]`` hashes of an Arrow string array; null hashes to 0."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    encoded = column.dictionary_encode()
    distinct = encoded.dictionary.to_pylist()
    digests = b"".join(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest() for text in distinct)
    table = np.concatenate([np.frombuffer(digests, dtype="<u8"), np.zeros(1, dtype=np.uint64)])
    return np.asarray(table[encoded.indices.fill_null(len(distinct)).to_numpy(zero_copy_only=False)])


def hash_numbers(column: Any) -> np.ndarray:
    """Return uint64 ``[R]`` hashes of an int64 or float64 Arrow array; -0.0 hashes as 0.0."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    values = column.fill_null(0).to_numpy(zero_copy_only=False)
    if values.dtype == np.float64:
        values = values + 0.0
    hashed = mix64(values.view(np.uint64) + GOLDEN)
    return np.where(column.is_null().to_numpy(zero_copy_only=False), _NULL_NUMBER, hashed)


def combine(parts: Iterable[np.ndarray | np.uint64], size: int) -> np.ndarray:
    """Return uint64 ``[R]``: one hash of several columns; it depends on the order of the columns."""
    combined = np.full(size, GOLDEN, dtype=np.uint64)
    for part in parts:
        combined = mix64(combined * GOLDEN + part)
    return combined


class Occurrences:
    """Numbers identical rows 0, 1, 2, … over the chunks of one file.

    The hashes of earlier chunks are kept in a temporary DuckDB database, which has a memory limit and
    spills to disk. So a file of any size is numbered in bounded memory. The database is opened with the
    second chunk.
    """

    def __init__(self, memory_limit: str = "256MB") -> None:
        self._memory_limit = memory_limit
        self._connection: duckdb.DuckDBPyConnection | None = None
        self._pending: np.ndarray | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._connection is not None:
            self._connection.close()

    def number(self, hashes: np.ndarray) -> np.ndarray:
        """Return int64 ``[R]``: how often each hash came before, in this chunk and in earlier ones.

        Args:
            hashes: uint64 ``[R]`` of the next chunk.
        """
        if len(hashes) == 0:
            return np.zeros(0, dtype=np.int64)
        distinct, inverse, counts = np.unique(hashes, return_inverse=True, return_counts=True)
        order = np.argsort(inverse, kind="stable")
        within = np.empty(len(hashes), dtype=np.int64)
        within[order] = places_in_rows(counts)
        return np.asarray(within + self._earlier(distinct, hashes)[inverse])

    def _earlier(self, distinct: np.ndarray, hashes: np.ndarray) -> np.ndarray:
        before, self._pending = self._pending, hashes
        earlier = np.zeros(len(distinct), dtype=np.int64)
        if before is None:
            return earlier
        if self._connection is None:
            self._connection = duckdb.connect(config={"memory_limit": self._memory_limit, "threads": 2})
            self._connection.execute("CREATE TABLE seen (hash UBIGINT)")
        self._connection.register("before", pa.table({"hash": before}))
        self._connection.execute("INSERT INTO seen SELECT hash FROM before")
        self._connection.register("chunk", pa.table({"hash": distinct}))
        query = "SELECT hash, count(*) FROM seen WHERE hash IN (SELECT hash FROM chunk) GROUP BY hash"
        found = self._connection.sql(query).to_arrow_table()
        earlier[np.searchsorted(distinct, found.column(0).to_numpy())] = found.column(1).to_numpy()
        return earlier
