"""The step ``dataset_report``: coverage of the last days' traffic, and quality against window length."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.contracts.files import write_json
from stages.contracts.snapshot import Snapshot
from stages.contracts.steps import Body, Outcome
from stages.dataset.config import DatasetStepConfig
from stages.dataset.warehouse_source import activity_policy
from stages.sufficiency.config import ReportConfig
from stages.sufficiency.quality import QualityCurve, quality_by_window
from stages.sufficiency.render import render_html
from stages.sufficiency.words import coverage_sentence, quality_sentence
from stages.warehouse.profile.coverage import Coverage, cover_days, day_starts
from stages.warehouse.selection.policies import ActivityPolicy

if TYPE_CHECKING:
    from stages.warehouse.database.engine import Warehouse

JSON_FILE, HTML_FILE = "dataset_report.json", "dataset_report.html"


class ReportStepConfig(ReportConfig):
    """The configuration of the step, which identifies one report.

    Attributes:
        dataset: the reported selection, with its as-of time.
    """

    dataset: DatasetStepConfig


def report_body(warehouse: Warehouse) -> Body[ReportStepConfig]:
    """Return the step's body for an open warehouse, as ``run_step`` takes it."""

    def body(config: ReportStepConfig, inputs: Mapping[str, Path], directory: Path) -> Outcome:
        return write_report(config, warehouse, Snapshot(inputs["snapshot"]), directory)

    return body


def write_report(config: ReportStepConfig, warehouse: Warehouse, snapshot: Snapshot, directory: Path) -> Outcome:
    """Write ``dataset_report.json`` and ``dataset_report.html``.

    Args:
        config: configuration of the report.
        warehouse: for the coverage.
        snapshot: for the counts and the quality.
        directory: an existing directory for the files.

    Returns:
        The recipe's own coverage and the quality curve's ends as metrics; the sentences as info.
    """
    dataset = config.dataset
    curve = quality_by_window(config, snapshot)
    report: dict[str, Any] = {
        "format_version": 1,
        "as_of_ms": dataset.as_of_ms,
        "data_fingerprint": snapshot.meta.fingerprint,
        "activity": dataset.activity.model_dump(mode="json"),
        "items": dataset.items.model_dump(mode="json"),
        "counts": snapshot.meta.counts,
        "users": coverage_of_users(config, warehouse),
        "item_support": coverage_of_items(config, warehouse),
        "quality": _quality(config, curve),
    }
    write_json(directory / JSON_FILE, report)
    (directory / HTML_FILE).write_text(render_html(report), encoding="utf-8")
    own = _own(report["users"], dataset.activity.window_days, dataset.activity.min_events)
    metrics = {
        "days": float(len(own["days"])),
        "users_covered": own["users_share"],
        "traffic_covered": own["traffic_share"],
    }
    if curve.windows:
        metrics["quality_requests"] = float(curve.requests)
        metrics["quality_all_data"] = curve.windows[-1].ndcg
        metrics["enough_days"] = float(curve.enough_days or 0)
    return metrics, {"coverage": coverage_sentence(own), "quality": report["quality"]["sentence"]}


def coverage_of_users(config: ReportStepConfig, warehouse: Warehouse) -> list[dict[str, Any]]:
    """Return the report's rows about users: one for each window and threshold, with their days."""
    dataset = config.dataset
    own = dataset.activity
    thresholds = sorted({*config.thresholds, own.min_events})
    if own.max_events is not None:
        thresholds = [threshold for threshold in thresholds if threshold <= own.max_events]
    starts = day_starts(dataset.as_of_ms, config.days)
    found = []
    for days in sorted({*config.windows_days, own.window_days}):
        policy = activity_policy(dataset).model_copy(update={"window_days": days})
        rows = cover_days(warehouse, "users", dataset.signals, starts, policy, thresholds)
        found += _by_threshold(rows, thresholds, days)
    return found


def coverage_of_items(config: ReportStepConfig, warehouse: Warehouse) -> list[dict[str, Any]]:
    """Return the report's rows about items: one for each threshold, with their days."""
    dataset = config.dataset
    thresholds = sorted({*config.thresholds, max(dataset.items.min_support, 1)})
    starts = day_starts(dataset.as_of_ms, config.days)
    rows = cover_days(warehouse, "items", dataset.signals, starts, ActivityPolicy(), thresholds)
    return _by_threshold(rows, thresholds, None)


def _by_threshold(rows: list[Coverage], thresholds: list[int], window_days: float | None) -> list[dict[str, Any]]:
    found = []
    for threshold in thresholds:
        days = [row for row in rows if row.threshold == threshold]
        seen, events = sum(row.seen for row in days), sum(row.events for row in days)
        found.append(
            {
                "window_days": window_days,
                "threshold": threshold,
                "users_share": sum(row.covered for row in days) / seen if seen else 0.0,
                "traffic_share": sum(row.covered_events for row in days) / events if events else 0.0,
                "days": [asdict(row) for row in days],
            }
        )
    return found


def _own(rows: list[dict[str, Any]], window_days: float, threshold: int) -> dict[str, Any]:
    return next(row for row in rows if (row["window_days"], row["threshold"]) == (window_days, threshold))


def _quality(config: ReportConfig, curve: QualityCurve) -> dict[str, Any]:
    windows = [
        {**asdict(window), "loss": None if window.loss is None else {**asdict(window.loss)}} for window in curve.windows
    ]
    return {
        "metric": f"ndcg@{config.k}",
        "requests": curve.requests,
        "windows": windows,
        "enough_days": curve.enough_days,
        "sentence": quality_sentence(curve),
    }
