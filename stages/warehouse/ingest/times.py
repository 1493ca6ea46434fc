"""Check that the times of a data source are plausible: a wrong unit is refused before anything is stored.

Seconds that are read as milliseconds put forty days into an hour of January 1970; milliseconds that are
read as seconds lie beyond the year 50000. Every row counts here, even if it is quarantined for its time.

Shapes: R rows of a chunk.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from stages.contracts.errors import DataError
from stages.warehouse.database.tables import INTERACTIONS, ITEMS
from stages.warehouse.ingest.parse import SCALE, as_floats
from stages.warehouse.mapping import FileSource, InteractionColumns

EARLIEST_MS = 631_152_000_000
"""1990-01-01: no log of a recommender is older."""

YEAR_1971_MS = 31_536_000_000
HOUR_MS = 3_600_000
MANY_USERS, MANY_EVENTS = 20, 100
"""A data source with at least so many users and events within one hour is refused as a mistake."""

_SOON_MS = 2 * 24 * HOUR_MS
_SHARE = 0.01
_LATEST_S = 253_402_300_799


@dataclass
class Times:
    """Counts and limits of the times of some files.

    Attributes:
        now_ms: the clock, int ms UTC.
        rows: rows with a time, or with a number although the unit is a text format.
        plausible: of these rows, those with a time from 1990 to now.
        soon: of these rows, those with a time in the next two days.
        first_ms, last_ms: earliest and latest time in the mapping's unit, ms UTC; they may be out of range.
        first_ok_ms, last_ok_ms: earliest and latest plausible time.
        fits: how many numbers would be plausible in each unit.
        first, last: smallest and largest number.
    """

    now_ms: int
    rows: int = 0
    plausible: int = 0
    soon: int = 0
    first_ms: float = np.inf
    last_ms: float = -np.inf
    first_ok_ms: float = np.inf
    last_ok_ms: float = -np.inf
    fits: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SCALE, 0))
    first: float = np.inf
    last: float = -np.inf

    def add(self, column: Any, unit: str, event_time_ms: Any) -> None:
        """Count the times of a chunk.

        Args:
            column: ``[R]``, the file's column.
            unit: as ``time_unit`` of a mapping.
            event_time_ms: ``[R]``, the parsed times; null where a value is no time.
        """
        read = event_time_ms.cast(pa.float64()).fill_null(np.nan).to_numpy(zero_copy_only=False)
        is_text = unit not in SCALE and not pa.types.is_timestamp(column.type)
        if is_text:
            column = column.filter(pa.array(np.isnan(read)))
        numbers = _numbers(column)
        if is_text:
            self.rows += int(np.isfinite(numbers).sum())
        elif unit in SCALE and not pa.types.is_timestamp(column.type):
            factor, divisor = SCALE[unit]
            read = np.where(np.isnan(read), numbers * (factor / divisor), read)
        times = read[np.isfinite(read)]
        ok = times[(times >= EARLIEST_MS) & (times <= self.now_ms)]
        self.rows += len(times)
        self.plausible += len(ok)
        self.soon += int(((times > self.now_ms) & (times <= self.now_ms + _SOON_MS)).sum())
        self.first_ms, self.last_ms = _widen(self.first_ms, self.last_ms, times)
        self.first_ok_ms, self.last_ok_ms = _widen(self.first_ok_ms, self.last_ok_ms, ok)
        found = numbers[np.isfinite(numbers)]
        self.first, self.last = _widen(self.first, self.last, found)
        for name, (factor, divisor) in SCALE.items():
            scaled = found * (factor / divisor)
            self.fits[name] += int(((scaled >= EARLIEST_MS) & (scaled <= self.now_ms)).sum())

    def merge(self, other: Times) -> None:
        """Add the times of another file."""
        for name in ("rows", "plausible", "soon"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("first_ms", "first_ok_ms", "first"):
            setattr(self, name, min(getattr(self, name), getattr(other, name)))
        for name in ("last_ms", "last_ok_ms", "last"):
            setattr(self, name, max(getattr(self, name), getattr(other, name)))
        for name in self.fits:
            self.fits[name] += other.fits[name]

    @property
    def settled(self) -> bool:
        """Whether the plausible times span more than an hour, so that more files cannot change the verdict."""
        return self.last_ok_ms - self.first_ok_ms > HOUR_MS

    def check(self, what: str, unit: str, soon: bool) -> None:
        """Refuse implausible times.

        Args:
            what: file or data source, for the message.
            unit: the unit in which the times were read.
            soon: whether times in the next two days count as plausible; such rows are loaded later.

        Raises:
            DataError: if fewer than 1% of the times are plausible; the message has the unit that would fit.
        """
        possible = self.plausible + (self.soon if soon else 0)
        if self.rows == 0 or possible >= _SHARE * self.rows:
            return
        span = f"{moment(self.first_ms)} to {moment(self.last_ms)}, "
        if self.first_ms > self.last_ms:
            span, fault = "", "numbers"
        elif self.last_ms < EARLIEST_MS:
            fault = "which ends before 1990"
        elif self.first_ms > self.now_ms:
            fault = "which begins in the future"
        else:
            fault = f"with {self.plausible:,} of {self.rows:,} times between 1990 and now"
        raise DataError(
            f"{what}: the times of {self.rows:,} rows, read as time_unit = {unit!r}, are {span}{fault}; nothing of it "
            f"was stored. {self._advice(unit)} If these times are right, allow them: --allow-times, or "
            "allow_times: true in the mapping"
        )

    def _advice(self, unit: str) -> str:
        best = max(self.fits, key=lambda name: self.fits[name])
        if self.fits[best] < 0.5 * self.rows:
            return f"No unit puts them between 1990 and now; allowed are {', '.join(SCALE)}, iso or a strptime format."
        factor, divisor = SCALE[best]
        first, last = (moment(number * (factor / divisor)) for number in (self.first, self.last))
        how = f"set time_unit: {best}" if unit != best else f"they are numbers in {best} that were stored as timestamps"
        return f"As {best} they would span {first} to {last}: {how}."


@dataclass(frozen=True)
class Span:
    """The warehouse's events of a data source: rows, users, and int ms UTC of the first and last event."""

    events: int
    users: int
    first_ms: int
    last_ms: int

    def __str__(self) -> str:
        """Return the line that an ingestion prints."""
        span = f"{moment(self.first_ms)} to {moment(self.last_ms)}"
        return f"{self.events:,} events of {self.users:,} users, {span}"


def source_span(connection: Connection, source_name: str | None) -> Span | None:
    """Return the span of a data source (None: of all events), or None if there is no event."""
    events = INTERACTIONS.c
    statement = sa.select(
        sa.func.count(),
        sa.func.count(events.user_id.distinct()),
        sa.func.min(events.event_time_ms),
        sa.func.max(events.event_time_ms),
    )
    if source_name is not None:
        statement = statement.where(events.source == source_name)
    row = connection.execute(statement).one()
    return Span(*(int(number) for number in row)) if row[0] else None


def born_line(connection: Connection) -> str | None:
    """Return the line that an ingestion prints on the items' creation times, or None if no item has one."""
    born = ITEMS.c.created_at_ms
    row = connection.execute(sa.select(sa.func.count(born), sa.func.min(born), sa.func.max(born))).one()
    if not row[0]:
        return None
    count, first, last = map(int, row)
    line = f"{count:,} items with created_at, {moment(first)} to {moment(last)}"
    if first >= 0 and last < YEAR_1971_MS:
        return f"warning: {line}: all in 1970; check time_unit in the items' mapping"
    return line


def check_within_an_hour(connection: Connection, source_name: str) -> None:
    """Refuse a data source with many users if all of its events lie within one hour.

    Raises:
        DataError: with the span, if the data source is refused.
    """
    span = source_span(connection, source_name)
    if span is None or span.users < MANY_USERS or span.events < MANY_EVENTS or span.last_ms - span.first_ms > HOUR_MS:
        return
    raise DataError(
        f"{source_name}: {span}, which is within an hour; nothing of it was stored. Check that event_time is the "
        "column of the event's time, and time_unit its unit. If these times are right, allow them: --allow-times, or "
        "allow_times: true in the mapping"
    )


def moment(time_ms: float) -> str:
    """Return a time as ISO 8601 in UTC, or the year alone if it is not between 1000 and 9999."""
    seconds = time_ms / 1000
    if -62_135_596_800 <= seconds <= _LATEST_S:
        when = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=int(seconds // 1))
        return when.strftime("%Y-%m-%dT%H:%M:%SZ") if when.year >= 1000 else f"the year {when.year}"
    return f"the year {1970 + seconds / 31_556_952:,.0f}" if np.isfinite(seconds) else "no time"


def is_judged(file: FileSource) -> bool:
    """Return whether a file's times are checked; the times of item lists are made up."""
    mapping = file.mapping
    return isinstance(mapping, InteractionColumns) and not mapping.allow_times and file.resolved_format() != "sequences"


def _numbers(column: Any) -> np.ndarray:
    """Return float64 ``[R]``: the number behind each time, NaN where there is none."""
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.int64())
    values = as_floats(column)
    return np.asarray(values.fill_null(np.nan).to_numpy(zero_copy_only=False))


def _widen(first: float, last: float, values: np.ndarray) -> tuple[float, float]:
    if len(values) == 0:
        return first, last
    return min(first, float(values.min())), max(last, float(values.max()))
