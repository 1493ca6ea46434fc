"""The data sources of a run: data in a known layout, generic files with a mapping, or the synthetic world.

A warehouse holds either the synthetic world or real data: a model of a mixture would be useless for both.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.contracts.config import Config, parse_config, read_yaml
from stages.contracts.errors import ConfigError, DataError, EmptyDatasetError
from stages.contracts.files import canonical_json, sha256_text
from stages.contracts.results import StageResult
from stages.job import StepRun
from stages.settings import SYNTHETIC, WAREHOUSE, Settings

if TYPE_CHECKING:
    from stages.recipe import Recipe
    from stages.simulator.config import WorldConfig
    from stages.warehouse.database.engine import Warehouse
    from stages.warehouse.ingest.report import IngestReport
    from stages.warehouse.mapping import IngestSource


def ingest_source(config: Config, run: StepRun) -> StageResult:
    """Load the run's data source into the warehouse; repeated rows are not added again.

    Returns:
        A result. Its fingerprint covers the warehouse's content and the as-of time, its metrics are row
        counts, and its info holds ``as_of_ms`` and the counts by table and reason.

    Raises:
        DataError: if the data source cannot be read, its times are implausible, or the warehouse holds no
            event although events were to be loaded.
        ConfigError: if a mapping is wrong, or the synthetic world and real data would be mixed.
    """
    from stages.warehouse.database.engine import Warehouse

    settings, recipe = run.settings, run.recipe
    source = None if settings.data in (WAREHOUSE, SYNTHETIC) else find_source(settings, recipe)
    Path(settings.home).mkdir(parents=True, exist_ok=True)
    with Warehouse(settings.warehouse_url) as warehouse:
        name, report = _load(warehouse, settings, recipe, source)
        latest = warehouse.latest_event_ms()
        empty = _no_event(name, report)
        if latest is None and (settings.data == WAREHOUSE or "interactions" in report.tables):
            raise EmptyDatasetError(empty)
        notes = _notes(warehouse, None if settings.data == WAREHOUSE else name, report)
        fingerprint = warehouse.content_fingerprint()
        as_of_ms = settings.as_of_ms if settings.as_of_ms is not None else warehouse.as_of_ms(settings.now_ms)
    return StageResult(
        step="ingest",
        path=settings.home,
        fingerprint=sha256_text(canonical_json({"content": fingerprint, "as_of_ms": as_of_ms})),
        metrics={
            "rows_read": float(report.rows_read),
            "rows_loaded": float(report.rows_loaded),
            "rows_duplicate": float(report.rows_duplicate),
            "rows_quarantined": float(report.rows_quarantined),
        },
        info={
            "source": name,
            "as_of_ms": as_of_ms,
            "content": fingerprint,
            "latest_event_ms": latest,
            "tables": report.tables,
            "reasons": report.reasons,
            "notes": notes,
            "no_event": empty if latest is None else None,
        },
        reused=report.rows_loaded == 0 and report.rows_quarantined == 0 and report.rows_replaced == 0,
    )


def require_events(source: StageResult) -> None:
    """Refuse to continue if the warehouse holds no event after the ingestion, for example of a catalogue alone.

    Raises:
        EmptyDatasetError: if there is no event; the message has the data source and what was read.
    """
    if source.info.get("no_event"):
        raise EmptyDatasetError(str(source.info["no_event"]))


def _notes(warehouse: Warehouse, source_name: str | None, report: IngestReport) -> list[str]:
    """Return lines on the replaced events, and on the time spans of the data source's events and items."""
    from stages.warehouse.ingest.times import born_line, source_span

    notes = [
        f"{file.file}: replaced {file.rows_replaced:,} events of the file's earlier load; {file.rows_removed:,} of "
        "them were removed"
        for file in report.files
        if file.rows_replaced
    ]
    with warehouse.connect() as connection:
        span = source_span(connection, source_name)
        born = born_line(connection) if report.tables.get("items") else None
    if span is None and not report.tables.get("interactions"):
        held = ", ".join(f"{count:,} {table}" for table, count in warehouse.counts().items() if table in report.tables)
        notes.append(f"no events yet; the warehouse holds {held}")
    return [*notes, *([f"{source_name or 'warehouse'}: {span}"] if span else []), *([born] if born else [])]


def _load(
    warehouse: Warehouse, settings: Settings, recipe: Recipe, source: IngestSource | None
) -> tuple[str, IngestReport]:
    """Load the data source, or the synthetic world if requested; return its name and the ingestion's report."""
    from stages.warehouse.ingest.ingest import ingest
    from stages.warehouse.ingest.report import IngestReport

    if settings.data == WAREHOUSE:
        warehouse.create_tables()
        _check_columns(warehouse)
        return WAREHOUSE, IngestReport(files=())
    warehouse.create_tables_to_load()
    _check_unmixed(warehouse, settings.data, world_name(recipe.world))
    source = source or find_source(settings, recipe)
    check = not settings.allow_times
    return source.name, ingest(warehouse, source, now_ms=settings.now_ms, progress=True, check_times=check)


def _check_unmixed(warehouse: Warehouse, data: str, world: str) -> None:
    """Refuse to mix the synthetic world with other data or with another synthetic world.

    Raises:
        ConfigError: with the data sources that the warehouse holds and what to do.
    """
    from stages.warehouse.ingest.holdings import held_sources

    held = held_sources(warehouse)
    if data == SYNTHETIC:
        others = [name for name in held if name != world]
        mixed = f"the synthetic world ({world})"
    else:
        others = [name for name in held if name.startswith(f"{SYNTHETIC}-")]
        mixed = "real data"
    if others:
        raise ConfigError(
            f"data = {data}: warehouse {warehouse.name} holds {', '.join(others)}, with which {mixed} would be mixed; "
            f"allowed is a fresh SLUICE_HOME or SLUICE_WAREHOUSE_URL, or data = {WAREHOUSE} to read what is there"
        )


def world_name(world: WorldConfig) -> str:
    """Return the data source name of a synthetic world; worlds that differ only in ``n_events`` share a name.

    Users, items and their true preferences depend on the whole configuration except the number of events.
    """
    from stages.contracts.code import code_digest

    drawn = world.model_dump(mode="json", exclude={"n_events"})
    return f"{SYNTHETIC}-{sha256_text(canonical_json([drawn, code_digest('stages.simulator', imports=False)]))[:12]}"


def _no_event(name: str, report: IngestReport) -> str:
    if name == WAREHOUSE:
        return (
            f"data = {WAREHOUSE}: no event is in the warehouse, and nothing is loaded; allowed is --data PATH, or "
            f"--data {SYNTHETIC} for the synthetic world"
        )
    return f"{name}: no event is in the warehouse after ingesting; {_reasons(report)}"


def _check_columns(warehouse: Warehouse) -> None:
    """Raise DataError unless the tables or views have every column that a run reads."""
    from stages.warehouse.database.column_check import column_faults

    faults = column_faults(warehouse)
    if faults:
        raise DataError(f"data = {WAREHOUSE}: {'; '.join(map(str, faults))}")


def find_source(settings: Settings, recipe: Recipe) -> IngestSource:
    """Return the data source of the run's settings; the synthetic world is written first if needed."""
    from stages.warehouse.layouts.detect import detect, find_layout

    if settings.data == SYNTHETIC:
        world = detect(_world_directory(settings, recipe))
        return world.model_copy(update={"name": world_name(recipe.world)})
    data = Path(settings.data)
    if settings.mapping_path is not None:
        return _mapped(data, Path(settings.mapping_path))
    if data.is_file() and find_layout(data) is None:
        raise ConfigError(f"{data}: a file needs --mapping; only known layouts load without one")
    return detect(data)


def _world_directory(settings: Settings, recipe: Recipe) -> Path:
    from stages.simulator.write import write_world

    world = recipe.world
    key = sha256_text(canonical_json([world.model_dump(mode="json"), world_name(world)]))[:16]
    directory = Path(settings.home) / "world" / key
    if not directory.is_dir():
        write_world(world, directory)
    return directory


def _mapped(data: Path, mapping: Path) -> IngestSource:
    """Read the mapping of one file (``mapping: {table: …}``) or of several (``name`` and ``files``).

    If ``data`` is a directory, ``path`` is relative to it and may be a pattern such as ``*.json.gz``.
    """
    from stages.warehouse.mapping import IngestSource

    if not data.exists():
        raise DataError(f"{data}: no such file or directory")
    values: dict[str, Any] = read_yaml(mapping)
    if "files" not in values:
        pattern = values.pop("path", None)
        place = data / str(pattern) if pattern and data.is_dir() else data
        values = {"name": values.pop("name", data.name), "files": [{**values, "path": str(place)}]}
    elif data.is_dir() and isinstance(values["files"], list):
        values["files"] = [
            {**entry, "path": str(data / str(entry.get("path", "")))} if isinstance(entry, dict) else entry
            for entry in values["files"]
        ]
    return parse_config(IngestSource, values, str(mapping))


def _reasons(report: IngestReport) -> str:
    if not report.reasons:
        return f"{report.rows_read} rows were read"
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(report.reasons.items()))
    return f"rows were quarantined: {reasons}"
