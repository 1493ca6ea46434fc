"""Configuration of a snapshot: selection, split and requests."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from stages.contracts.config import Config
from stages.contracts.snapshot import Task
from stages.contracts.tables import PART_EVALUATION, PART_RANKER
from stages.contracts.touches import EXPOSURE_SIGNALS
from stages.contracts.value_rules import ValueRule
from stages.dataset.contexts import ContextConfig
from stages.dataset.items_config import ContentConfig, DuplicatesConfig
from stages.warehouse.selection.policies import ItemPolicy, RepeatPolicy


class ActivityConfig(Config):
    """Which users are active at the end of a period; training reads active users only.

    Attributes:
        min_events: smallest number of events of the kept signals in the window.
        window_days: length of the window before the end of the period.
        max_events: largest number of events in the window (bots have more), or None.
        signals: kinds of events that count, also kinds that are not kept; None = the kept signals.
        weights: weight of an event by kind, 1 by default, to three decimals.
    """

    min_events: int = Field(default=5, ge=1)
    window_days: float = Field(default=3_650.0, gt=0)
    max_events: int | None = None
    signals: tuple[str, ...] | None = Field(default=None, min_length=1)
    weights: dict[str, Annotated[float, Field(ge=0, le=1_000_000)]] = {}

    @model_validator(mode="after")
    def _maximum_above_minimum(self) -> ActivityConfig:
        if self.max_events is not None and self.max_events < self.min_events:
            raise ValueError(f"max_events = {self.max_events} must be at least min_events = {self.min_events}")
        return self


class SplitConfig(Config):
    """How events are split into the candidate, ranker and evaluation periods.

    Attributes:
        method: ``time`` (the default): periods are stretches of time, the same for all users. The other
            methods assign whole user-item pairs, as published protocols do: ``leave_last_out``,
            ``user_ratio``, ``users`` and ``given``. With them training may read events that are later
            than a request (see ``docs/splits.md``).
        candidate_share: ``time``: share of events, the oldest, that trains the candidate generators;
            ``user_ratio``: share of each user's pairs.
        ranker_share: share of the next events (pairs), which trains the rankers; the rest is held out.
        ranker_days: ``time``: length of the ranker period in days. Together with ``evaluation_days`` it
            replaces the shares, and the borders no longer depend on the events.
        evaluation_days: ``time``: length of the held-out period in days.
        last: ``leave_last_out``: number of a user's last pairs that are held out.
        before_last: ``leave_last_out``, ``given``: number of pairs before those, which train the rankers.
        user_shares: ``users``: shares of the users that are assigned to the three periods.
        fold_in_share: ``users``: share of a later period's user's pairs, the oldest, that are history
            only: nothing trains on them.
        evaluation_signals: ``given``: the signals whose pairs are held out, such as ``test``.
    """

    method: Literal["time", "leave_last_out", "user_ratio", "users", "given"] = "time"
    candidate_share: float = Field(default=0.6, gt=0, lt=1)
    ranker_share: float = Field(default=0.2, gt=0, lt=1)
    ranker_days: float | None = Field(default=None, gt=0)
    evaluation_days: float | None = Field(default=None, gt=0)
    last: int = Field(default=1, ge=1)
    before_last: int = Field(default=1, ge=1)
    user_shares: tuple[float, float, float] = (0.8, 0.1, 0.1)
    fold_in_share: float = Field(default=0.8, gt=0, lt=1)
    evaluation_signals: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _shares_or_days(self) -> SplitConfig:
        if self.candidate_share + self.ranker_share >= 1:
            total = self.candidate_share + self.ranker_share
            raise ValueError(f"candidate_share + ranker_share = {total:g} must be below 1: the rest is held out")
        if (self.ranker_days is None) != (self.evaluation_days is None):
            raise ValueError("ranker_days and evaluation_days must be given together")
        if min(self.user_shares) <= 0 or abs(sum(self.user_shares) - 1) > 1e-9:
            raise ValueError(f"user_shares = {self.user_shares} must be above 0 and add up to 1")
        if (self.method == "given") != bool(self.evaluation_signals):
            raise ValueError(
                f"method = {self.method!r} with evaluation_signals = {list(self.evaluation_signals)}: the method "
                "'given' needs them, and no other takes them"
            )
        # A resolved recipe has every field, so only a value other than the default counts as set.
        others = set(SplitConfig.model_fields) - {"method", *_SPLIT_FIELDS[self.method]}
        other = sorted(name for name in others if getattr(self, name) != SplitConfig.model_fields[name].default)
        if other:
            raise ValueError(f"method = {self.method!r} takes {list(_SPLIT_FIELDS[self.method])}, found {other}")
        return self


_SPLIT_FIELDS = {
    "time": ("candidate_share", "ranker_share", "ranker_days", "evaluation_days"),
    "leave_last_out": ("last", "before_last"),
    "user_ratio": ("candidate_share", "ranker_share"),
    "users": ("user_shares", "fold_in_share"),
    "given": ("evaluation_signals", "before_last"),
}


class RequestConfig(Config):
    """How requests are made from a user's first touches.

    Attributes:
        targets_per_request: number of consecutive first touches of one request; 1 replays every event.
        window_days: targets and their labels must happen within so many days after the request.
        max_requests_per_user: largest number of a user's requests in a period, spread evenly over all of
            them; None keeps all.
        max_ranker_requests: largest number of requests of the ranker part, of all users together. More are
            sampled after the cap a user: each request with the same probability, evenly in the order of time.
            So a user with many requests stays so, and every stretch of time keeps its share of the requests.
            None keeps all.
        max_evaluation_requests: the same for the evaluation part.
    """

    targets_per_request: int = Field(default=5, ge=1)
    window_days: float = Field(default=7.0, gt=0)
    max_requests_per_user: int | None = Field(default=10, ge=1)
    max_ranker_requests: int | None = Field(default=None, ge=1)
    max_evaluation_requests: int | None = Field(default=None, ge=1)

    def largest_number(self, part: int) -> int | None:
        """Return how many requests PART_RANKER or PART_EVALUATION may have, None without a limit."""
        return {PART_RANKER: self.max_ranker_requests, PART_EVALUATION: self.max_evaluation_requests}[part]


class DatasetConfig(Config):
    """The dataset section of a recipe.

    Attributes:
        signals: kinds of events that are kept; other kinds stay in the warehouse.
        tasks: tasks that rankers predict; a target needs a task with ``relevance`` above zero.
        activity: which users are active.
        history_days: events older than so many days before the as-of time are left out; None keeps all.
        split: how events are split into periods.
        requests: how requests are made.
        items: which items are eligible.
        repeats: how a user's repeated events of a kind on one item are reduced: ``first`` (the default),
            ``last``, ``sum`` or ``max`` by signal (see ``stages.warehouse.selection.repeats``).
        values: how the values of a signal are made comparable, such as watch time between short and
            long items (``stages.contracts.value_rules``); tasks, features and serving see the result.
        value_ranges: smallest and largest value that posted events of a signal may have, before its rule;
            by default learnt from the events (``stages.contracts.value_ranges``).
        duplicates: which items are the same under several ids.
        content: which items are blocked.
        base: directory of a snapshot or release whose users, items, categories and context values keep
            their indices; new ones follow. None starts anew.
        base_sha256: hash of the base, filled in by a run.
        context: context columns of a request that features read.
        min_items: fewest items that a snapshot may have; set it to the largest ``k`` served.
    """

    signals: tuple[str, ...] = Field(min_length=1)
    tasks: tuple[Task, ...] = Field(min_length=1)
    activity: ActivityConfig = ActivityConfig()
    items: ItemPolicy = ItemPolicy()
    repeats: dict[str, RepeatPolicy] = {}
    values: dict[str, ValueRule] = {}
    value_ranges: dict[str, tuple[float, float]] = {}
    history_days: float | None = Field(default=None, gt=0)
    split: SplitConfig = SplitConfig()
    requests: RequestConfig = RequestConfig()
    duplicates: DuplicatesConfig = DuplicatesConfig()
    content: ContentConfig = ContentConfig()
    base: str | None = None
    base_sha256: str = ""
    context: ContextConfig = ContextConfig()
    min_items: int = Field(default=2, ge=2)

    @model_validator(mode="after")
    def _settings_are_of_kept_signals(self) -> DatasetConfig:
        for name in ("values", "value_ranges", "repeats"):
            unknown = sorted(set(getattr(self, name)) - set(self.signals))
            if unknown:
                raise ValueError(f"{name} names signals {unknown}, allowed: {list(self.signals)}")
        for signal, (low, high) in self.value_ranges.items():
            if low > high:
                raise ValueError(f"value_ranges.{signal} = [{low:g}, {high:g}], allowed: the smaller value first")
        return self

    @model_validator(mode="after")
    def _tasks_use_kept_signals(self) -> DatasetConfig:
        names = [task.name for task in self.tasks]
        if len(set(names)) < len(names) or len(set(self.signals)) < len(self.signals):
            raise ValueError(f"signals {list(self.signals)} and task names {names} must not repeat")
        for task in self.tasks:
            unknown = sorted(set(task.signals) - set(self.signals))
            if unknown or not task.signals:
                raise ValueError(f"task {task.name!r} has signals {list(task.signals)}, allowed: {list(self.signals)}")
            if task.relevance < 0:
                raise ValueError(f"task {task.name!r} has relevance = {task.relevance:g}, allowed: 0 or more")
        unknown = sorted(set(self.split.evaluation_signals) - set(self.signals))
        if unknown:
            raise ValueError(f"split.evaluation_signals names {unknown}, allowed: {list(self.signals)}")
        if not any(task.relevance > 0 for task in self.tasks):
            raise ValueError(f"one of the tasks {names} needs relevance above 0, or there are no targets")
        return self


class DatasetStepConfig(DatasetConfig):
    """The configuration of the dataset step, which identifies one snapshot.

    Attributes:
        as_of_ms: int ms UTC; events from then on do not exist for the snapshot.
        warehouse_fingerprint: changes with the content of the warehouse.
        seed: of the random starts from which requests are spread evenly: one a user for
            ``max_requests_per_user``, one a part for ``max_ranker_requests`` and ``max_evaluation_requests``.
        exposure_signals: kinds of events that are not touches; set in a recipe as ``features.exposure_signals``.
    """

    as_of_ms: int
    warehouse_fingerprint: str
    seed: int = Field(default=0, ge=0)
    exposure_signals: tuple[str, ...] = EXPOSURE_SIGNALS
