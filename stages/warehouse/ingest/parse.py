"""Parse columns of a chunk into typed values; rows that do not parse are marked with a reason.

Arrow casts a whole column at once. If that fails, each distinct value is parsed on its own, so a bad
row costs a little time and does not spoil its chunk.

Shapes: R rows of a chunk.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.warehouse.readers.chunk import Chunk, Reject
from stages.warehouse.readers.exact import exact_ids, exact_text

LATEST_MS = 253_402_300_799_999
"""9999-12-31, the latest accepted time."""

LONGEST_ID = 1024
"""Bytes; PostgreSQL's index cannot hold much longer keys."""

_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?|[+-]?(nan|inf|infinity)", re.IGNORECASE | re.ASCII)
SCALE = {"days": (86_400_000, 1), "s": (1000, 1), "ms": (1, 1), "us": (1, 1000), "ns": (1, 1_000_000)}
"""(factor, divisor) of each unit: a number of units since 1970 is number * factor / divisor ms."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Faults:
    """The first reason to quarantine each row of a chunk."""

    def __init__(self, size: int) -> None:
        self._reasons: list[str] = []
        self._codes = np.full(size, -1, dtype=np.int16)

    def mark(self, rows: np.ndarray, reason: str) -> None:
        """Set the reason of the rows of a boolean ``[R]`` mask, except rows that have a reason already."""
        self._reasons.append(reason)
        self._codes[rows & (self._codes < 0)] = len(self._reasons) - 1

    @property
    def good(self) -> np.ndarray:
        """Bool ``[R]``: rows without a reason."""
        return self._codes < 0

    def rejects(self, chunk: Chunk) -> list[Reject]:
        """Return the marked rows."""
        return [
            Reject(int(chunk.row_numbers[row]), self._reasons[self._codes[row]], chunk.raw(int(row)))
            for row in np.flatnonzero(self._codes >= 0)
        ]


def parse_id(column: Any, field: str, faults: Faults, name: str = "") -> Any:
    """Return large_string ``[R]`` ids; missing, blank or too long ones are marked.

    Args:
        column: strings, or exact values of any type.
        field: name for reasons.
        faults: marks the rows.
        name: of the file's column, for the error.

    Raises:
        DataError: if a number is not whole, or a float is too large to be exact.
    """
    text = parse_list(exact_ids(column, field, name or field), field, faults)
    long = pc.greater(pc.fill_null(pc.binary_length(text), 0), LONGEST_ID)
    faults.mark(long.to_numpy(zero_copy_only=False), f"{field}_too_long")
    return text


def parse_list(column: Any, field: str, faults: Faults) -> Any:
    """Return large_string ``[R]``, text of any length; missing or blank ones are marked."""
    text = parse_text(column, field, faults)
    blank = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(text), ""), True)
    faults.mark(blank.to_numpy(zero_copy_only=False), f"missing_{field}")
    return text


def parse_text(column: Any, field: str, faults: Faults) -> Any:
    """Return large_string ``[R]``; a NUL character, which PostgreSQL cannot store, is marked."""
    text = exact_text(column)
    nul = pc.fill_null(pc.match_substring(text, "\0"), False)
    faults.mark(nul.to_numpy(zero_copy_only=False), f"nul_character_in_{field}")
    return text


def parse_number(column: Any, field: str, faults: Faults, required: bool) -> Any:
    """Return float64 ``[R]``; infinities, invalid numbers and, if required, nulls are marked."""
    if pa.types.is_timestamp(column.type):
        faults.mark(np.ones(len(column), dtype=bool), f"invalid_{field}")
        return pa.nulls(len(column), pa.float64())
    is_text = not any(kind(column.type) for kind in (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal))
    missing = _missing(column)
    values = _floats(column, missing) if is_text else column.cast(pa.float64(), safe=False)
    if not is_text and not required:
        missing = missing | pc.fill_null(pc.is_nan(values), False).to_numpy(zero_copy_only=False)
    if required:
        faults.mark(missing, f"missing_{field}")
    faults.mark(_nulls(values) & ~missing, f"invalid_{field}")
    finite = pc.fill_null(pc.is_finite(values), True).to_numpy(zero_copy_only=False)
    faults.mark(~finite & ~missing, f"not_finite_{field}")
    return pc.if_else(pa.array(finite & ~missing), values, None)


def parse_time(column: Any, unit: str, field: str, faults: Faults, required: bool) -> Any:
    """Return int64 ``[R]`` ms UTC; invalid times and times beyond the year 9999 are marked.

    Args:
        column: strings, numbers or timestamps.
        unit: as ``time_unit`` of a mapping.
        field: name for reasons.
        faults: marks the rows.
        required: whether a missing time is a fault; else it becomes null.
    """
    missing = _missing(column)
    if pa.types.is_timestamp(column.type):
        values = column.cast(pa.timestamp("ms", tz=column.type.tz), safe=False).cast(pa.int64())
    elif unit in SCALE:
        values = _scaled(column, unit, missing)
    else:
        values = _formatted(exact_text(column), unit)
    far = pc.fill_null(pc.greater(pc.abs(values), LATEST_MS), False).to_numpy(zero_copy_only=False)
    if required:
        faults.mark(missing, f"missing_{field}")
    faults.mark((_nulls(values) & ~missing) | far, f"invalid_{field}")
    return pc.if_else(pa.array(~far), values, None)


def as_floats(column: Any) -> Any:
    """Return float64 ``[R]`` of strings or numbers; invalid numbers become null."""
    kinds = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal)
    if any(kind(column.type) for kind in kinds):
        return column.cast(pa.float64(), safe=False)
    return _floats(column, _missing(column))


def each(column: Any, parse: Callable[[str], Any], kind: Any) -> Any:
    """Apply ``parse`` to each distinct string of a column; null stays null."""
    encoded = column.dictionary_encode()
    table = pa.array([parse(text) for text in encoded.dictionary.to_pylist()], kind)
    return table.take(encoded.indices)


def _missing(column: Any) -> np.ndarray:
    if not pa.types.is_large_string(column.type):
        return _nulls(column)
    blank = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(column), ""), True)
    return np.asarray(blank.to_numpy(zero_copy_only=False))


def _nulls(column: Any) -> np.ndarray:
    return np.asarray(column.is_null().to_numpy(zero_copy_only=False))


def _floats(column: Any, missing: np.ndarray) -> Any:
    text = pc.if_else(pa.array(~missing), column.cast(pa.large_string()), None)
    try:
        return text.cast(pa.float64())
    except pa.ArrowInvalid:
        return each(text, _float, pa.float64())


def _float(text: str) -> float | None:
    text = text.strip()
    return float(text) if _NUMBER.fullmatch(text) else None


def _scaled(column: Any, unit: str, missing: np.ndarray) -> Any:
    factor, divisor = SCALE[unit]
    values = column
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        try:
            values = column.cast(pa.int64())
        except pa.ArrowInvalid:
            values = _floats(column, missing)
    whole = pa.types.is_integer(values.type)
    array = values.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64 if whole else np.float64)
    # Compare before scaling: numbers far out of range would overflow.
    limit = (LATEST_MS + 1.0) * divisor / factor
    usable = np.isfinite(array) & (array >= -limit) & (array <= limit)
    array = np.where(usable, array, 0)
    scaled = array * factor // divisor if whole else np.round(array * factor / divisor).astype(np.int64)
    return pa.array(scaled, mask=~usable | _nulls(values))


def _formatted(text: Any, unit: str) -> Any:
    # Arrow casts a column if all of its times have a zone, or none has; other columns are parsed one by one.
    for kind in (pa.timestamp("us"), pa.timestamp("us", tz="UTC")) if unit == "iso" else ():
        try:
            micros = text.cast(kind).cast(pa.int64())
        except pa.ArrowInvalid:
            continue
        return pa.array(micros.fill_null(0).to_numpy(zero_copy_only=False) // 1000, mask=_nulls(micros))
    return each(text, lambda value: _moment_ms(value.strip(), unit), pa.int64())


def _moment_ms(text: str, unit: str) -> int | None:
    try:
        moment = datetime.fromisoformat(text) if unit == "iso" else datetime.strptime(text, unit)
    except ValueError:
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return (moment - _EPOCH) // timedelta(milliseconds=1)
