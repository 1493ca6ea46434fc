"""Turn typed columns into text without losing a digit; ids that are not exact are refused.

A float holds every whole number only below a limit. From the limit on, two ids may have become the same number
before the file was written. So a float is an id only if it is whole and below the limit; decimals and integers
are exact at any size.

Shapes: R rows of a chunk.
"""

from __future__ import annotations

import math
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from stages.contracts.errors import DataError
from stages.warehouse.mapping import ColumnMapping

_LIMITS = {16: 2**11, 32: 2**24, 64: 2**53}
"""By the bits of a float: the first whole number that shares its representation with another one."""

_ID_FIELDS = ("user_id", "item_id", "event_id", "signal_column")
_NUMBER_FIELDS = ("event_time", "value_column", "created_at", "duration")
_DIGITS = 76
"""Digits of Arrow's widest decimal."""


def id_columns(mapping: ColumnMapping) -> dict[str, str]:
    """Return the file columns that hold ids, each with its field of the mapping.

    A time or value column that is part of an event's id is not among them: it keeps its fraction.
    """
    numbers = {column for field, column in mapping.named if field in _NUMBER_FIELDS}
    named = reversed(mapping.named)
    return {column: field for field, column in named if field in _ID_FIELDS and column not in numbers}


def exact_text(column: Any) -> Any:
    """Return large_string ``[R]`` of an Arrow array: a whole number of any type becomes its digits.

    7, 7.0 and 7.00 become "7". A float that is not whole, or not below its limit, becomes its shortest decimal text.
    """
    kind = column.type
    if pa.types.is_floating(kind):
        whole = _exact_floats(column)
        digits = pc.if_else(whole, column, None).cast(pa.float64()).cast(pa.int64()).cast(pa.large_string())
        return pc.if_else(whole, digits, column.cast(pa.large_string()))
    if pa.types.is_decimal(kind):
        whole = _whole_decimals(column)
        # Cast to scale 0: with another scale Arrow would write 700 as 7E+2, and 0 as 0E-9.
        digits = pc.if_else(whole, column, None).cast(pa.decimal256(_DIGITS, 0)).cast(pa.large_string())
        return pc.if_else(whole, digits, column.cast(pa.large_string()))
    return column.cast(pa.large_string())


def exact_ids(column: Any, field: str, name: str) -> Any:
    """Return large_string ``[R]`` ids, exact in every digit; NaN is null.

    Args:
        column: Arrow array.
        field: of the mapping, for the message.
        name: of the file's column, for the message.

    Raises:
        DataError: if a float or decimal is not whole, or a float is too large to be exact.
    """
    kind = column.type
    if pa.types.is_floating(kind):
        column = pc.if_else(pc.is_nan(column), None, column)
        whole, limit = _exact_floats(column), _LIMITS[kind.bit_width]
    elif pa.types.is_decimal(kind):
        whole, limit = _whole_decimals(column), None
    else:
        return exact_text(column)
    lost = pc.and_(column.is_valid(), pc.invert(whole))
    if pc.any(lost).as_py():
        raise not_exact(field, name, column.filter(lost)[0].as_py(), str(kind), limit)
    return exact_text(column)


def exact_number(value: float) -> str | None:
    """Return the digits of a float64 that is whole and below its limit, else None."""
    return str(int(value)) if math.isfinite(value) and value.is_integer() and abs(value) < _LIMITS[64] else None


def not_exact(field: str, name: str, value: object, kind: str, limit: int | None = _LIMITS[64]) -> DataError:
    """Return the error of a value that is no exact id."""
    below = f" and, in a column of type {kind}, below {limit:,}: from there on digits are lost" if limit else ""
    return DataError(
        f"mapping.{field} = {name!r}: found {value} ({kind}), which is not taken as an id; allowed is text, an "
        f"integer, or a number that is whole{below}. Write the column as text or as integers"
    )


def _whole_decimals(column: Any) -> Any:
    """Return boolean ``[R]``, never null: whether a decimal is whole."""
    whole = column.is_valid() if column.type.scale <= 0 else pc.equal(column, pc.trunc(column))
    return pc.fill_null(whole, False)


def _exact_floats(column: Any) -> Any:
    """Return boolean ``[R]``, never null: whether a float is whole and below its limit."""
    wide = column.cast(pa.float64())
    below = pc.less(pc.abs(wide), float(_LIMITS[column.type.bit_width]))
    return pc.fill_null(pc.and_(below, pc.equal(wide, pc.floor(wide))), False)
