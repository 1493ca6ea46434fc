"""Time and memory of the dataset step and of both halves of its report, on worlds of 1, 10 and 100 million events.

    python -m benchmarks.report [--sizes 1e6 1e7 1e8] [--memory 2500MB] [--home DIR]

The worlds are those of ``benchmarks.dataset``. Three jobs run for every size, each in a process of its own: the
whole dataset step, which writes the snapshot (events, requests, targets, fingerprint); the share of users and
items that the thresholds would have covered, from the warehouse; and quality against window length, from the
snapshot. The report's settings are the defaults.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.dataset import step_config, write_world
from benchmarks.environment import describe, in_a_process
from stages.contracts.snapshot import Snapshot
from stages.dataset.build import build_snapshot
from stages.dataset.warehouse_source import WarehouseSource
from stages.sufficiency.config import ReportConfig
from stages.sufficiency.quality import quality_by_window
from stages.sufficiency.report import ReportStepConfig, coverage_of_items, coverage_of_users
from stages.warehouse.database.engine import Warehouse

THREADS = 2


def run_world(home: Path, events: int, memory: str) -> dict[str, Any]:
    """Write a world; DuckDB's memory is bounded by ``write_world`` itself."""
    write_world(_warehouse(home), events)
    return {"gigabytes": round(_warehouse(home).stat().st_size / 1e9, 2)}


def run_snapshot(home: Path, events: int, memory: str) -> dict[str, Any]:
    """Run the whole dataset step."""
    (home / "snapshot").mkdir()
    with Warehouse(_url(home, memory)) as warehouse:
        counts, _ = build_snapshot(step_config(), WarehouseSource(warehouse), home / "snapshot")
    return {name: int(counts[name]) for name in ("events", "users", "items", "ranker_requests", "evaluation_requests")}


def run_coverage(home: Path, events: int, memory: str) -> dict[str, Any]:
    """Measure which users and items the thresholds would have covered."""
    config = ReportStepConfig(dataset=step_config())
    with Warehouse(_url(home, memory)) as warehouse:
        started = time.perf_counter()
        users = coverage_of_users(config, warehouse)
        between = time.perf_counter()
        coverage_of_items(config, warehouse)
        seconds = {"users": between - started, "items": time.perf_counter() - between}
    windows = len({row["window_days"] for row in users})
    return {
        "windows": windows,
        "days": config.days,
        "by_part": {name: round(took, 2) for name, took in seconds.items()},
    }


def run_quality(home: Path, events: int, memory: str) -> dict[str, Any]:
    """Measure quality by window; nothing but the snapshot is read."""
    curve = quality_by_window(ReportConfig(), Snapshot(home / "snapshot"))
    return {"requests": curve.requests, "windows": len(curve.windows), "pairs": curve.windows[-1].events}


JOBS: dict[str, Callable[[Path, int, str], dict[str, Any]]] = {
    "world": run_world,
    "snapshot": run_snapshot,
    "coverage": run_coverage,
    "quality": run_quality,
}


def _warehouse(home: Path) -> Path:
    return home / "warehouse.duckdb"


def _url(home: Path, memory: str) -> str:
    return f"duckdb:///{_warehouse(home)}?memory_limit={memory}&threads={THREADS}"


def measured(job: str, home: Path, events: int, memory: str) -> dict[str, Any]:
    """Run one job in this process."""
    started = time.perf_counter()
    result = JOBS[job](home, events, memory)
    seconds = round(time.perf_counter() - started, 2)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    # On Linux in KiB; the high-water mark of the whole process. Where other jobs run, processor time says
    # more than the clock.
    peak_gb, processor = usage.ru_maxrss * 1024 / 1e9, usage.ru_utime + usage.ru_stime
    return {"seconds": seconds, "processor_seconds": round(processor, 2), "peak_gb": round(peak_gb, 3), **result}


def child(job: str, home: Path, events: int, memory: str) -> dict[str, Any]:
    """Run one job in a process of its own; this process stays small, since a child starts with its parent's peak."""
    command = [sys.executable, "-m", "benchmarks.report", "--home", str(home), "--memory", memory]
    command += ["--sizes", str(events), "--job", job]
    return in_a_process(command)


def main() -> None:
    """Measure and print one JSON object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=float, nargs="+", default=[1e6, 1e7, 1e8])
    parser.add_argument("--memory", default="2500MB", help="DuckDB's limit; the process needs some beside it")
    parser.add_argument("--home", type=Path, default=None, help="where the worlds go; 15 GB for 1e8")
    parser.add_argument("--job", choices=JOBS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        print(json.dumps(measured(options.job, options.home, int(options.sizes[0]), options.memory)))
        return
    results = []
    for size in options.sizes:
        with tempfile.TemporaryDirectory(dir=options.home) as home:
            jobs = {job: child(job, Path(home), int(size), options.memory) for job in JOBS}
        results.append({"events": int(size), **jobs})
        print(json.dumps(results[-1]), flush=True)
    print(
        json.dumps(
            {
                "benchmark": "report",
                **describe("duckdb", "sqlalchemy", "pyarrow", "numpy", "scipy"),
                "memory_limit": options.memory,
                "threads": THREADS,
                "results": results,
            }
        )
    )


if __name__ == "__main__":
    main()
