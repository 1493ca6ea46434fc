"""Where a deployment keeps its things, and which recipe a run follows.

Entry points (the command line, the DAGs) build ``Settings`` once; steps only ever read them.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import reduce
from pathlib import Path
from typing import Any

from pydantic import ConfigDict

from stages.contracts.config import Config, merged, read_yaml
from stages.contracts.errors import ConfigError, DataError
from stages.contracts.shipped import RECIPES
from stages.release.config import RegistryConfig

WAREHOUSE = "warehouse"
"""As ``data``: nothing is loaded, and a run reads what the warehouse holds, in tables or views. The default."""

SYNTHETIC = "synthetic"
"""As ``data``: the synthetic world of the recipe is made and loaded, into a warehouse that holds nothing else."""


class Settings(Config):
    """One run's surroundings, plain JSON.

    Addresses may hold passwords: they are shown without them, and no error quotes them.

    Attributes:
        home: directory of the embedded default: warehouse, runs, MLflow's store, release cache.
        warehouse_url: SQLAlchemy URL of the warehouse.
        registry: where releases go.
        recipe: values of ``stages.recipe.Recipe``; what is left out takes its default.
        file_recipe: what the file holds by itself, for messages; None if the recipe came from no file.
        laid_over: the values of ``recipe`` that are not the file's, by what gave them, for messages.
        config_path: where the recipe came from, for messages; None where ``recipe`` holds overrides alone.
        data: path of the interactions to ingest, ``WAREHOUSE`` or ``SYNTHETIC``.
        mapping_path: YAML file that maps the columns of a generic file, or None.
        as_of_ms: events from this time on do not exist for the run; None = just after the
            latest that is not later than ``now_ms``.
        now_ms: the wall clock at the start, int ms UTC; later events are quarantined as bad rows.
        promote: whether a release that passes the gate becomes champion.
        allow_times: whether times of events are taken that look like a mistake of their unit.
    """

    model_config = ConfigDict(hide_input_in_errors=True)

    home: str
    warehouse_url: str
    registry: RegistryConfig
    recipe: dict[str, Any] = {}
    file_recipe: dict[str, Any] | None = None
    laid_over: dict[str, dict[str, Any]] = {}
    config_path: str | None = None
    data: str = WAREHOUSE
    mapping_path: str | None = None
    as_of_ms: int | None = None
    now_ms: int
    promote: bool = True
    allow_times: bool = False

    @property
    def runs(self) -> Path:
        """Directory below which every step keeps its outputs."""
        return Path(self.home) / "runs"

    def on_recipe(self, recipe: Mapping[str, Any], origin: str) -> Settings:
        """Return settings that follow a recipe from elsewhere, with this one's values laid over it."""
        return self.model_copy(
            update={"recipe": merged(recipe, self.recipe), "file_recipe": dict(recipe), "config_path": origin}
        )


def load_settings(
    environ: Mapping[str, str],
    *,
    data: str | None = None,
    config: str | None = None,
    mapping: str | None = None,
    as_of: str | None = None,
    n_processes: int | None = None,
    warm_start: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    promote: bool = True,
    allow_times: bool = False,
    needs_recipe: bool = True,
) -> Settings:
    """Build settings from the environment and a run's parameters.

    Reads ``SLUICE_HOME`` (default ``var``), ``SLUICE_WAREHOUSE_URL`` (default: a DuckDB file in the
    home), ``SLUICE_MLFLOW_URI`` (default: SQLite in the home), ``SLUICE_MODEL_NAME``,
    ``SLUICE_CONFIGS`` (the folder of recipes, default: those that came with this version), and, where the
    parameter is not given, ``SLUICE_CONFIG`` and ``SLUICE_DATA``.

    Args:
        environ: usually ``os.environ``.
        data: interactions to ingest, ``WAREHOUSE`` or ``SYNTHETIC``; None = ``WAREHOUSE``.
        config: path of a recipe in YAML; None = the recipe that suits the data.
        mapping: path of a column mapping in YAML for generic files.
        as_of: ISO 8601 time with zone; events from then on are left out.
        n_processes: ranks that train the candidate generator.
        warm_start: finished ``train_candidate`` step, or release, that the candidate generator goes on from.
        overrides: values laid over the recipe, nested.
        promote: whether to promote a release that passes the gate.
        allow_times: whether to take times of events that look like a mistake of their unit.
        needs_recipe: False where a release brings its own: without ``config`` the overrides stand alone.

    Raises:
        ConfigError: naming the field, its value and what is allowed.
        DataError: if there is nothing at ``data`` and no recipe is given.
    """
    home = Path(environ.get("SLUICE_HOME") or "var").resolve()
    data = data or environ.get("SLUICE_DATA") or None
    config = config or environ.get("SLUICE_CONFIG") or None
    if config is None and needs_recipe:
        config = str(_suitable_recipe(environ, data))
    laid_over = {"overrides (--set)": dict(overrides or {})}
    if n_processes is not None:
        laid_over["n_processes (--processes)"] = {"candidate": {"distributed": {"n_processes": n_processes}}}
    if warm_start is not None:
        laid_over["warm_start (--warm-start)"] = {
            "candidate": {"warm_start": {"path": str(Path(warm_start).resolve())}}
        }
    file_recipe = None if config is None else read_yaml(Path(config))
    return Settings(
        home=str(home),
        warehouse_url=environ.get("SLUICE_WAREHOUSE_URL") or f"duckdb:///{home / 'warehouse.duckdb'}",
        registry=registry_settings(environ),
        recipe=reduce(merged, laid_over.values(), file_recipe or {}),
        file_recipe=file_recipe,
        laid_over={name: values for name, values in laid_over.items() if values},
        config_path=None if config is None else str(Path(config).resolve()),
        data=str(Path(data).resolve()) if data and data not in (WAREHOUSE, SYNTHETIC) else data or WAREHOUSE,
        mapping_path=str(Path(mapping).resolve()) if mapping else None,
        as_of_ms=parse_time_ms(as_of) if as_of else None,
        now_ms=int(datetime.now(UTC).timestamp() * 1000),
        promote=promote,
        allow_times=allow_times,
    )


def _suitable_recipe(environ: Mapping[str, str], data: str | None) -> Path:
    folder = Path(environ.get("SLUICE_CONFIGS") or RECIPES)
    if data == SYNTHETIC:
        return folder / "demo.yaml"
    if data is None:
        raise ConfigError(
            f"data: nothing is given; allowed is --data PATH, --data {SYNTHETIC} for the synthetic world, or a recipe "
            f"(--config) for what the warehouse holds; recipes for a start are in {folder}"
        )
    if data == WAREHOUSE:
        raise ConfigError(f"config: a recipe is needed for data = {data}; recipes for a start are in {folder}")
    if not Path(data).exists():
        raise DataError(f"data = {data}: no such file or directory")
    # Imported here: what serves a release reads settings too, and has no warehouse.
    from stages.warehouse.layouts.detect import find_layout

    found = find_layout(Path(data))
    if found is not None:
        return folder / found[0].recipe
    raise ConfigError(
        f"config: a recipe is needed for {data}, which has no known layout; recipes for a start are in {folder}"
    )


def registry_settings(environ: Mapping[str, str]) -> RegistryConfig:
    """Return where releases are registered, from the environment (see ``load_settings``)."""
    home = Path(environ.get("SLUICE_HOME") or "var").resolve()
    uri = environ.get("SLUICE_MLFLOW_URI")
    return RegistryConfig(
        tracking_uri=uri or f"sqlite:///{home / 'mlflow.db'}",
        artifact_root=None if uri else str(home / "mlartifacts"),
        model_name=environ.get("SLUICE_MODEL_NAME") or "sluice-funnel",
    )


def parse_time_ms(text: str) -> int:
    """Parse an ISO 8601 time into int ms UTC; a time without a zone is UTC.

    Raises:
        ConfigError: if the text is not such a time.
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"as_of = {text!r}: allowed is an ISO 8601 time such as 1998-04-22T00:00:00+00:00") from None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return int(moment.timestamp() * 1000)


def release_cache(environ: Mapping[str, str]) -> Path:
    """Return the directory in which pulled releases are kept, one folder a release id."""
    return Path(environ.get("SLUICE_HOME") or "var").resolve() / "serving" / "releases"
