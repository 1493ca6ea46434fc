"""Results of the contracts: as data, as a table and as an error message."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from tabulate import tabulate

from stages.contracts.config import Config
from stages.dataset.checks.config import Limits

Level = Literal["ok", "warn", "fail", "skipped"]

_LATEST_MS = 253_402_300_799_000  # the last second of the year 9999
_WORD = 60
_OF_USERS = frozenset({"user_id", "raw"})
"""Columns that identify a user; ``raw`` is a row of a file as it was read."""


class ContractResult(Config):
    """One measured number against its limits.

    Attributes:
        name: the contract and, after a dot, what is measured, such as ``nulls.title``.
        level: the outcome.
        value: the measured number; None if the contract was skipped or there is no number.
        limits: the limits that are set, by ``warn_below``, ``fail_below``, ``warn_above``, ``fail_above``.
        found: the number in words, with its counts; or why the contract was skipped.
        rows: a few sample rows, if the level is not ``ok``.
        sql: a statement that shows more of the rows.
    """

    name: str
    level: Level
    value: float | None = None
    limits: dict[str, float] = {}
    found: str
    rows: tuple[dict[str, Any], ...] = ()
    sql: str | None = None

    def headline(self) -> str:
        """Return the name, the number, its limits and the counts in one line."""
        number = "" if self.value is None else f" = {self.value:.6g}"
        limits = limits_in_words(self.limits)
        return f"{self.name}{number} [{self.level}{': ' + limits if limits else ''}] {self.found}"


class ContractReport(Config):
    """Every contract's outcome.

    Attributes:
        as_of_ms: of the run, int ms UTC.
        results: in the order of evaluation.
    """

    as_of_ms: int
    results: tuple[ContractResult, ...]

    def of_level(self, level: Level) -> tuple[ContractResult, ...]:
        """Return the results with this outcome."""
        return tuple(result for result in self.results if result.level == level)

    @property
    def metrics(self) -> dict[str, float]:
        """The number of results by level, each measured number, and a 1 for each warning."""
        levels: tuple[Level, ...] = ("ok", "warn", "fail", "skipped")
        counts = {f"contracts_{level}": float(len(self.of_level(level))) for level in levels}
        values = {result.name: result.value for result in self.results if result.value is not None}
        return {**counts, **values, **{f"warned/{result.name}": 1.0 for result in self.of_level("warn")}}


def level_of(value: float, limits: Limits) -> Level:
    """Return the level of a number; a number equal to a limit is within it."""
    if _beyond(value, limits.fail_below, limits.fail_above):
        return "fail"
    return "warn" if _beyond(value, limits.warn_below, limits.warn_above) else "ok"


def set_limits(limits: Limits) -> dict[str, float]:
    """Return the limits that are set, by name."""
    values = {name: getattr(limits, name) for name in Limits.model_fields}
    return {name: value for name, value in values.items() if value is not None}


def limits_in_words(limits: Mapping[str, float]) -> str:
    """Return the limits as text, such as ``warn above 0.01, fail above 0.2``."""
    return ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in limits.items())


def failure_text(report: ContractReport, kept: str | None = None) -> str:
    """Return the error message: every failed contract with its numbers, limits and rows, without user ids.

    Error messages end up in logs and chat rooms. User ids are in the report only, which stays in ``SLUICE_HOME``.

    Args:
        report: a report with at least one failure.
        kept: path of the full report, or None.
    """
    failed, warned = report.of_level("fail"), report.of_level("warn")
    names = ", ".join(result.name for result in failed)
    head = (
        f"{len(failed)} of {len(report.results)} data contracts failed ({names}), {len(warned)} warned; nothing trained"
    )
    lines = [head] if kept is None else [head, f"full report with the users and SQL to see more rows: {kept}"]
    for result in failed:
        lines.append(f"- {result.headline()}")
        lines += [f"    {row_in_words(_without_users(row))}" for row in result.rows]
    return "\n".join(lines)


def table_text(report: ContractReport) -> str:
    """Return every result as a line, followed by the rows and the SQL of the results that are not ok."""
    rows = []
    for result in report.results:
        number = "-" if result.value is None else f"{result.value:.6g}"
        limits = limits_in_words(result.limits) or "no limit"
        rows.append([result.level, result.name, number, f"{limits}; {result.found}"])
    alignment = ("left", "left", "right", "left")
    lines = [tabulate(rows, tablefmt="plain", colalign=alignment, disable_numparse=True) if rows else ""]
    for result in (*report.of_level("warn"), *report.of_level("fail")):
        lines += ["", f"{result.name}: rows to look at" if result.rows else f"{result.name}:"]
        lines += [f"  {row_in_words(row)}" for row in result.rows]
        lines += [f"  more: {result.sql}"] if result.sql else []
    return "\n".join(lines)


def _without_users(row: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out user ids; an empty user id stays, since it may be the fault."""
    return {name: value for name, value in row.items() if name not in _OF_USERS or value in {None, ""}}


def row_in_words(row: Mapping[str, Any]) -> str:
    """Return ``name=value`` pairs; a time in ms is followed by its date."""
    return " ".join(f"{name}={_value(name, value)}" for name, value in row.items())


def share_in_words(part: int, whole: int, of: str) -> str:
    """Return a share as text, such as ``12 of 1,000 events (0.012)``."""
    return f"{part:,} of {whole:,} {of} ({part / whole:.3g})" if whole else f"{part:,} of {whole:,} {of}"


def listed(values: Sequence[str]) -> str:
    """Return names for a sentence, or ``none``."""
    return ", ".join(map(repr, values)) or "none"


def _beyond(value: float, low: float | None, high: float | None) -> bool:
    return (low is not None and value < low) or (high is not None and value > high)


def _value(name: str, value: Any) -> str:
    if name.endswith("_ms") and isinstance(value, int) and 0 <= value <= _LATEST_MS:
        return f"{value} ({datetime.fromtimestamp(value / 1000, UTC):%Y-%m-%dT%H:%M:%SZ})"
    text = "null" if value is None else str(value)
    return text if len(text) <= _WORD else f"{text[: _WORD - 1]}…"
