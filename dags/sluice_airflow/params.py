"""The trigger form that the DAGs share: keyword arguments of ``stages.settings.load_settings``."""

from __future__ import annotations

from airflow.sdk import Param

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
        description='Values laid over the recipe, for example {"candidate": {"dim": 32}}.',
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
"""Names of those that mean nothing where nothing is trained."""
