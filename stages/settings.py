"""Settings of a run: paths and addresses of a deployment, and the recipe.

Entry points (the command line, the DAGs) build ``Settings`` once; steps only read them.
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
"""Value of ``data``, the default: nothing is loaded, and a run reads the warehouse's tables or views as they are."""

SYNTHETIC = "synthetic"
"""Value of ``data``: the recipe's synthetic world is made and loaded into a warehouse without other data."""


class Settings(Config):
    """The settings of one run, as plain JSON.

    Addresses may hold passwords. They are shown without passwords, and no error message quotes them.

    Attributes:
        home: directory of the embedded warehouse and MLflow store (the defaults), of the runs and the release cache.
        warehouse_url: SQLAlchemy URL of the warehouse.
        registry: MLflow registry of the releases.
        recipe: values of ``stages.recipe.Recipe``; missing values take their defaults.
        file_recipe: values of the recipe's file alone, for messages; None if there is no file.
        laid_over: values of ``recipe`` that are not from the file, by their origin, for messages.
        config_path: origin of the recipe, for messages; None if ``recipe`` holds only overrides.
        data: path of the interactions to ingest, ``WAREHOUSE`` or ``SYNTHETIC``.
        mapping_path: YAML file that maps the columns of a generic file, or None.
        as_of_ms: int ms UTC; events from this time on do not exist for the run. None = just after the latest
            event that is not later than ``now_ms``.
        now_ms: the wall clock at the start, int ms UTC; later events are quarantined.
        promote: whether a release that passes the gate becomes champion.
        allow_times: whether to accept event times that look like a wrong unit.
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
        """Directory of the outputs of all steps."""
        return Path(self.home) / "runs"

    def on_recipe(self, recipe: Mapping[str, Any], origin: str) -> Settings:
        """Return settings with another recipe, overridden by the values of the present one."""
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
    ``SLUICE_CONFIGS`` (the folder of recipes, default: the recipes of this version), and, if the parameter
    is not given, ``SLUICE_CONFIG`` and ``SLUICE_DATA``.

    Args:
        environ: usually ``os.environ``.
        data: interactions to ingest, ``WAREHOUSE`` or ``SYNTHETIC``; None = ``WAREHOUSE``.
        config: path of a recipe in YAML; None = the recipe that suits the data.
        mapping: path of a column mapping in YAML for generic files.
        as_of: ISO 8601 time with zone; events from then on are left out.
        n_processes: number of ranks that train the two-tower model.
        warm_start: directory of a finished ``train_candidate`` step or of a release from which training starts.
        overrides: nested values that override the recipe.
        promote: whether to promote a release that passes the gate.
        allow_times: whether to accept event times that look like a wrong unit.
        needs_recipe: False if a release's recipe is used: without ``config`` the settings hold only overrides.

    Raises:
        ConfigError: if a value is wrong; the message has the field, the value and what is allowed.
        DataError: if the path ``data`` does not exist and no recipe is given.
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
    # Imported here: a server reads settings too, but has no warehouse.
    from stages.warehouse.layouts.detect import find_layout

    found = find_layout(Path(data))
    if found is not None:
        return folder / found[0].recipe
    raise ConfigError(
        f"config: a recipe is needed for {data}, which has no known layout; recipes for a start are in {folder}"
    )


def registry_settings(environ: Mapping[str, str]) -> RegistryConfig:
    """Return the configuration of the release registry from the environment (see ``load_settings``)."""
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
    """Return the directory of the pulled releases, with one folder for each release id."""
    return Path(environ.get("SLUICE_HOME") or "var").resolve() / "serving" / "releases"
