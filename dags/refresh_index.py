"""The refresh as an Airflow DAG: new items are embedded by the champion's tower and its index is published anew.

Nothing is trained: the champion's towers and rankers stay, and so does its stage ledger.
"""

from __future__ import annotations

from typing import Any

from airflow.sdk import DAG
from sluice_airflow.params import REFRESH_PARAMS
from sluice_airflow.tasks import DEFAULT_ARGS, refresh_step

from stages.refresh import STEPS, UPSTREAM

with DAG(
    dag_id="refresh_index",
    description="Ingest, embed new items with the champion's tower, rebuild the index, register and promote it",
    schedule=None,
    catchup=False,
    # It has no schedule, and a run of a paused DAG would stay queued for ever, without a message.
    is_paused_upon_creation=False,
    max_active_runs=1,
    params=REFRESH_PARAMS,
    default_args=DEFAULT_ARGS,
    tags=["sluice"],
    doc_md=__doc__,
) as refresh_index:
    results: dict[str, Any] = {}
    for name in STEPS:
        upstream = {earlier: results[earlier] for earlier in UPSTREAM[name]}
        results[name] = refresh_step.override(task_id=name)(name, upstream)
