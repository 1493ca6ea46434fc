"""The data of a contract: configuration, measurements that are taken once, and the judging of a number."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from stages.contracts.tables import DAY_MS
from stages.dataset.checks.config import CheckStepConfig, Limits
from stages.dataset.checks.results import ContractResult, level_of, set_limits
from stages.warehouse.database.column_check import ColumnFault, column_faults
from stages.warehouse.profile.profile import (
    DayCounts,
    EventProfile,
    ItemProfile,
    LabelRule,
    Scope,
    daily_counts,
    profile_events,
    profile_items,
)
from stages.warehouse.profile.samples import Rows, take_sample
from stages.warehouse.selection.policies import ActivityPolicy

if TYPE_CHECKING:
    from stages.contracts.snapshot import Task
    from stages.dataset.config import DatasetConfig
    from stages.warehouse.database.engine import Warehouse


class Scene:
    """One evaluation of the contracts.

    Args:
        config: levels, selection, as-of time.
        warehouse: open; it is only read.
    """

    def __init__(self, config: CheckStepConfig, warehouse: Warehouse) -> None:
        self.config = config
        self.limits = config.contracts
        self.warehouse = warehouse
        dataset, as_of_ms = config.dataset, config.as_of_ms
        days = dataset.history_days
        self.scope = Scope(
            signals=dataset.signals,
            start_ms=0 if days is None else as_of_ms - round(days * DAY_MS),
            as_of_ms=as_of_ms,
            now_ms=config.now_ms,
            labels={task.name: LabelRule(task.signals, _raw_minimum(task, dataset)) for task in dataset.tasks},
            ranges=self.limits.values.ranges,
        )
        self.activity = ActivityPolicy(**dataset.activity.model_dump())

    @cached_property
    def faults(self) -> tuple[ColumnFault, ...]:
        """Columns that are missing or of another type."""
        return column_faults(self.warehouse)

    @cached_property
    def events(self) -> EventProfile:
        """Counts from one pass over the events."""
        return profile_events(self.warehouse, self.scope)

    @cached_property
    def items(self) -> ItemProfile:
        """Counts from one pass over the catalogue."""
        return profile_items(self.warehouse)

    @property
    def days(self) -> int:
        """Number of days before the as-of time that the trends cover."""
        trends = (self.limits.volume, self.limits.label_rates)
        return max(trend.days + trend.trailing_days for trend in trends)

    @cached_property
    def daily(self) -> dict[int, DayCounts]:
        """Counts of the last days, by days before the as-of time."""
        return daily_counts(self.warehouse, self.scope, self.days)

    def trailing(self, days: int, trailing_days: int) -> range:
        """Return the days before the judged ones that lie wholly after the first event."""
        oldest = self.events.oldest_ms
        history = 0 if oldest is None else (self.config.as_of_ms - oldest) // DAY_MS
        return range(days, min(days + trailing_days, max(days, history)))

    def judge(self, name: str, value: float, limits: Limits, found: str, look: Rows | None = None) -> ContractResult:
        """Return the result of a number; sample rows are fetched if its level is not ``ok``."""
        level = level_of(value, limits)
        result = ContractResult(name=name, level=level, value=value, limits=set_limits(limits), found=found)
        if level == "ok" or look is None:
            return result
        sample = take_sample(self.warehouse, look, self.limits.sample_rows)
        return result.model_copy(update={"rows": sample.rows, "sql": sample.sql})

    def skip(self, name: str, reason: str) -> ContractResult:
        """Return a skipped result with its reason."""
        return ContractResult(name=name, level="skipped", found=reason)


def _raw_minimum(task: Task, dataset: DatasetConfig) -> float | None:
    """Return the smallest value of a positive, or None if the values are corrected before they are compared.

    The contracts check the warehouse's raw values; a value rule is fitted only afterwards.
    """
    return None if set(task.signals) & set(dataset.values) else task.min_value
