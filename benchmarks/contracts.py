"""Time and memory of the data contracts over a large table, each pass on its own.

    python -m benchmarks.contracts --events 100000000 --memory-limit 3GB

The events are made by DuckDB itself: 90 days, a hundred events a user, popular items by a square law, four
signals. Making them is not part of the figures; the evaluation runs in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import duckdb

from benchmarks.environment import describe
from stages.contracts.tables import DAY_MS
from stages.dataset.checks.config import CheckStepConfig, ContractsConfig
from stages.dataset.checks.run import CONTRACTS
from stages.dataset.checks.scene import Scene
from stages.dataset.config import DatasetConfig
from stages.warehouse.database.engine import Warehouse

DAYS = 90
DATASET = {
    "signals": ("click", "like", "watch", "purchase"),
    "tasks": (
        {"name": "click", "signals": ("click",), "relevance": 1},
        {"name": "complete", "signals": ("watch",), "min_value": 0.8},
    ),
    "activity": {"min_events": 5, "window_days": 30},
}
EVENTS = """
INSERT INTO interactions (event_id, user_id, item_id, signal, value, event_time_ms, source, context)
SELECT (hash(n) >> 1)::BIGINT, 'u' || (hash(n * 3 + 1) % {users})::BIGINT,
       'i' || floor(pow(hash(n * 5 + 2)::DOUBLE / 18446744073709551616.0, 2) * {items})::BIGINT,
       ['click', 'click', 'click', 'watch', 'watch', 'like', 'purchase'][1 + (hash(n * 7 + 3) % 7)::INTEGER],
       (hash(n * 11 + 4) % 100) / 100.0, (n::HUGEINT * {span}) // {events}, 'benchmark', ''
FROM (SELECT range AS n FROM range({events}))
"""
ITEMS = (
    "INSERT INTO items (item_id, title, categories, created_at_ms, duration_s, row_hash, text, state) "
    "SELECT 'i' || range, 'Title ' || range, 'a|b', 0, 60.0, range, NULL, NULL FROM range({items})"
)


def main() -> None:
    """Measure and print one JSON object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=10_000_000)
    parser.add_argument("--memory-limit", default="3GB", help="of DuckDB")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--all-duplicates", action="store_true", help="look for duplicates among all events")
    parser.add_argument("--evaluate", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.evaluate:
        print(json.dumps(_evaluate(options.evaluate, options.all_duplicates)))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "warehouse.duckdb"
        _make(path, options.events)
        url = f"duckdb:///{path}?memory_limit={options.memory_limit}&threads={options.threads}"
        command = [sys.executable, "-m", "benchmarks.contracts", "--evaluate", url]
        command += ["--all-duplicates"] if options.all_duplicates else []
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    report = {
        "benchmark": "contracts",
        "events": options.events,
        "memory_limit": options.memory_limit,
        "threads": options.threads,
        "all_duplicates": options.all_duplicates,
        **json.loads(done.stdout.splitlines()[-1]),
        **describe("duckdb", "sqlalchemy"),
    }
    print(json.dumps(report))


def _make(path: Path, events: int) -> None:
    with Warehouse(f"duckdb:///{path}") as warehouse:
        warehouse.create_tables()
    sizes = {"events": events, "users": max(10, events // 100), "items": 200_000, "span": DAYS * DAY_MS}
    with duckdb.connect(str(path)) as connection:
        connection.execute(EVENTS.format(**sizes))
        connection.execute(ITEMS.format(**sizes))


def _evaluate(url: str, all_duplicates: bool) -> dict[str, Any]:
    contracts: dict[str, Any] = {"duplicates": {"window_days": None}} if all_duplicates else {}
    config = CheckStepConfig(
        contracts=ContractsConfig.model_validate(contracts),
        dataset=DatasetConfig.model_validate(DATASET),
        as_of_ms=DAYS * DAY_MS,
        now_ms=DAYS * DAY_MS,
    )
    seconds: dict[str, float] = {}
    levels: dict[str, str] = {}
    started = time.perf_counter()
    with Warehouse(url) as warehouse:
        scene = Scene(config, warehouse)
        for contract in CONTRACTS:
            before = time.perf_counter()
            levels |= {result.name: result.level for result in contract.check(scene)}
            seconds[contract.name] = round(time.perf_counter() - before, 2)
    # On Linux in KiB; the high-water mark of the whole process.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    total = round(time.perf_counter() - started, 2)
    not_ok = {name: level for name, level in levels.items() if level != "ok"}
    return {"seconds": total, "peak_bytes": peak, "seconds_by_contract": seconds, "not_ok": not_ok}


if __name__ == "__main__":
    main()
