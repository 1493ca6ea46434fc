"""The trigger form that the DAGs share: keyword arguments of ``stages.settings.load_settings``."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from copy import copy
from typing import Any

from airflow.sdk import Param
from airflow.sdk.exceptions import ParamValidationError

from stages.contracts.errors import ConfigError

PARAMS = {
    "data": Param(
        None,
        type=["null", "string"],
        title="Interactions",
        description="MovieLens directory, or a CSV, JSON lines or Parquet file, as the workers see it; or synthetic: "
        "the synthetic world is made and loaded, into a warehouse that holds nothing else. Empty, or warehouse: "
        "nothing is loaded, and the run reads what the warehouse holds.",
    ),
    "mapping": Param(
        None,
        type=["null", "string"],
        title="Column mapping",
        description="YAML file that maps the columns of a generic file.",
    ),
    "config": Param(
        None,
        type=["null", "string"],
        title="Recipe",
        description="Recipe in YAML, as the workers see it. Empty: the recipe that suits the data, and the champion's "
        "in a refresh; a training on what the warehouse holds needs one.",
    ),
    "as_of": Param(
        None,
        type=["null", "string"],
        format="date-time",
        title="As of",
        description="Events from this time on do not exist for the run. Empty: just after the latest event.",
    ),
    "n_processes": Param(
        None,
        type=["null", "integer"],
        minimum=1,
        title="Processes",
        description="Ranks that train the candidate generator. Empty: as the recipe says.",
    ),
    "warm_start": Param(
        None,
        type=["null", "string"],
        title="Warm start",
        description="Finished train_candidate step, or release, whose candidate generator is trained on; the snapshot "
        "must extend its ids (overrides: dataset.base). Empty: training starts anew.",
    ),
    "overrides": Param(
        None,
        type=["null", "object"],
        title="Overrides",
        description='Values laid over the recipe, for example {"candidate": {"model": {"dimension": 32}}}.',
    ),
    "promote": Param(
        True,
        type="boolean",
        title="Promote",
        description="Make the release champion if it passes the gate.",
    ),
}
"""Parameters by name."""

TRAINING_ONLY = ("n_processes", "warm_start")
"""Names of the parameters that only training uses."""

REFRESH_PARAMS = {name: param for name, param in PARAMS.items() if name not in TRAINING_ONLY}
"""Parameters of the refresh by name."""


def checked(params: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """Return a run's parameters after checking them against the form.

    Airflow accepts names that the form does not have, and does not check the values of some ways to start a run.

    Args:
        params: of the run, by name.
        known: names that this DAG's form has.

    Raises:
        ConfigError: naming every unknown name, or the first value that the form does not allow.
    """
    unknown = sorted(set(params) - set(known))
    if unknown:
        raise ConfigError(f"params (--conf): {', '.join(unknown)}: unknown, allowed are {', '.join(sorted(known))}")
    for name, value in params.items():
        try:
            copy(PARAMS[name]).resolve(value)  # a copy, since a Param keeps the last value that it was given
        except ParamValidationError:
            raise ConfigError(f"params (--conf): {name} = {value!r}: allowed is {_allowed(name)}") from None
    return dict(params)


def _allowed(name: str) -> str:
    schema = PARAMS[name].schema
    kinds = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
    words = " or ".join(sorted(kinds, key="null".__eq__))
    least = f", at least {schema['minimum']}" if "minimum" in schema else ""
    return f"{words}{least}{', such as 1998-04-22T00:00:00+00:00' if schema.get('format') == 'date-time' else ''}"
