"""The main job as an Airflow DAG: from raw interactions to a promoted release, one task a step."""

from __future__ import annotations

from typing import Any

from airflow.sdk import DAG
from sluice_airflow.params import PARAMS
from sluice_airflow.tasks import DEFAULT_ARGS, pipeline_step

from stages.pipeline import STEPS, UPSTREAM

with DAG(
    dag_id="train_funnel",
    description="Ingest, train every stage, evaluate, assemble one release, register and promote it",
    schedule=None,
    catchup=False,
    # It has no schedule, and a run of a paused DAG would stay queued for ever, without a message.
    is_paused_upon_creation=False,
    max_active_runs=1,
    params=PARAMS,
    default_args=DEFAULT_ARGS,
    tags=["sluice"],
    doc_md=__doc__,
) as train_funnel:
    results: dict[str, Any] = {}
    for name in STEPS:
        upstream = {earlier: results[earlier] for earlier in UPSTREAM[name]}
        results[name] = pipeline_step.override(task_id=name)(name, upstream)
