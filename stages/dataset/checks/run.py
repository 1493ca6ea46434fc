"""The step ``check_data``: evaluate every contract, write the report, and stop the run if one failed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from stages.contracts.errors import ContractError, EmptyDatasetError
from stages.contracts.files import write_json
from stages.contracts.progress import progress
from stages.contracts.steps import Body, Outcome
from stages.dataset.checks import rows, trends
from stages.dataset.checks.config import CheckStepConfig, ContractName, ContractsConfig
from stages.dataset.checks.results import ContractReport, ContractResult, failure_text, table_text
from stages.dataset.checks.scene import Scene
from stages.dataset.config import DatasetConfig
from stages.warehouse.database.column_check import column_faults
from stages.warehouse.profile.profile import ingested_rows

if TYPE_CHECKING:
    from stages.warehouse.database.engine import Warehouse

log = logging.getLogger("sluice")


class Contract(NamedTuple):
    """One contract.

    Attributes:
        name: as in the configuration.
        reads: tables that the contract reads; it is skipped unless their columns are as declared.
        check: measures the numbers and judges them.
    """

    name: ContractName
    reads: tuple[str, ...]
    check: Callable[[Scene], list[ContractResult]]


CONTRACTS: tuple[Contract, ...] = (
    Contract("columns", (), rows.columns),
    Contract("keys", ("interactions",), rows.keys),
    Contract("values", ("interactions",), rows.values),
    Contract("signals", ("interactions",), trends.signals),
    Contract("freshness", ("interactions",), trends.freshness),
    Contract("future", ("interactions",), trends.future),
    Contract("volume", ("interactions",), trends.volume),
    Contract("label_rates", ("interactions",), trends.label_rates),
    Contract("duplicates", ("interactions",), rows.duplicates),
    Contract("unknown_items", ("interactions", "items"), rows.unknown_items),
    Contract("nulls", ("items",), rows.nulls),
    Contract("active_users", ("interactions",), trends.active_users),
    Contract("quarantine", (), rows.quarantine),
)
"""Every contract, in the order of evaluation."""


def check_warehouse(config: CheckStepConfig, warehouse: Warehouse) -> ContractReport:
    """Evaluate every contract, even if others fail.

    Args:
        config: levels, selection, as-of time.
        warehouse: open; it is only read. Tables are not created, and views are allowed.
    """
    scene = Scene(config, warehouse)
    contracts = progress(CONTRACTS, "check_data", unit="contract")
    results = [result for contract in contracts for result in _evaluate(contract, scene)]
    return ContractReport(as_of_ms=config.as_of_ms, results=tuple(results))


def require(report: ContractReport, kept: Path | None = None) -> None:
    """Log the warnings of a report, and refuse a report with failures.

    Raises:
        ContractError: with every failed contract, its numbers, its limits and sample rows.
    """
    for result in report.of_level("warn"):
        log.warning("[sluice] data contract %s", result.headline())
    if report.of_level("fail"):
        raise ContractError(failure_text(report, None if kept is None else str(kept)))


def check_body(warehouse: Warehouse, kept: Path) -> Body[CheckStepConfig]:
    """Return the step's body for an open warehouse, as ``run_step`` takes it.

    Args:
        warehouse: the warehouse to check.
        kept: path of a copy of the report outside the step's directory, since the directory of a failed
            step is removed.
    """

    def body(config: CheckStepConfig, inputs: Mapping[str, Path], directory: Path) -> Outcome:
        report = check_warehouse(config, warehouse)
        values = report.model_dump(mode="json")
        write_json(directory / "contracts.json", values)
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_json(kept, values)
        require(report, kept)
        warnings = {result.name: result.headline() for result in report.of_level("warn")}
        return report.metrics, {"warnings": warnings, "report": str(kept)}

    return body


def step_config(
    contracts: ContractsConfig,
    dataset: DatasetConfig,
    *,
    as_of_ms: int,
    latest_ms: int | None,
    now_ms: int,
    rows_read: int = 0,
    rows_quarantined: int = 0,
    warehouse_fingerprint: str = "",
) -> CheckStepConfig:
    """Return the step's configuration, which identifies it; the clock is part of it only if it matters.

    Args:
        contracts: the levels.
        dataset: the selection to check.
        as_of_ms: int ms UTC.
        latest_ms: time of the latest event of the warehouse, int ms UTC, or None if it is not known.
        now_ms: the clock, int ms UTC.
        rows_read: rows read by the last ingestion.
        rows_quarantined: rows quarantined by the last ingestion.
        warehouse_fingerprint: of the warehouse's content.
    """
    needs_clock = latest_ms is None or latest_ms > now_ms or contracts.freshness.against == "now"
    return CheckStepConfig(
        contracts=contracts,
        dataset=dataset,
        as_of_ms=as_of_ms,
        now_ms=now_ms if needs_clock else None,
        rows_read=rows_read,
        rows_quarantined=rows_quarantined,
        warehouse_fingerprint=warehouse_fingerprint,
    )


def check_standing(
    contracts: ContractsConfig,
    dataset: DatasetConfig,
    warehouse: Warehouse,
    as_of_ms: int | None,
    now_ms: int,
    show: Callable[[str], None],
) -> None:
    """Evaluate the contracts on a warehouse in its present state, show the table, and refuse failures.

    The share of quarantined rows covers all files in the warehouse's log.

    Raises:
        ContractError: after the table was shown.
        EmptyDatasetError: if no as-of time is given and there is no event to derive it from.
    """
    broken = {fault.table for fault in column_faults(warehouse)}
    latest = None if "interactions" in broken else warehouse.latest_event_ms()
    if latest is None and as_of_ms is None and not broken:
        raise EmptyDatasetError(f"warehouse {warehouse.name} holds no event; ingest some first, or give --as-of")
    if as_of_ms is None:
        as_of_ms = now_ms if latest is None else warehouse.as_of_ms(now_ms)
    rows_read, rows_quarantined = ingested_rows(warehouse)
    config = step_config(
        contracts,
        dataset,
        as_of_ms=as_of_ms,
        latest_ms=latest,
        now_ms=now_ms,
        rows_read=rows_read,
        rows_quarantined=rows_quarantined,
    )
    report = check_warehouse(config, warehouse)
    show(table_text(report))
    require(report)


def _evaluate(contract: Contract, scene: Scene) -> list[ContractResult]:
    if contract.name in scene.limits.skip:
        return [scene.skip(contract.name, "switched off")]
    broken = sorted({fault.table for fault in scene.faults} & set(contract.reads))
    if broken:
        return [scene.skip(contract.name, f"columns of {', '.join(broken)} are not as declared")]
    return contract.check(scene)
