"""Whole jobs in a process of their own: seconds, memory and disk of every step, and how they grow with the data."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.scale.child import DONE, JOB, STEPS
from benchmarks.scale.turns import markdown
from benchmarks.scale.watch import folder_bytes, largest_process_bytes, proportional_bytes, tree

IMPRESSIONS_A_USER, IMPRESSIONS_AN_ITEM = 100, 100
_BEFORE = "start"
"""What runs until the first step."""

_EVENTS = ("events", "dataset", "events_in_warehouse")
_ASKED = ("requests", "dataset", "evaluation_requests")
UNITS = {
    "train_candidate": ("examples", "train_candidate", "examples"),
    "build_index": ("items", "dataset", "items"),
    "train_sources": ("requests", "dataset", "ranker_requests"),
    "retrieve": ("requests", "retrieve", "requests"),
    "build_examples": ("requests", "dataset", "ranker_requests"),
    "train_light": ("requests", "dataset", "ranker_requests"),
    "train_heavy": ("requests", "dataset", "ranker_requests"),
    "rank_held_out": _ASKED,
    "rank_baselines": _ASKED,
    "evaluate": _ASKED,
}
"""What a step handles, as (word, step, metric of that step); a step that is not named handles events."""


def run_watched(arguments: Mapping[str, Any], folder: Path, every_s: float) -> dict[str, Any]:
    """Run a job to its end in a process of its own, and look at its memory and disk at fixed intervals.

    Args:
        arguments: of ``sluice.jobs.run``, as JSON: ``data``, ``recipe``, ``overrides``, ``until``; all steps run in a
            new home below ``folder``, which is removed.
        folder: an existing folder.
        every_s: seconds between two looks; what a step needs only between them is not seen.

    Returns:
        Totals and, by step, seconds by the clock and of the processor, peak memory, size of the result and rows
        handled. Processor seconds are those of all processes, and include those of the start in the total.

    Raises:
        SystemExit: with the end of what the job said, if it fails.
    """
    with tempfile.TemporaryDirectory(dir=folder) as name:
        work = Path(name)
        home = work / "home"
        (work / JOB).write_text(json.dumps({**arguments, "home": str(home), "promote": False}), encoding="utf-8")
        seen, started = _Seen(home / "runs"), time.perf_counter()
        with _child(work) as process:
            while process.poll() is None:
                seen.look(process.pid, _present_step(work))
                time.sleep(every_s)
        seconds = time.perf_counter() - started
        if process.returncode:
            raise SystemExit((work / "said.txt").read_text(encoding="utf-8", errors="replace")[-4000:])
        done = json.loads((work / DONE).read_text(encoding="utf-8"))
        results = done["results"]
        return {
            "seconds": seconds,
            "processor_seconds": done["processor_seconds"],
            "peak_bytes": max(seen.memory.values(), default=0),
            "largest_process_bytes": seen.largest_process,
            "peak_runs_bytes": max(seen.disk, folder_bytes(home / "runs")),
            "runs_bytes": folder_bytes(home / "runs"),
            "home_bytes": folder_bytes(home),
            "steps": [_step(name, result, results, seen, home) for name, result in results.items()],
        }


class _Seen:
    """The peaks of the looks so far."""

    def __init__(self, runs: Path) -> None:
        self._runs = runs
        self.memory: dict[str, int] = {}
        self.largest_process = self.disk = 0

    def look(self, root: int, step: str) -> None:
        processes = tree(root)
        self.memory[step] = max(self.memory.get(step, 0), proportional_bytes(processes))
        self.largest_process = max(self.largest_process, largest_process_bytes(processes))
        self.disk = max(self.disk, folder_bytes(self._runs))


@contextmanager
def _child(work: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start the job without settings of the environment, and end it if this process is interrupted."""
    command = [sys.executable, "-m", "benchmarks.scale.child", str(work)]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("SLUICE_")}
    with (work / "said.txt").open("wb") as said:
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, env=environ)
        try:
            yield process
        finally:
            process.terminate()
            process.wait(timeout=60)


def _present_step(work: Path) -> str:
    path = work / STEPS
    names = path.read_text(encoding="utf-8").split() if path.exists() else []
    return names[-1] if names else _BEFORE


def _step(
    name: str, result: Mapping[str, Any], results: Mapping[str, Mapping[str, Any]], seen: _Seen, home: Path
) -> dict[str, Any]:
    word, step, metric = UNITS.get(name, _EVENTS)
    rows = results.get(step, {}).get("metrics", {}).get(metric)
    if rows is None:
        word, rows = _EVENTS[0], results["ingest"]["metrics"]["rows_loaded"]
    directory = Path(result["path"])
    return {
        "step": name,
        "seconds": result["seconds"],
        "processor_seconds": result["processor_seconds"],
        "peak_bytes": seen.memory.get(name),
        "disk_bytes": folder_bytes(directory) if directory.parent == home / "runs" / name else None,
        "unit": word,
        "rows": int(rows),
    }


def measure_growth(
    impressions: int, times: Sequence[int], recipe: str | None, until: str, folder: Path, every_s: float
) -> dict[str, Any]:
    """Run the job on synthetic worlds of growing size, each in a new home.

    Args:
        impressions: of the smallest world; users and items are a hundredth of them.
        times: sizes of the worlds as multiples of the smallest, ascending.
        recipe: path of a recipe; None = that of the demo.
        until: last step to run.
        folder: as for ``run_watched``.
        every_s: as for ``run_watched``.
    """
    runs = []
    for factor in times:
        size = impressions * factor
        world = {
            "n_events": size,
            "n_users": max(2, size // IMPRESSIONS_A_USER),
            "n_items": max(20, size // IMPRESSIONS_AN_ITEM),
        }
        arguments = {"data": "synthetic", "recipe": recipe, "overrides": {"world": world}, "until": until}
        runs.append({"times": factor, **world, **run_watched(arguments, folder, every_s)})
    return {"runs": runs, "every_s": every_s}


def render_growth(found: Mapping[str, Any]) -> str:
    """Return one row a step and size.

    ``times`` is the seconds by those of the smallest world; ``an event`` (request, item, example) is the seconds a row
    by those of the smallest world, so that 1 is linear.
    """
    columns = ("step", "impressions", "seconds", "processor s", "times", "rows", "a row", "peak GB", "disk MB")
    rows: list[tuple[str, ...]] = []
    first = {step["step"]: step for step in found["runs"][0]["steps"]}
    for name, smallest in first.items():
        for run in found["runs"]:
            step = next(each for each in run["steps"] if each["step"] == name)
            rows.append((name, f"{run['n_events']:,}", *_grown(step, smallest)))
    for run in found["runs"]:
        whole = {**run, "rows": run["n_events"], "unit": "impressions", "disk_bytes": run["peak_runs_bytes"]}
        start = {**found["runs"][0], "rows": found["runs"][0]["n_events"]}
        rows.append(("whole run", f"{run['n_events']:,}", *_grown(whole, start)))
    return markdown(columns, rows)


def _grown(step: Mapping[str, Any], first: Mapping[str, Any]) -> tuple[str, ...]:
    times = step["seconds"] / max(first["seconds"], 1e-3)
    each = times * max(1, first["rows"]) / max(1, step["rows"])
    return (
        *_seconds(step),
        f"{times:.2f}",
        f"{step['rows']:,} {step['unit']}",
        f"{each:.2f}",
        *_sizes(step),
    )


def _seconds(step: Mapping[str, Any]) -> tuple[str, str]:
    return f"{step['seconds']:.1f}", f"{step['processor_seconds']:.1f}"


def _sizes(step: Mapping[str, Any]) -> tuple[str, str]:
    peak, disk = step["peak_bytes"], step["disk_bytes"]
    return "" if peak is None else f"{peak / 1e9:.2f}", "" if disk is None else f"{disk / 1e6:.1f}"


def render_run(found: Mapping[str, Any]) -> str:
    """Return one row a step of one run, and the totals."""
    columns = ("step", "seconds", "processor s", "rows", "peak GB", "disk MB")
    steps = [(s["step"], *_seconds(s), f"{s['rows']:,} {s['unit']}", *_sizes(s)) for s in found["steps"]]
    total = _sizes({**found, "disk_bytes": found["peak_runs_bytes"]})
    return markdown(columns, [*steps, ("whole run", *_seconds(found), "", *total)])
