"""The monitor's queries of Airflow's metadata database: the only module that uses its models. Fits Airflow 3.3."""

from __future__ import annotations

import logging
from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from airflow.configuration import conf
from airflow.models import DagRun, Log, TaskInstance
from airflow.models.dag import DagTag
from airflow.models.dagbag import DBDagBag
from airflow.models.xcom import XComModel
from airflow.utils.session import create_session
from airflow.utils.state import DagRunState, TaskInstanceState
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from sluice_airflow.alerts import ERROR_KEY
from sluice_airflow.message import FailedRun, FailedStep
from sluice_airflow.outbox import OUTBOX

log = logging.getLogger(__name__)

TAG = "sluice"
"""DAGs with this tag are watched."""

SEEN_FROM_OUTSIDE = ("heartbeat timeout", "state mismatch", "stuck in queued tries exceeded")
"""Events that Airflow logs when a task ended without reporting it."""

_EVENT_LENGTH = 400

Key = tuple[str, str, int]
"""DAG, run and attempt."""


def engine() -> Engine:
    """Return the engine of Airflow's own settings."""
    with create_session(scoped=False) as session:
        return session.get_bind()


def unreported(since_ms: int) -> list[Key]:
    """Return the runs that ended in failure since then and have no row in the outbox, oldest first."""
    same = (
        (OUTBOX.c.dag_id == DagRun.dag_id)
        & (OUTBOX.c.run_id == DagRun.run_id)
        & (OUTBOX.c.attempt == DagRun.clear_number)
    )
    query = (
        select(DagRun.dag_id, DagRun.run_id, DagRun.clear_number)
        .join(DagTag, (DagTag.dag_id == DagRun.dag_id) & (DagTag.name == TAG))
        .outerjoin(OUTBOX, same)
        .where(
            DagRun.state == DagRunState.FAILED,
            DagRun.end_date >= datetime.fromtimestamp(since_ms / 1000, UTC),
            OUTBOX.c.id.is_(None),
        )
        .order_by(DagRun.end_date)
    )
    with create_session(scoped=False) as session:
        return [tuple(row) for row in session.execute(query)]


def confirmed(keys: Collection[Key]) -> list[Key]:
    """Return those attempts, of the ones the scheduler reported, that have failed according to the database by now.

    A run that was cleared in between is included: it did fail.
    """
    found = []
    with create_session(scoped=False) as session:
        for dag_id, run_id, attempt in keys:
            if session.get(DagTag, (TAG, dag_id)) is None:
                continue
            run = _run(session, dag_id, run_id)
            failed = run is not None and run.clear_number == attempt and run.state == DagRunState.FAILED
            if failed or (run is not None and run.clear_number > attempt):
                found.append((dag_id, run_id, attempt))
    return found


def read_run(key: Key) -> FailedRun:
    """Return what is known of a failed run."""
    dag_id, run_id, attempt = key
    with create_session(scoped=False) as session:
        run = _run(session, dag_id, run_id)
        if run is None:
            return FailedRun(dag_id, run_id)
        cleared = run.clear_number != attempt
        failed = (
            select(TaskInstance)
            .where(
                TaskInstance.dag_id == dag_id,
                TaskInstance.run_id == run_id,
                TaskInstance.state == TaskInstanceState.FAILED,
            )
            .order_by(TaskInstance.end_date, TaskInstance.task_id, TaskInstance.map_index)
        )
        steps = [] if cleared else [_step(session, instance) for instance in session.scalars(failed)]
        return FailedRun(
            dag_id,
            run_id,
            params=_params(session, run),
            steps=steps,
            ended=None if cleared else run.end_date,
            url=_url(dag_id, run_id),
            cleared=cleared,
        )


def _run(session: Session, dag_id: str, run_id: str) -> DagRun | None:
    return session.scalar(select(DagRun).where(DagRun.dag_id == dag_id, DagRun.run_id == run_id))


def _params(session: Session, run: DagRun) -> dict[str, Any]:
    """Return the run's own values over the DAG's defaults."""
    dag = DBDagBag(load_op_links=False).get_dag_for_run(run, session)
    defaults = dict(dag.params.dump()) if dag is not None else {}
    return defaults | dict(run.conf or {})


def _step(session: Session, instance: TaskInstance) -> FailedStep:
    mapped = f"[{instance.map_index}]" if instance.map_index >= 0 else ""
    return FailedStep(
        name=f"{instance.task_id}{mapped}",
        try_number=instance.try_number,
        host=instance.hostname or None,
        seconds=instance.duration,
        error=_error(session, instance),
        events=_events(session, instance),
        log_url=instance.log_url if _base_url() else None,
    )


def _error(session: Session, instance: TaskInstance) -> str | None:
    query = select(XComModel.value).where(
        XComModel.dag_id == instance.dag_id,
        XComModel.run_id == instance.run_id,
        XComModel.task_id == instance.task_id,
        XComModel.map_index == instance.map_index,
        XComModel.key == ERROR_KEY,
    )
    value = session.scalar(query)
    # The error of an earlier try says nothing about this one.
    if isinstance(value, dict) and value.get("try") == instance.try_number:
        return str(value.get("error"))
    return None


def _events(session: Session, instance: TaskInstance) -> list[str]:
    query = (
        select(Log.event, Log.extra)
        .where(
            Log.dag_id == instance.dag_id,
            Log.run_id == instance.run_id,
            Log.task_id == instance.task_id,
            Log.map_index == instance.map_index,
            Log.try_number == instance.try_number,
            Log.event.in_(SEEN_FROM_OUTSIDE),
        )
        .order_by(Log.id)
    )
    return [f"{event}: {extra or ''}"[:_EVENT_LENGTH] for event, extra in session.execute(query)]


def _base_url() -> str:
    return (conf.get("api", "base_url", fallback="") or "").rstrip("/")


def _url(dag_id: str, run_id: str) -> str | None:
    return f"{base}/dags/{dag_id}/runs/{quote(run_id)}" if (base := _base_url()) else None
