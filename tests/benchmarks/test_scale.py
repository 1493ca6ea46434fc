"""What ``benchmarks.scale`` measures is what it says, on tiny sizes; no time is checked."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.scale import __main__ as scale
from benchmarks.scale.__main__ import joined, override
from benchmarks.scale.closed_form import MODELS, made_histories, measure_closed_form, render_closed_form
from benchmarks.scale.features import REQUESTS_A_BLOCK, measure_features, render_features
from benchmarks.scale.jobs import measure_growth, render_growth, render_run, run_watched
from benchmarks.scale.made import made_log
from benchmarks.scale.replay import PATHS, measure_replay, render_replay
from benchmarks.scale.turns import Cost, cost_of, medians
from benchmarks.scale.watch import folder_bytes, largest_process_bytes, proportional_bytes, tree
from stages.contracts.touches import touching
from stages.features.config import FeatureConfig

WORLD = {"n_users": 60, "n_items": 80, "n_events": 3_000, "days": 10}


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


@pytest.mark.parametrize("exposures", [True, False])
def test_the_made_log_is_in_time_order_skewed_and_has_exposures_where_asked(exposures: bool) -> None:
    log = made_log(20_000, exposures)
    events = log.events
    assert len(events) == 20_000 and (np.diff(events.event_time_ms) >= 0).all()
    assert events.user_index.max() < log.n_users and events.item_index.max() < len(log.items)
    touches = touching(("impression", "click", "like", "watch"), FeatureConfig().exposure_signals)[events.signal]
    assert touches.mean() == pytest.approx(0.3 if exposures else 1.0, abs=0.02)
    for column, size in ((events.user_index, log.n_users), (events.item_index, len(log.items))):
        counts = np.sort(np.bincount(column, minlength=size))
        assert counts[-size // 10 :].sum() > 0.3 * len(events) and np.count_nonzero(counts) > 0.9 * size
    again = made_log(20_000, exposures).events
    assert all(np.array_equal(getattr(events, name), getattr(again, name)) for name in events.TYPES)


@pytest.mark.parametrize("model", MODELS)
def test_a_closed_form_is_measured_on_skewed_histories(model: str) -> None:
    history = made_histories(300, 2000, 30)
    assert np.diff(history.indptr).max() <= 30 and 20 < history.nnz / 300 <= 30
    counts = np.sort(np.bincount(history.indices, minlength=2000))
    assert counts[-200:].sum() > 0.25 * history.nnz
    together = (history.T @ history).toarray() > 0
    clusters = np.arange(2000) % 5
    assert together[clusters[:, None] == clusters].mean() > 1.5 * together[clusters[:, None] != clusters].mean()
    found = measure_closed_form(model, 300, 2000, 30, neighbours=7, memory_gb=1.0)
    assert found["model"] == model and found["cells"] == history.nnz and 0 < found["weights"] <= 7 * 2000
    assert 0 < found["before_gb"] <= found["peak_gb"] <= found["before_gb"] + found["said_gb"]
    names, _, row = cells(render_closed_form(found))
    assert dict(zip(names, row, strict=True))["items"] == "2,000"


def test_categories_of_made_items_are_lists_without_repeats() -> None:
    items = made_log(20_000, exposures=False).items
    lists = [
        items.category_codes[start:stop].tolist()
        for start, stop in zip(items.category_offsets, items.category_offsets[1:], strict=False)
    ]
    assert all(len(codes) == len(set(codes)) in (1, 2) for codes in lists)
    assert {len(codes) for codes in lists} == {1, 2}


def test_every_path_applies_every_event(monkeypatch: pytest.MonkeyPatch) -> None:
    log, states = made_log(500, exposures=True), []

    def kept(config: FeatureConfig | None = None) -> object:
        states.append(original())
        return states[-1]

    original = log.state
    monkeypatch.setattr(type(log), "state", lambda self, config=None: kept(config))
    for run in PATHS.values():
        run(log)
    assert len(states) == len(PATHS)
    exposed = int((log.events.signal == 0).sum())
    for state in states:
        assert state.exposures.sum() == exposed and state.item_events.sum() == 500 - exposed


def test_replay_prints_one_row_a_path_size_and_kind() -> None:
    found = measure_replay([200, 400], turns=1)
    keys = [(row["path"], row["events"], row["exposures"]) for row in found["rows"]]
    assert len(set(keys)) == len(keys) == len(PATHS) * 4
    for row in found["rows"]:
        assert (
            row["us_an_event"] > 0
            and row["processor_us_an_event"] > 0
            and (row["growth"] == 1.0 or row["events"] == 400)
        )
    table = cells(render_replay(found))
    assert table[0][-2:] == ["processor us", "growth"] and len(table) == 2 + len(keys)


def test_features_are_timed_a_request_in_both_calls() -> None:
    found = measure_features(2_000, 2 * REQUESTS_A_BLOCK, candidates=30, turns=1)
    assert [row["call"] for row in found["rows"]] == ["served", "built"]
    assert all(row["ms_a_request"] > 0 and row["processor_ms_a_request"] > 0 for row in found["rows"])
    assert [row[0] for row in cells(render_features(found))[2:]] == ["served", "built"]


@pytest.mark.parametrize(
    ("n_requests", "candidates", "wanted"),
    [(REQUESTS_A_BLOCK, 30, "allowed is 64 or more"), (64, 401, "at most the number of items, 400")],
)
def test_features_that_cannot_be_timed_are_refused(n_requests: int, candidates: int, wanted: str) -> None:
    with pytest.raises(ValueError, match=wanted):
        measure_features(2_000, n_requests, candidates, turns=1)


def test_medians_are_of_turns_that_alternate() -> None:
    order: list[str] = []
    costs = {"a": [Cost(1, 7), Cost(9, 8), Cost(2, 3)], "b": [Cost(5, 1), Cost(5, 0), Cost(4, 2)]}

    def cost(name: str) -> Cost:
        order.append(name)
        return costs[name][order.count(name) - 1]

    found = medians({"a": lambda: cost("a"), "b": lambda: cost("b")}, 3)
    assert found == {"a": Cost(2, 7), "b": Cost(5, 1)} and order == ["a", "b"] * 3


def test_a_cost_is_of_the_clock_and_of_the_processor() -> None:
    waiting, working = cost_of(lambda: time.sleep(0.05)), cost_of(lambda: sum(range(2_000_000)))
    assert waiting.clock >= 0.05 > waiting.processor
    assert working.processor > 0
    assert Cost(6.0, 3.0).of_one(3) == Cost(2.0, 1.0)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_memory_of_children_counts_and_a_vanished_process_does_not() -> None:
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
    inner = "held = bytearray(50_000_000); print('held', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code, inner], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        processes = tree(process.pid)
        assert len(processes) == 2 and processes[0] == process.pid
        assert proportional_bytes(processes) > 50_000_000 > proportional_bytes(processes[:1])
        assert largest_process_bytes(processes) > 50_000_000
        process.communicate("\n")
    assert proportional_bytes(processes) == largest_process_bytes(processes) == 0


def test_the_size_of_a_folder_is_that_of_all_files_below_it(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    for path in (tmp_path / "one", tmp_path / "a" / "b" / "two"):
        path.write_bytes(b"x" * 100_000)
    assert 200_000 <= folder_bytes(tmp_path) < 300_000
    assert folder_bytes(tmp_path / "none") == 0


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_run_has_every_step_with_memory_disk_and_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLUICE_WAREHOUSE_URL", "duckdb:////nowhere/of/the/environment.duckdb")
    arguments = {"data": "synthetic", "overrides": {"world": WORLD}, "until": "dataset"}
    found = run_watched(arguments, tmp_path, every_s=0.02)
    assert [step["step"] for step in found["steps"]] == ["ingest", "check_data", "dataset"]
    snapshot = found["steps"][-1]
    assert snapshot["unit"] == "events" and snapshot["rows"] > WORLD["n_events"]
    assert 0 < snapshot["disk_bytes"] <= found["runs_bytes"] <= found["peak_runs_bytes"]
    assert found["steps"][0]["disk_bytes"] is None
    seen = [step["peak_bytes"] for step in found["steps"] if step["peak_bytes"] is not None]
    assert 0 < max(seen) <= found["peak_bytes"] and found["largest_process_bytes"] > 0
    assert list(tmp_path.iterdir()) == []
    table = cells(render_run(found))
    assert [row[0] for row in table[2:]] == ["ingest", "check_data", "dataset", "whole run"]
    assert {len(row) for row in table} == {6}
    assert 0 < sum(step["processor_seconds"] for step in found["steps"]) < found["processor_seconds"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_growth_has_a_row_a_step_and_world(tmp_path: Path) -> None:
    found = measure_growth(2_000, [1, 2], None, "check_data", tmp_path, every_s=0.05)
    assert [(run["n_events"], run["n_users"], run["n_items"]) for run in found["runs"]] == [
        (2_000, 20, 20),
        (4_000, 40, 40),
    ]
    table = cells(render_growth(found))
    assert [row[:2] for row in table[2:]] == [
        [step, size] for step in ("ingest", "check_data", "whole run") for size in ("2,000", "4,000")
    ]
    assert [row[4] for row in table[2::2]] == [row[6] for row in table[2::2]] == ["1.00"] * 3


def test_growth_is_seconds_and_seconds_a_row_against_the_smallest_world() -> None:
    def run(times: int, seconds: float, rows: int) -> dict[str, object]:
        sizes = {"peak_bytes": None, "disk_bytes": None, "peak_runs_bytes": 2_000_000}
        took = {"seconds": seconds, "processor_seconds": seconds / 2}
        step = {"step": "evaluate", **took, "rows": rows, "unit": "requests", **sizes}
        return {"times": times, "n_events": 1_000 * times, **took, "seconds": 2 * seconds, **sizes, "steps": [step]}

    table = cells(render_growth({"runs": [run(1, 2.0, 50), run(10, 30.0, 300)]}))
    assert table[3] == ["evaluate", "10,000", "30.0", "15.0", "15.00", "300 requests", "2.50", "", ""]
    assert table[5] == ["whole run", "10,000", "60.0", "15.0", "15.00", "10,000 impressions", "1.50", "", "2.0"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_job_that_fails_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="until = 'nothing': unknown step"):
        run_watched({"data": "synthetic", "until": "nothing"}, tmp_path, every_s=0.05)
    assert list(tmp_path.iterdir()) == []


def test_the_command_prints_a_table_and_one_json_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        sys, "argv", ["scale", "replay", "--events", "1e2", "--times", "2", "1", "--json", "--paths", "apply"]
    )
    scale.main()
    *table, last = capsys.readouterr().out.splitlines()
    told = json.loads(last)
    assert told["benchmark"] == "scale replay" and told["turns"] == 3
    assert {(row["path"], row["events"]) for row in told["rows"]} == {("apply", 100), ("apply", 200)}
    assert len(table) == 2 + len(told["rows"])


@pytest.mark.parametrize(
    "wrong",
    [
        ["replay", "--events", "0.5"],
        ["replay", "--paths", "none"],
        ["run"],
        ["run", "--data", "x", "--every", "0"],
        ["job", "--times", "-1"],
    ],
)
def test_wrong_arguments_are_refused(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        scale.arguments().parse_args(wrong)
    assert "error" in capsys.readouterr().err


def test_overrides_of_the_recipe_are_laid_over_one_another() -> None:
    given = [override(text) for text in ("a.b=1", "a.c=[x, 2]", "a.b={d: true}", "e=null")]
    assert joined(given) == {"a": {"b": {"d": True}, "c": ["x", 2]}, "e": None}
    with pytest.raises(argparse.ArgumentTypeError, match="allowed is KEY=VALUE"):
        override("a.b")
