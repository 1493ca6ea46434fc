"""Contracts on single rows: columns, keys, values, duplicates, unknown items, nulls and quarantined rows."""

from __future__ import annotations

from stages.dataset.checks.results import ContractResult, share_in_words
from stages.dataset.checks.scene import Scene
from stages.warehouse.profile import samples
from stages.warehouse.profile.profile import count_duplicates, count_unknown_items


def columns(scene: Scene) -> list[ContractResult]:
    """Require the columns that the dataset step reads, with types that fit."""
    faults = scene.faults
    found = "; ".join(map(str, faults)) or "every column that the dataset reads is there"
    result = scene.judge("columns", float(len(faults)), scene.limits.columns, found)
    return [result]


def keys(scene: Scene) -> list[ContractResult]:
    """Limit events with a null in a required column."""
    events = scene.events
    found = share_in_words(events.null_keys, events.rows, "events have a null id, signal, value or time")
    share = _share(events.null_keys, events.rows)
    return [scene.judge("keys", share, scene.limits.keys, found, samples.events_without_keys())]


def values(scene: Scene) -> list[ContractResult]:
    """Limit selected events with an impossible value, and events with an impossible time."""
    events, limits = scene.events, scene.limits
    bad = share_in_words(events.bad_values, events.selected, "events have a value that is no number or out of range")
    early = share_in_words(events.bad_times, events.rows, "events have a time before 1970")
    look = samples.events_with_bad_values(scene.scope)
    return [
        scene.judge("values.value", _share(events.bad_values, events.selected), limits.values, bad, look),
        scene.judge(
            "values.time", _share(events.bad_times, events.rows), limits.times, early, samples.events_before_1970()
        ),
    ]


def duplicates(scene: Scene) -> list[ContractResult]:
    """Limit repeated rows: at the same time, and at any time."""
    limits = scene.limits.duplicates
    days = limits.window_days
    counts = count_duplicates(scene.warehouse, scene.scope, days)
    where = "events" if days is None else f"events of the last {days:g} days"
    results = []
    for name, number, levels in (
        ("identical", counts.identical, limits.identical),
        ("repeats", counts.repeats, limits.repeats),
    ):
        same = "user, item, signal and time" if name == "identical" else "user, item and signal"
        found = share_in_words(number, counts.rows, f"{where} repeat an earlier row's {same}")
        look = samples.repeated_events(scene.scope, days, identical=name == "identical")
        results.append(scene.judge(f"duplicates.{name}", _share(number, counts.rows), levels, found, look))
    return results


def unknown_items(scene: Scene) -> list[ContractResult]:
    """Limit events whose item has no catalogue row."""
    if scene.items.rows == 0:
        return [scene.skip("unknown_items", "the catalogue is empty; the items are those of the events")]
    counts = count_unknown_items(scene.warehouse, scene.scope)
    found = share_in_words(counts.unknown, counts.events, "events name an item without a catalogue row")
    found = f"{found}; {counts.items:,} such items"
    look = samples.unknown_items(scene.scope)
    share = _share(counts.unknown, counts.events)
    return [scene.judge("unknown_items", share, scene.limits.unknown_items, found, look)]


def nulls(scene: Scene) -> list[ContractResult]:
    """Limit catalogue items that lack an attribute."""
    limits, profile = scene.limits.nulls, scene.items
    levels = {
        "title": ("title", limits.title),
        "categories": ("categories", limits.categories),
        "created_at": ("created_at_ms", limits.created_at),
        "duration": ("duration_s", limits.duration),
        "text": ("text", limits.text),
    }
    if profile.rows == 0:
        return [scene.skip(f"nulls.{name}", "the catalogue is empty") for name in levels]
    results = []
    for name, (column, level) in levels.items():
        missing = profile.nulls[column]
        found = share_in_words(missing, profile.rows, f"items have no {name}")
        look = samples.items_that_lack(column)
        results.append(scene.judge(f"nulls.{name}", _share(missing, profile.rows), level, found, look))
    return results


def quarantine(scene: Scene) -> list[ContractResult]:
    """Limit rows that the last ingestion quarantined."""
    config = scene.config
    if config.rows_read == 0:
        return [scene.skip("quarantine", "no ingestion is known")]
    found = share_in_words(config.rows_quarantined, config.rows_read, "rows read were quarantined")
    share = _share(config.rows_quarantined, config.rows_read)
    return [scene.judge("quarantine", share, scene.limits.quarantine, found, samples.rows_put_aside())]


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
