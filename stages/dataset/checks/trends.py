"""Contracts over time and people: freshness, future, volume, label rates, signals, active users."""

from __future__ import annotations

from statistics import median

from stages.contracts.tables import DAY_MS
from stages.dataset.checks.config import Limits
from stages.dataset.checks.results import ContractResult, listed, set_limits, share_in_words
from stages.dataset.checks.scene import Scene
from stages.warehouse.profile import samples
from stages.warehouse.profile.profile import count_active, daily_statement


def signals(scene: Scene) -> list[ContractResult]:
    """Limit the recipe's signals without events, and the share of events that the recipe leaves out."""
    events, limits = scene.events, scene.limits
    absent = [name for name, count in events.by_signal.items() if count == 0]
    found = f"{len(absent)} of {len(events.by_signal)} signals of the recipe have no event: {listed(absent)}"
    look = samples.signals_found(scene.scope)
    others = events.before_as_of - sum(events.by_signal.values())
    share = others / events.before_as_of if events.before_as_of else 0.0
    left_out = share_in_words(others, events.before_as_of, "events are not selected: other signals, or too old")
    return [
        scene.judge("signals.absent", float(len(absent)), limits.signals, found, look),
        scene.judge("signals.left_out", share, limits.other_signals, left_out, look),
    ]


def freshness(scene: Scene) -> list[ContractResult]:
    """Limit the age of the newest event before the as-of time."""
    limits, newest = scene.limits.freshness, scene.events.newest_ms
    if newest is None:
        found = f"no event of the signals {listed(scene.scope.signals)} is before the as-of time"
        sample = samples.take_sample(scene.warehouse, samples.signals_found(scene.scope), scene.limits.sample_rows)
        failed = ContractResult(name="freshness", level="fail", limits=set_limits(limits), found=found)
        return [failed.model_copy(update={"rows": sample.rows, "sql": sample.sql})]
    now_ms = scene.config.now_ms
    until = now_ms if limits.against == "now" and now_ms is not None else scene.config.as_of_ms
    days = max(0.0, (until - newest) / DAY_MS)
    what = "the clock" if limits.against == "now" else "the as-of time"
    found = f"the newest event is {days:.3g} days older than {what}"
    return [scene.judge("freshness", days, limits, found, samples.newest_events(scene.scope))]


def future(scene: Scene) -> list[ContractResult]:
    """Limit events later than the clock, and those from the as-of time on."""
    events, limits, now_ms = scene.events, scene.limits, scene.config.now_ms
    late = share_in_words(events.after_now, events.rows, "events are later than the clock")
    after = share_in_words(events.after_as_of, events.rows, "events are not before the as-of time")
    share = events.after_now / events.rows if events.rows else 0.0
    share_after = events.after_as_of / events.rows if events.rows else 0.0
    look = None if now_ms is None else samples.events_after(now_ms)
    beyond = samples.events_after(scene.config.as_of_ms - 1)
    return [
        scene.judge("future.now", share, limits.future, late, look),
        scene.judge("future.as_of", share_after, limits.after_as_of, after, beyond),
    ]


def volume(scene: Scene) -> list[ContractResult]:
    """Limit the events a day in the last days against the median of the days before."""
    limits, daily = scene.limits.volume, scene.daily
    trailing = scene.trailing(limits.days, limits.trailing_days)
    if len(trailing) < limits.min_trailing_days:
        reason = (
            f"{len(trailing)} days of history before the last {_days(limits.days)}; needed: {limits.min_trailing_days}"
        )
        return [scene.skip("volume", reason)]
    usual = median(daily[day].events if day in daily else 0 for day in trailing)
    if usual == 0:
        return [scene.skip("volume", f"the median of the {len(trailing)} days before is 0 events")]
    recent = sum(daily[day].events for day in range(limits.days) if day in daily) / limits.days
    found = (
        f"{recent:,.6g} events a day in the last {_days(limits.days)}, "
        f"median of the {len(trailing)} days before: {usual:,.6g}"
    )
    look = daily_statement(scene.scope, limits.days + limits.trailing_days)
    return [scene.judge("volume", recent / usual, limits, found, look)]


def label_rates(scene: Scene) -> list[ContractResult]:
    """Limit each task's share of positives: by fixed bounds, and against its median day."""
    results = []
    for task, rule in scene.scope.labels.items():
        if rule.min_value is None and set(rule.signals) == set(scene.scope.signals):
            results.append(scene.skip(f"label_rates.{task}", "each selected event is a positive by definition"))
        else:
            results += [_share_of(scene, task), _against_median(scene, task)]
    return results


def _share_of(scene: Scene, task: str) -> ContractResult:
    name, limits = f"label_rates.{task}.share", scene.limits.label_rates
    positives, of = _recent(scene, task)
    if of == 0:
        return scene.skip(name, f"no event that could be positive in the last {_days(limits.days)}")
    found = share_in_words(positives, of, f"events of the last {_days(limits.days)} are positives of {task}")
    look = daily_statement(scene.scope, limits.days)
    return scene.judge(name, positives / of, limits.share.get(task, Limits()), found, look)


def _against_median(scene: Scene, task: str) -> ContractResult:
    name, limits = f"label_rates.{task}.against_median", scene.limits.label_rates
    positives, of = _recent(scene, task)
    days = [scene.daily[day] for day in scene.trailing(limits.days, limits.trailing_days) if day in scene.daily]
    rates = [day.positives[task] / day.of[task] for day in days if day.of[task]]
    if len(rates) < limits.min_trailing_days:
        return scene.skip(name, f"{len(rates)} days with events to compare with; needed: {limits.min_trailing_days}")
    usual = median(rates)
    if of * usual < limits.min_positives or usual == 0:
        reason = (
            f"{of * usual:.3g} positives expected in the last {_days(limits.days)}; needed: {limits.min_positives:g}"
        )
        return scene.skip(name, reason)
    share = positives / of
    found = f"share {share:.4g} in the last {_days(limits.days)}, median of the {len(rates)} days before: {usual:.4g}"
    look = daily_statement(scene.scope, limits.days + limits.trailing_days)
    return scene.judge(name, share / usual, limits, found, look)


def _recent(scene: Scene, task: str) -> tuple[int, int]:
    """Return positives and possible positives of a task in the last days."""
    days = [scene.daily[day] for day in range(scene.limits.label_rates.days) if day in scene.daily]
    return sum(day.positives[task] for day in days), sum(day.of[task] for day in days)


def active_users(scene: Scene) -> list[ContractResult]:
    """Limit the share of users who pass the activity policy at the as-of time."""
    users, active = count_active(scene.warehouse, scene.scope, scene.activity)
    if users == 0:
        return [scene.skip("active_users", "no user has a selected event")]
    # Show the fields as the recipe has them.
    policy = scene.config.dataset.activity.model_dump(exclude_none=True)
    words = ", ".join(f"{name} = {value}" for name, value in policy.items())
    found = share_in_words(active, users, f"users are active by dataset.activity ({words})")
    look = samples.inactive_users(scene.scope, scene.activity)
    return [scene.judge("active_users", active / users, scene.limits.active_users, found, look)]


def _days(number: int) -> str:
    return "day" if number == 1 else f"{number} days"
