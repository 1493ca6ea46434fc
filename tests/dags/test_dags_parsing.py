"""The DAG files parse quickly, load nothing heavy and draw the graph that the pipeline declares."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from stages import refresh
from stages.pipeline import STEPS, UPSTREAM
from tests.time_limits import finished
from tests.trees import add_step, changed_files, copy_of_tree

if TYPE_CHECKING:
    from conftest import Airflow

DAGS = Path(__file__).resolve().parents[2] / "dags"

HEAVY = ("torch", "torchrec", "mlflow", "faiss", "pandas", "lightgbm", "sklearn", "duckdb")

PARSE = """
import json, runpy, sys
from pathlib import Path
from airflow.sdk import DAG
before = set(sys.modules)
sys.path.append(str(Path(sys.argv[1]).parent))
found = {}
for path in sys.argv[1:]:
    for value in runpy.run_path(path).values():
        if isinstance(value, DAG):
            found[value.dag_id] = value
dag = found["train_funnel"]
refresh = found["refresh_index"]
print(json.dumps({
    "refresh_upstream": {task.task_id: sorted(task.upstream_task_ids) for task in refresh.tasks},
    "refresh_params": sorted(refresh.params),
    "refresh_alerts": [len(task.on_failure_callback) for task in refresh.tasks],
    "loaded": sorted(set(sys.modules) - before),
    "dags": sorted(found),
    "upstream": {task.task_id: sorted(task.upstream_task_ids) for task in dag.tasks},
    "retries": sorted({task.retries for task in dag.tasks}),
    "delays": sorted({task.retry_delay.total_seconds() for task in dag.tasks}),
    "time_outs": [task.execution_timeout is not None for task in dag.tasks],
    "alerts": [len(task.on_failure_callback) for task in dag.tasks],
    "max_active_runs": dag.max_active_runs,
    "paused": [each.is_paused_upon_creation for each in (dag, refresh)],
    "params": {name: dag.params.get_param(name).dump() for name in dag.params},
}))
"""

BAG = """
import json, os
from pathlib import Path
from airflow.dag_processing.dagbag import BundleDagBag
folder = Path(os.environ["AIRFLOW__CORE__DAGS_FOLDER"])
bag = BundleDagBag(folder, bundle_path=folder, bundle_name="dags-folder")
print(json.dumps({"dags": sorted(bag.dags), "errors": bag.import_errors}))
"""


def _run(code: str, airflow: Airflow, *arguments: str, **more: str) -> Any:
    done = finished([sys.executable, "-c", code, *arguments], env=airflow.environment() | more, cwd=airflow.home)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def parsed(migrated: Airflow) -> Any:
    return _run(PARSE, migrated, *map(str, sorted(DAGS.glob("*.py"))))


def test_parsing_loads_nothing_heavy(parsed: Any) -> None:
    roots = {name.partition(".")[0] for name in parsed["loaded"]}
    assert "stages" in roots, "the DAG files take their steps from the pipeline"
    assert not roots & set(HEAVY)


def test_the_graph_is_the_pipelines(parsed: Any) -> None:
    assert parsed["upstream"] == {step: sorted(UPSTREAM[step]) for step in STEPS}


def test_a_step_that_is_added_to_the_table_is_a_task(migrated: Airflow, tmp_path: Path) -> None:
    tree = copy_of_tree(tmp_path, "stages", "dags")
    add_step(tree)
    places = os.pathsep.join(map(str, (tree, tree / "dags")))
    found = _run(PARSE, migrated, *map(str, sorted((tree / "dags").glob("*.py"))), PYTHONPATH=places)
    assert found["upstream"] == {**{step: sorted(UPSTREAM[step]) for step in STEPS}, "count_signals": ["dataset"]}
    assert changed_files(tree, "stages", "dags") == {"stages/evaluation/own_step.py", "stages/pipeline.py"}


def test_the_refresh_draws_its_own_graph(parsed: Any) -> None:
    assert parsed["refresh_upstream"] == {step: sorted(refresh.UPSTREAM[step]) for step in refresh.STEPS}
    assert parsed["refresh_params"] == ["as_of", "config", "data", "mapping", "overrides", "promote"]
    assert set(parsed["refresh_alerts"]) == {1}


def test_every_task_retries_ends_and_reports(parsed: Any) -> None:
    assert parsed["retries"] == [2]
    assert parsed["delays"] == [0.1]
    assert set(parsed["time_outs"]) == {True}
    assert set(parsed["alerts"]) == {1}
    assert parsed["max_active_runs"] == 1
    assert parsed["paused"] == [False, False], "a run of a paused DAG is queued for ever"


def test_the_trigger_form_explains_every_parameter(parsed: Any) -> None:
    assert sorted(parsed["params"]) == [
        "as_of",
        "config",
        "data",
        "mapping",
        "n_processes",
        "overrides",
        "promote",
        "warm_start",
    ]
    for name, param in parsed["params"].items():
        assert param["description"], name
        assert {"type", "title"} <= set(param["schema"]), name


def test_airflow_itself_finds_no_import_error(migrated: Airflow) -> None:
    assert _run(BAG, migrated) == {"dags": ["refresh_index", "train_funnel"], "errors": {}}
