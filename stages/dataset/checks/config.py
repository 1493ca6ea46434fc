"""Configuration of the data contracts: a warn and a fail level for each measured number."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from stages.contracts.config import Config
from stages.dataset.config import DatasetConfig

ContractName = Literal[
    "columns",
    "keys",
    "values",
    "signals",
    "freshness",
    "future",
    "volume",
    "label_rates",
    "duplicates",
    "unknown_items",
    "nulls",
    "active_users",
    "quarantine",
]


class Limits(Config):
    """The levels of one number; a number equal to a limit is within it, and None sets no limit.

    Attributes:
        warn_below, fail_below: a smaller number warns, or stops the run.
        warn_above, fail_above: a larger number warns, or stops the run.
    """

    warn_below: float | None = None
    fail_below: float | None = None
    warn_above: float | None = None
    fail_above: float | None = None

    @model_validator(mode="after")
    def _warns_before_it_fails(self) -> Limits:
        if self.warn_below is not None and self.fail_below is not None and self.warn_below < self.fail_below:
            raise ValueError(
                f"warn_below = {self.warn_below:g} must be at least fail_below = {self.fail_below:g}: "
                "a warning comes before a failure"
            )
        if self.warn_above is not None and self.fail_above is not None and self.warn_above > self.fail_above:
            raise ValueError(
                f"warn_above = {self.warn_above:g} must be at most fail_above = {self.fail_above:g}: "
                "a warning comes before a failure"
            )
        lowest = max((x for x in (self.warn_below, self.fail_below) if x is not None), default=None)
        highest = min((x for x in (self.warn_above, self.fail_above) if x is not None), default=None)
        if lowest is not None and highest is not None and lowest > highest:
            raise ValueError(f"below {lowest:g} and above {highest:g} leave no number that is within the limits")
        return self


class ColumnFaults(Limits):
    """Number of required columns that are missing or of another type."""

    fail_above: float | None = 0


class KeyNulls(Limits):
    """Share of events with a null id, signal, value or time."""

    fail_above: float | None = 0


class BadValues(Limits):
    """Share of selected events with a value that is no number, infinite or out of range.

    Attributes:
        ranges: (lowest, highest) allowed value, by signal; both limits are included.
    """

    fail_above: float | None = 0
    ranges: dict[str, tuple[float, float]] = {}

    @model_validator(mode="after")
    def _ranges_increase(self) -> BadValues:
        for signal, (low, high) in self.ranges.items():
            if low > high:
                raise ValueError(f"ranges.{signal} = [{low:g}, {high:g}]: the lowest must not exceed the highest")
        return self


class EarlyTimes(Limits):
    """Share of events with a time before 1970."""

    fail_above: float | None = 0


class AbsentSignals(Limits):
    """Number of the dataset's signals without a selected event."""

    warn_above: float | None = 0


class Freshness(Limits):
    """Days from the newest selected event to the reference time.

    Attributes:
        against: ``as_of`` measures up to the as-of time, ``now`` up to the clock. With ``now`` every run
            measures anew.
    """

    warn_above: float | None = 2
    fail_above: float | None = 14
    against: Literal["as_of", "now"] = "as_of"


class Future(Limits):
    """Share of events later than the clock."""

    warn_above: float | None = 0
    fail_above: float | None = 0.001


class Volume(Limits):
    """Selected events a day in the last days, divided by the median day before.

    Attributes:
        days: number of judged days, counted back from the as-of time; 7 evens out the week.
        trailing_days: number of days before the judged days; their median is the reference.
        min_trailing_days: with fewer days of history the contract is skipped.
    """

    warn_below: float | None = 0.3
    fail_below: float | None = 0.02
    warn_above: float | None = 5
    fail_above: float | None = 50
    days: int = Field(default=1, ge=1, le=366)
    trailing_days: int = Field(default=28, ge=1, le=1_000)
    min_trailing_days: int = Field(default=7, ge=1)

    @model_validator(mode="after")
    def _trailing_days_suffice(self) -> Volume:
        if self.min_trailing_days > self.trailing_days:
            raise ValueError(
                f"min_trailing_days = {self.min_trailing_days} must not exceed trailing_days = {self.trailing_days}"
            )
        return self


class LabelRates(Limits):
    """A task's share of positives in the last days, divided by its median day before.

    The levels apply to that ratio.

    Attributes:
        share: levels of the share itself, by task.
        days: number of judged days, counted back from the as-of time.
        trailing_days: number of days before the judged days; their median share is the reference.
        min_trailing_days: with fewer days of history the ratio is not judged.
        min_positives: with fewer expected positives in the judged days the ratio is not judged.
    """

    warn_below: float | None = 0.5
    fail_below: float | None = 0.1
    warn_above: float | None = 2
    fail_above: float | None = 10
    share: dict[str, Limits] = {}
    days: int = Field(default=7, ge=1, le=366)
    trailing_days: int = Field(default=28, ge=1, le=1_000)
    min_trailing_days: int = Field(default=7, ge=1)
    min_positives: float = Field(default=50, ge=0)


class IdenticalRows(Limits):
    """Share of rows beyond the first with equal user, item, signal and time."""

    warn_above: float | None = 0.01
    fail_above: float | None = 0.3


class Duplicates(Config):
    """Repeated rows.

    Attributes:
        identical: rows beyond the first with equal user, item, signal and time, as a share.
        repeats: rows beyond the first with equal user, item and signal at any time, as a share; no
            limit by default, since many signals repeat by nature.
        window_days: number of days before the as-of time whose events are searched; None: all events.
    """

    identical: IdenticalRows = IdenticalRows()
    repeats: Limits = Limits()
    window_days: float | None = Field(default=28, gt=0)


class UnknownItems(Limits):
    """Share of selected events whose item has no catalogue row."""

    warn_above: float | None = 0.01
    fail_above: float | None = 0.3


class TitleNulls(Limits):
    """Share of items without a title (or with their id as title)."""

    warn_above: float | None = 0.5


class CategoryNulls(Limits):
    """Share of items without a category."""

    warn_above: float | None = 0.5


class Nulls(Config):
    """Shares of catalogue items that lack an attribute; only attributes that a funnel uses need levels.

    Attributes:
        title, categories, created_at, duration, text: levels of each.
    """

    title: TitleNulls = TitleNulls()
    categories: CategoryNulls = CategoryNulls()
    created_at: Limits = Limits()
    duration: Limits = Limits()
    text: Limits = Limits()


class ActiveUsers(Limits):
    """Share of active users, at the as-of time, among the users with a selected event."""

    warn_below: float | None = 0.02
    fail_below: float | None = 0.0001


class Quarantine(Limits):
    """Share of the rows read at the last ingestion that were quarantined."""

    warn_above: float | None = 0.01
    fail_above: float | None = 0.2


class ContractsConfig(Config):
    """The contracts section of a recipe: conditions that the warehouse must meet before training.

    Attributes:
        skip: contracts that are not evaluated.
        sample_rows: number of sample rows that a broken contract shows.
        columns: schema and types.
        keys: nulls in the required columns of an event.
        values: values that are no number or out of range.
        times: events before 1970; part of the contract ``values``.
        signals: signals of the recipe without events in the warehouse.
        other_signals: levels of the share of events of signals that the recipe leaves out.
        freshness: age of the newest event.
        future: events later than the clock.
        after_as_of: levels of the share of events at or after the as-of time; many in a backfill.
        volume: the last days against the trailing median.
        label_rates: each task's positives, in bounds and against the trailing median.
        duplicates: repeated rows.
        unknown_items: ids without a catalogue row.
        nulls: attributes that items lack.
        active_users: users who pass the activity policy.
        quarantine: rows quarantined by the last ingestion.
    """

    skip: tuple[ContractName, ...] = ()
    sample_rows: int = Field(default=3, ge=0, le=100)
    columns: ColumnFaults = ColumnFaults()
    keys: KeyNulls = KeyNulls()
    values: BadValues = BadValues()
    times: EarlyTimes = EarlyTimes()
    signals: AbsentSignals = AbsentSignals()
    other_signals: Limits = Limits()
    freshness: Freshness = Freshness()
    future: Future = Future()
    after_as_of: Limits = Limits()
    volume: Volume = Volume()
    label_rates: LabelRates = LabelRates()
    duplicates: Duplicates = Duplicates()
    unknown_items: UnknownItems = UnknownItems()
    nulls: Nulls = Nulls()
    active_users: ActiveUsers = ActiveUsers()
    quarantine: Quarantine = Quarantine()


class CheckStepConfig(Config):
    """The configuration of the step ``check_data``, which identifies one evaluation of the contracts.

    Attributes:
        contracts: the levels.
        dataset: the selection to check; its signals, tasks, activity and history are read.
        as_of_ms: int ms UTC; events from then on do not exist for the run.
        now_ms: the clock, int ms UTC; set only if it matters (an event is later than the clock, or
            freshness is measured against it), so that equal data give equal fingerprints.
        rows_read, rows_quarantined: of the last ingestion.
        warehouse_fingerprint: changes with the content of the warehouse.
    """

    contracts: ContractsConfig = ContractsConfig()
    dataset: DatasetConfig
    as_of_ms: int
    now_ms: int | None = None
    rows_read: int = Field(default=0, ge=0)
    rows_quarantined: int = Field(default=0, ge=0)
    warehouse_fingerprint: str = ""
