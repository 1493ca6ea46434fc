"""Selection, de-duplication and export of 1, 10 and 100 million events, and the same job in pandas.

    python -m benchmarks.dataset [--sizes 1e6 1e7 1e8] [--repeat 3] [--pandas 1e7] [--memory 2500MB] [--ids 1e7]
        [--home DIR] [--postgresql URL_OF_AN_EMPTY_DATABASE]

A world of skewed users and items is written into a DuckDB warehouse in SQL (not measured). The measured job
runs the dataset step's selection, in a process of its own for every size. It finds the active users and the
eligible items at the end of each period, removes duplicates and repeats, and writes ``events.parquet``.
Repeats alternate between the sizes, because a machine's speed changes within minutes. Seconds are medians;
``growth`` is their ratio to the seconds of the size before. Users and items grow with the events; with
``--ids`` every size has the users and items of one size. The pandas job reads the same events from Parquet,
and its rows are compared. With ``--postgresql`` the same job runs on a copy of the world there, and its rows
are compared too.
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow.csv
import pyarrow.parquet as pq

from benchmarks.environment import describe, in_a_process
from stages.dataset.config import DatasetStepConfig

DAY_MS = 86_400_000
START_MS, DAYS = 1_735_689_600_000, 30
SIGNALS = ("click", "like", "purchase")
MIN_EVENTS, WINDOW_DAYS, MIN_SUPPORT = 5, 14, 50
ENDS = tuple(START_MS + days * DAY_MS for days in (28, 29, 30))


def write_world(path: Path, n: int, ids: int | None = None) -> None:
    """Write n events; one in 50 items is a copy, one event in 20 a repeat.

    There are n / 50 users and n / 500 items, or as many as in a world of ``ids`` events.
    """
    users, items = (max((ids or n) // each, 100) for each in (50, 500))
    from stages.warehouse.database.engine import Warehouse

    with Warehouse(f"duckdb:///{path}") as warehouse:
        warehouse.create_tables()
    connection = duckdb.connect(str(path), config={"memory_limit": "2GB", "threads": 2})
    connection.execute("SET preserve_insertion_order = false; SET enable_progress_bar = false")
    for start in range(0, n, 10_000_000):
        stop = min(n, start + 10_000_000)
        connection.execute(
            f"""
            INSERT INTO interactions (event_id, user_id, item_id, signal, value, event_time_ms, source, context)
            WITH numbered AS (
              SELECT i, CASE WHEN i % 20 = 0 THEN i // 2 ELSE i END AS k FROM range({start}, {stop}) t(i)
            )
            SELECT hash(i)::HUGEINT - 9223372036854775808,
                   'u' || lpad(((hash(k * 7 + 1) % 1000003 / 1000003.0) ** 1.5 * {users})::BIGINT::TEXT, 8, '0'),
                   'i' || lpad(((hash(k * 11 + 2) % 1000003 / 1000003.0) ** 3 * {items})::BIGINT::TEXT, 8, '0'),
                   CASE WHEN hash(k * 13 + 3) % 10 < 7 THEN 'click' WHEN hash(k * 13 + 3) % 10 < 9 THEN 'like'
                        ELSE 'purchase' END,
                   1.0, {START_MS} + (i * ({DAYS} * {DAY_MS}.0 / {n}))::BIGINT, 'synthetic', ''
            FROM numbered
            """
        )
    connection.execute(
        f"""
        INSERT INTO items (item_id, title, categories, created_at_ms, duration_s, row_hash, text, state)
        SELECT 'i' || lpad(i::TEXT, 8, '0'), 'Title ' || CASE WHEN i % 50 = 49 THEN i - 1 ELSE i END, '',
               {START_MS} - 1000 + i % 1000, NULL, hash(i)::HUGEINT - 9223372036854775808, NULL, NULL
        FROM range(0, {items} + 1) t(i)
        """
    )
    connection.execute("CHECKPOINT")
    connection.close()


def step_config() -> DatasetStepConfig:
    """Return the configuration of the dataset step for a world."""
    return DatasetStepConfig.model_validate(
        {
            "signals": SIGNALS,
            "tasks": [{"name": "click", "signals": ["click"], "relevance": 1}],
            "activity": {"min_events": MIN_EVENTS, "window_days": WINDOW_DAYS},
            "items": {"min_support": MIN_SUPPORT},
            "split": {"ranker_days": 1, "evaluation_days": 1},
            "history_days": DAYS,
            "as_of_ms": ENDS[-1],
            "warehouse_fingerprint": "benchmark",
        }
    )


def run_sluice(url: str, out: Path) -> dict[str, Any]:
    """Run the dataset step's selection on a warehouse and write its events."""
    from stages.dataset.build import select_events
    from stages.dataset.warehouse_source import WarehouseSource
    from stages.warehouse.database.engine import Warehouse

    with Warehouse(url) as warehouse:
        started = time.perf_counter()
        selected = select_events(step_config(), WarehouseSource(warehouse), out)
        seconds = time.perf_counter() - started
    return {"seconds": seconds, "rows": int(selected.tally.events.sum()), "users": len(selected.user_ids)}


def copy_to_postgresql(path: Path, url: str) -> None:
    """Copy a world into an empty database.

    Raises:
        SystemExit: if the database holds events already.
    """
    from stages.warehouse.database.engine import Warehouse

    with Warehouse(url) as warehouse:
        warehouse.create_tables()
        if warehouse.counts()["interactions"]:
            raise SystemExit(f"--postgresql {warehouse.name}: holds events; an empty database is needed")
        with duckdb.connect(str(path), read_only=True) as world, warehouse.begin() as connection:
            driver: Any = connection.connection.driver_connection
            for table in ("interactions", "items"):
                for batch in world.table(table).to_arrow_reader(1 << 17):
                    text = io.BytesIO()
                    pyarrow.csv.write_csv(batch, text, pyarrow.csv.WriteOptions(include_header=False))
                    text.seek(0)
                    driver.cursor().copy_expert(f"COPY {table} FROM STDIN WITH (FORMAT csv)", text)
        warehouse.analyze()


def empty_postgresql(url: str) -> None:
    """Remove a world's rows again."""
    from stages.warehouse.database.engine import Warehouse

    with Warehouse(url) as warehouse, warehouse.begin() as connection:
        connection.exec_driver_sql("TRUNCATE interactions, items, item_aliases")


def run_pandas(path: Path, out: Path) -> dict[str, Any]:
    """Do the same with pandas, from Parquet to Parquet."""
    import pandas as pd

    started = time.perf_counter()
    events = pd.read_parquet(path / "interactions.parquet")
    items = pd.read_parquet(path / "items.parquet")
    events = events[events.signal.isin(SIGNALS) & events.event_time_ms.between(START_MS, ENDS[-1] - 1)]
    active = [
        events[events.event_time_ms.between(end - WINDOW_DAYS * DAY_MS, end - 1)].groupby("user_id").size()
        >= MIN_EVENTS
        for end in ENDS
    ]
    items = items.sort_values(["created_at_ms", "item_id"], kind="stable")
    canonical = items.groupby("title").item_id.transform("first")
    events["item_id"] = events.item_id.map(dict(zip(items.item_id, canonical, strict=True)))
    supported = [events[events.event_time_ms < end].groupby("item_id").size() >= MIN_SUPPORT for end in ENDS]
    events = events.sort_values(["event_time_ms", "event_id"], kind="stable")
    events = events.drop_duplicates(["user_id", "item_id", "signal"])
    part = np.searchsorted(ENDS[:-1], events.event_time_ms, side="right")
    trained = np.zeros(len(events), dtype=bool)
    for number, (users, enough) in enumerate(zip(active, supported, strict=True)):
        rows = events.user_id.map(users).eq(True) & events.item_id.map(enough).eq(True)
        trained |= rows.to_numpy() & (part == number)
    first_user = events.groupby("user_id").event_time_ms.min().reset_index()
    order = first_user.sort_values(["event_time_ms", "user_id"]).user_id
    users_index = dict(zip(order, range(len(order)), strict=True))
    result = pd.DataFrame(
        {
            "user_index": events.user_id.map(users_index).to_numpy(),
            "item_id": events.item_id.to_numpy(),
            "event_time_ms": events.event_time_ms.to_numpy(),
            "signal": events.signal.map({name: code for code, name in enumerate(SIGNALS)}).to_numpy().astype("int16"),
            "value": events.value.to_numpy().astype("float32"),
            "part": part.astype("int8"),
            "active": trained,
        }
    )
    result.to_parquet(out, compression="zstd")
    return {"seconds": time.perf_counter() - started, "rows": len(result), "users": len(order)}


def compare(ours: Path, theirs: Path) -> None:
    """Raise unless both jobs wrote the same rows; items are compared by number of rows, since only we index them."""
    query = """SELECT count(*), sum(hash(user_index, event_time_ms, signal, part, active)::HUGEINT) FROM '{}'"""
    found = [duckdb.sql(query.format(path)).fetchall() for path in (ours, theirs)]
    sizes = [
        duckdb.sql(
            f"SELECT n, count(*) FROM (SELECT count(*) n FROM '{path}' GROUP BY {key}) GROUP BY n ORDER BY n"
        ).fetchall()
        for path, key in ((ours, "item_index"), (theirs, "item_id"))
    ]
    if found[0] != found[1] or sizes[0] != sizes[1]:
        raise SystemExit(f"the two jobs differ: {found}")


def child(arguments: list[str]) -> dict[str, Any]:
    """Run one job in a process of its own and return what it prints."""
    return in_a_process([sys.executable, "-m", "benchmarks.dataset", *arguments])


def measure(home: Path, sizes: list[int], memory: str, repeats: int, ids: int | None) -> list[dict[str, Any]]:
    """Write a world of each size and run the job on all of them, ``repeats`` times in turn; return medians by size."""
    for n in sizes:
        # In a process of its own: a child process starts with its parent's peak memory.
        child(["--job", "world", str(home / f"{n}.duckdb"), str(n), "--ids", str(ids or n)])
    found: dict[int, list[dict[str, Any]]] = {n: [] for n in sizes}
    for _ in range(repeats):
        for n in sizes:
            found[n].append(child(["--job", "sluice", world_url(home, n, memory), str(home / f"{n}.parquet")]))
            print(json.dumps({"events": n, **found[n][-1]}), flush=True)
    results: list[dict[str, Any]] = []
    for n, runs in found.items():
        seconds = [run["seconds"] for run in runs]
        middle, peak = statistics.median(seconds), max(run["peak_gb"] for run in runs)
        results.append({**runs[0], "events": n, "seconds": middle, "each": seconds, "peak_gb": peak})
        if len(results) > 1:
            results[-1]["growth"] = round(middle / results[-2]["seconds"], 2)
    return results


def world_url(home: Path, n: int, memory: str) -> str:
    """Return the warehouse of n events."""
    return f"duckdb:///{home / f'{n}.duckdb'}?memory_limit={memory}&threads=2"


def measure_postgresql(home: Path, n: int, url: str) -> dict[str, Any]:
    """Run the job on a copy of a world, and compare what it writes.

    Raises:
        SystemExit: if the rows differ.
    """
    copy_to_postgresql(home / f"{n}.duckdb", url)
    try:
        result = child(["--job", "sluice", url, str(home / "theirs.parquet")])
    finally:
        empty_postgresql(url)
    if not pq.read_table(home / f"{n}.parquet").equals(pq.read_table(home / "theirs.parquet")):
        raise SystemExit("the two databases give different rows")
    return result


def measure_pandas(home: Path, n: int) -> dict[str, Any]:
    """Run the job in pandas, and compare what it writes."""
    with duckdb.connect(str(home / f"{n}.duckdb"), read_only=True) as connection:
        for table in ("interactions", "items"):
            connection.execute(f"COPY {table} TO '{home / table}.parquet' (FORMAT PARQUET)")
    result = child(["--job", "pandas", str(home), str(home / "theirs.parquet")])
    compare(home / f"{n}.parquet", home / "theirs.parquet")
    return result


def main() -> None:
    """Measure and print one JSON object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=float, nargs="+", default=[1e6, 1e7, 1e8])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--pandas", type=float, default=1e7)
    parser.add_argument("--memory", default="2500MB", help="DuckDB's limit; the process needs some beside it")
    parser.add_argument("--ids", type=float, default=None, help="users and items of a world of so many events")
    parser.add_argument("--postgresql", default=None, help="SQLAlchemy URL of an empty database")
    parser.add_argument("--home", type=Path, default=None, help="where the worlds go; 15 GB for 1e8")
    parser.add_argument("--job", nargs=3, metavar=("NAME", "IN", "OUT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        name, source, target = options.job
        if name == "world":
            write_world(Path(source), int(target), int(options.ids))
            print(json.dumps({"events": int(target)}))
            return
        jobs = {"sluice": lambda: run_sluice(source, Path(target))}
        result = jobs.get(name, lambda: run_pandas(Path(source), Path(target)))()
        result["peak_gb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 3)
        print(json.dumps({**result, "seconds": round(result["seconds"], 2)}))
        return
    sizes, ids = [int(size) for size in options.sizes], int(options.ids) if options.ids else None
    with tempfile.TemporaryDirectory(dir=options.home) as directory:
        home = Path(directory)
        results = measure(home, sizes, options.memory, options.repeat, ids)
        for result in results:
            if options.postgresql:
                result["postgresql"] = measure_postgresql(home, result["events"], options.postgresql)
            if result["events"] == int(options.pandas):
                result["pandas"] = measure_pandas(home, result["events"])
                result["times_faster_than_pandas"] = round(result["pandas"]["seconds"] / result["seconds"], 2)
    print(
        json.dumps(
            {
                "benchmark": "dataset",
                **describe("duckdb", "sqlalchemy", "pyarrow", "pandas"),
                "memory_limit": options.memory,
                "users_and_items_of": ids,
                "results": results,
            }
        )
    )


if __name__ == "__main__":
    main()
