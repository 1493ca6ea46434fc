"""Readers of the published files. Whatever is wrong with a file is a ``DataError`` that names file, line and value."""

from __future__ import annotations

import gzip
import sys
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.retrieval.data import Interactions, number
from stages.contracts.errors import DataError
from stages.contracts.ragged import row_offsets

_DIGITS = 18
"""Most digits of a number, so that it fits into an int64."""
_LAST_SECOND = 253_402_300_799
"""The end of the year 9999."""


def find(data: Path, names: Iterable[str]) -> Path:
    """Return ``data`` itself where it is a file, or the first of ``names`` in it, plain or with ``.gz``.

    Raises:
        DataError: if there is none.
    """
    names = tuple(names)
    for path in (data, *(path for name in names for path in _named(data, name))):
        if is_file(path):
            return path
    raise DataError(f"{data}: no such file; allowed is {' or '.join(names)} (also .gz), or the folder that holds it")


def find_each(data: Path, names: Sequence[str]) -> list[Path]:
    """Return each of ``names`` in a folder, plain or with ``.gz``.

    Raises:
        DataError: if ``data`` is no folder, or lacks one.
    """
    wanted = f"this protocol needs {' and '.join(names)} (also .gz): give the folder that holds them"
    if is_file(data):
        raise DataError(f"{data}: one file; {wanted}")
    found = [next((path for path in _named(data, name) if is_file(path)), None) for name in names]
    for name, path in zip(names, found, strict=True):
        if path is None:
            raise DataError(f"{data}: there is no {name}; {wanted}")
    return [path for path in found if path is not None]


def is_file(path: Path) -> bool:
    """Return whether there is such a file.

    Raises:
        DataError: if the system cannot tell.
    """
    try:
        return path.is_file()
    except OSError as error:
        raise DataError(f"{str(path)[:200]}: {error.strerror}") from None


def _named(folder: Path, name: str) -> tuple[Path, Path]:
    return folder / name, folder / f"{name}.gz"


def read_movielens(data: Path) -> Interactions:
    """Read ``u.data`` of MovieLens 100K: user, item, rating, seconds. All ratings count; rows keep the file's order.

    Raises:
        DataError: if the file is empty, or a line is not four whole numbers.
    """
    path = find(data, ["u.data"])
    lines = read_lines(path)
    for place, line in lines:
        if len(line) != 4:
            raise DataError(
                f"{path}: line {place}: {len(line)} fields, not 4; allowed are rows of user, item, rating, seconds"
            )
    numbers = whole_numbers(path, lines, "rows of user, item, rating, seconds").reshape(-1, 4)
    user, item, _, time = numbers.T
    if len(late := np.flatnonzero(time > _LAST_SECOND)):
        place = lines[late[0]][0]
        raise DataError(f"{path}: line {place}: seconds = {time[late[0]]}: allowed are 0 to {_LAST_SECOND}")
    return replace(numbered(path, user, item, time), in_seconds=True)


def read_chronological(data: Path) -> Interactions:
    """Read MovieLens 1M with ``user_id``, ``movie_id``, ``chrono_pos``; rows at -1 are dropped.

    Raises:
        DataError: if the file is no Parquet, a column is missing or not of whole numbers, or no row is left.
    """
    path = find(data, ["interactions.parquet"])
    names = ["user_id", "movie_id", "chrono_pos"]
    columns = read_columns(path, names)
    for name, column in zip(names, columns, strict=True):
        if not pa.types.is_integer(column.type) or column.null_count:
            raise DataError(f"{path}: {name} is {column_in_words(column)}; allowed are whole numbers")
    user, item, time = (column.to_numpy().astype(np.int64) for column in columns)
    kept = time >= 0
    return numbered(path, user[kept], item[kept], time[kept])


def read_sequences(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return user and item, int64 ``[R]``, of lines ``user item item …``, in their order; also of a ``.gz``.

    A user alone on a line has no item there.

    Raises:
        DataError: if a word is not a whole number from 0, or there is no row.
    """
    lines = read_lines(path)
    numbers = whole_numbers(path, lines, "lines of whole numbers: user item item …")
    lengths = np.array([len(line) for _, line in lines], dtype=np.int64)
    starts = row_offsets(lengths)[:-1]
    user, item = np.repeat(numbers[starts], lengths - 1), np.delete(numbers, starts)
    if not len(user):
        raise DataError(f"{path}: no line has an item; allowed are lines of whole numbers: user item item …")
    return user, item


def read_lines(path: Path) -> list[tuple[int, list[bytes]]]:
    """Return the words of each line that has any, with its number from 1; also of a ``.gz``.

    Raises:
        DataError: if the file cannot be read, is no gzip though it ends in ``.gz``, or is empty.
    """
    try:
        text = path.read_bytes()
        text = gzip.decompress(text) if path.suffix == ".gz" else text
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: unreadable: {error}") from None
    lines = [(place, words) for place, line in enumerate(text.splitlines(), start=1) if (words := line.split())]
    if not lines:
        raise DataError(f"{path}: the file is empty; allowed is one row or more")
    return lines


def whole_numbers(path: Path, lines: Sequence[tuple[int, Sequence[bytes]]], allowed: str) -> np.ndarray:
    """Return all words of the lines, int64.

    Raises:
        DataError: if one is not a whole number from 0.
    """
    words = [word for _, line in lines for word in line]
    if not all(map(bytes.isdigit, words)) or max(map(len, words)) > _DIGITS:
        for place, line in lines:
            for word in line:
                if not word.isdigit() or len(word) > _DIGITS:
                    raise DataError(
                        f"{path}: line {place}: {word[:40].decode('utf-8', 'replace')!r} is not a whole number from 0 "
                        f"to 10^{_DIGITS} - 1; allowed are {allowed}"
                    )
    return np.array(words, dtype=np.int64)


def numbered(path: Path, user: np.ndarray, item: np.ndarray, time: np.ndarray | None) -> Interactions:
    """Return rows with users and items numbered as they appear.

    Raises:
        DataError: if there is no row, or an id is below 0.
    """
    if not len(user):
        raise DataError(f"{path}: no row is left; allowed is one or more")
    for name, ids in (("user", user), ("item", item)):
        if ids.min() < 0:
            raise DataError(f"{path}: {name} = {ids.min()}: allowed are whole numbers from 0")
    (user, users), (item, items) = number(user), number(item)
    return Interactions(user, item, time, len(users), len(items))


def distinct(path: Path, rows: Interactions) -> Interactions:
    """Return the rows without those that repeat a pair, and print on stderr how many were removed.

    The earliest row of a pair stays; without times, or with equal times, the first in the file.
    """
    place = np.arange(len(rows))
    order = place if rows.time is None else np.lexsort((place, rows.time))
    _, first = np.unique((rows.user * rows.items + rows.item)[order], return_index=True)
    if len(first) == len(rows):
        return rows
    print(
        f"{path}: {len(rows) - len(first)} of {len(rows)} rows repeat a user's item; the first of each counts",
        file=sys.stderr,
    )
    return rows.take(np.sort(order[first]))


def read_columns(path: Path, names: Sequence[str]) -> list[pa.ChunkedArray]:
    """Return columns of a Parquet file.

    Raises:
        DataError: if the file is unreadable, a column is missing, or there is no row.
    """
    allowed = f"allowed is Parquet with {', '.join(names)}"
    try:
        table = pq.read_table(path, columns=list(names))
        columns = [table[name] for name in names]
    except (OSError, KeyError, pa.ArrowException) as error:
        raise DataError(f"{path}: {error}; {allowed}") from None
    if not table.num_rows:
        raise DataError(f"{path}: no row; {allowed}, and one row or more")
    return columns


def read_ids(path: Path, name: str, column: pa.ChunkedArray) -> np.ndarray:
    """Return codes of the values of a column of whole numbers or text, int64, numbered as they appear.

    Raises:
        DataError: if a value is missing, below 0, or of another kind.
    """
    kind = column.type
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    if not (text or pa.types.is_integer(kind)) or column.null_count:
        raise DataError(f"{path}: {name} is {column_in_words(column)}; allowed are whole numbers from 0, or text")
    if not text and (least := column.to_numpy().min()) < 0:
        raise DataError(f"{path}: {name} = {least}: allowed are whole numbers from 0, or text")
    return codes(path, name, column)


def codes(path: Path, name: str, column: pa.ChunkedArray) -> np.ndarray:
    """Return the values of a column numbered as they appear, int64; a missing one is a value of its own.

    Raises:
        DataError: if the values cannot be compared, such as lists.
    """
    try:
        found = column.combine_chunks().dictionary_encode(null_encoding="encode")
    except pa.ArrowException:
        raise DataError(f"{path}: {name} is {column.type}; allowed are whole numbers or text") from None
    return np.asarray(found.indices.to_numpy(zero_copy_only=False), dtype=np.int64)


def read_times_ms(path: Path, name: str, column: pa.ChunkedArray) -> np.ndarray:
    """Return a column of timestamps, or of whole milliseconds, as ms since 1970, int64.

    Raises:
        DataError: if a value is missing or of another kind.
    """
    kind = column.type
    if not (pa.types.is_timestamp(kind) or pa.types.is_integer(kind)) or column.null_count:
        raise DataError(f"{path}: {name} is {column_in_words(column)}; allowed are timestamps, or whole milliseconds")
    return np.asarray(column.to_numpy().astype("datetime64[ms]").astype(np.int64))


def column_in_words(column: pa.ChunkedArray) -> str:
    """Return what a column holds."""
    return f"{column.type}" + (f" with {column.null_count} missing values" if column.null_count else "")


def column_names(path: Path) -> list[str]:
    """Return the columns of a Parquet file.

    Raises:
        DataError: if the file is unreadable.
    """
    try:
        names: list[str] = pq.read_schema(path).names
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: {error}; allowed is Parquet") from None
    return names
