"""The ``sluice`` command: thin, one function per verb.

Exit codes: 0 done; 1 an unexpected fault; 2 wrong usage or configuration; 3 bad data; 4 a release
that is corrupt or did not pass its gate; 5 a fault that may pass, worth trying again.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from stages import __version__
from stages.contracts.deadline import exit_now, unfinished
from stages.contracts.errors import ConfigError, DataError, ReleaseError, RequestError, SluiceError, TransientError
from stages.contracts.redacted_errors import raise_redacted, redact_logs
from stages.contracts.redaction import redacted

EXIT_CODES: tuple[tuple[type[SluiceError], int], ...] = (
    (ConfigError, 2),
    (DataError, 3),
    (ReleaseError, 4),
    (TransientError, 5),
    (RequestError, 2),
)


def reports_errors(verb: Callable[..., None]) -> Callable[..., None]:
    """Turn a ``SluiceError`` into one line on stderr and an exit code; only other errors show a traceback.

    No line holds a secret.
    """

    @functools.wraps(verb)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        code = 0
        try:
            verb(*args, **kwargs)
        except SluiceError as error:
            click.echo(f"error: {redacted(str(error))}", err=True)
            code = next((code for kind, code in EXIT_CODES if isinstance(error, kind)), 1)
        except Exception as error:  # noqa: BLE001 - raised again; Python prints it with its traceback
            raise_redacted(error)
        if unfinished():
            exit_now(code)  # a call to a registry that hangs must not hold up the end
        if code:
            sys.exit(code)

    return wrapped


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}, epilog=__doc__)
@click.version_option(__version__, prog_name="sluice")
@click.option("-v", "--verbose", is_flag=True, help="Log more.")
def main(verbose: bool) -> None:
    """Run a multi-stage ranking funnel: from interactions in SQL to recommendations over HTTP.

    The embedded default keeps everything below SLUICE_HOME (default: var). SLUICE_WAREHOUSE_URL
    points at another warehouse, SLUICE_MLFLOW_URI at another MLflow.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(message)s")
    logging.getLogger("sluice").setLevel(logging.INFO)
    redact_logs()


def recipe_options(verb: Callable[..., None]) -> Callable[..., None]:
    """Add the options that describe a run."""
    options = [
        click.option(
            "--data",
            type=click.Path(),
            help="MovieLens directory or a CSV, JSON lines or Parquet file; 'warehouse' (the default) loads nothing "
            "and reads what is there; 'synthetic' makes and loads the synthetic world.",
        ),
        click.option("--mapping", type=click.Path(), help="YAML that maps the columns of a generic file."),
        click.option("--config", type=click.Path(), help="Recipe in YAML; default: the one that suits the data."),
        click.option("--base", type=click.Path(), help="Snapshot or release whose rows of users and items stay."),
        click.option("--as-of", help="ISO 8601 time; events from then on are left out. Default: after the latest."),
        click.option(
            "--allow-times",
            is_flag=True,
            help="Load times before 1990, in the future, or of many users within an hour.",
        ),
        click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a recipe value."),
    ]
    for option in reversed(options):
        verb = option(verb)
    return verb


@main.command()
@recipe_options
@reports_errors
def ingest(**options: Any) -> None:
    """Load interactions, items and users into the warehouse.

    Loading the same file twice adds nothing; a file whose content or mapping has changed replaces its earlier rows.
    Impossible times are refused before anything is stored. Bad rows go to the table `quarantine` with their reason.
    Real data and the synthetic world never meet in one warehouse.
    """
    from cli.run import ingest as verb

    verb(**options)


@main.command()
@recipe_options
@click.option("--until", default="promote", show_default=True, help="Last step to run.")
@click.option("--processes", type=int, help="Ranks that train the candidate generator.")
@click.option(
    "--warm-start", type=click.Path(), help="Candidate step or release whose model is trained on; see --base."
)
@click.option("--promote/--no-promote", default=True, show_default=True, help="Make a release that passes champion.")
@reports_errors
def run(**options: Any) -> None:
    """Run the whole job in this process, without Airflow: the same steps as the DAG's tasks.

    Without --data the warehouse is read as it stands, by the recipe of --config.
    """
    from cli.run import run as verb

    verb(**options)


@main.command()
@recipe_options
@click.option("--promote/--no-promote", default=True, show_default=True, help="Make the refreshed release champion.")
@reports_errors
def refresh(**options: Any) -> None:
    """Embed new items with the champion's tower and publish its index anew, without training.

    Without --data the warehouse is read as it stands. The recipe gives the index and the gate; everything else is the
    champion's. Without --config the champion's recipe is used.
    """
    from cli.run import refresh as verb

    verb(**options)


@main.group()
def dataset() -> None:
    """Check the data that a run would train on."""


@dataset.command("check")
@recipe_options
@reports_errors
def dataset_check(**options: Any) -> None:
    """Evaluate the data contracts on the warehouse as it stands.

    Nothing is ingested and nothing is written; --data only chooses the recipe. Exit code 3 if a
    contract fails.
    """
    from cli.dataset import check

    check(**options)


@dataset.command("report")
@recipe_options
@click.option("--output", type=click.Path(dir_okay=False), help="Where the page goes; default: its step's directory.")
@reports_errors
def dataset_report(**options: Any) -> None:
    """Report how much data is enough, as HTML with plots.

    Runs the steps up to the report: what share of the next days' users and traffic each threshold
    would have covered, and quality against window length.
    """
    from cli.dataset import report

    report(**options)


@dataset.command("pairs")
@recipe_options
@click.option("--output", type=click.Path(dir_okay=False), default="pairs.csv", show_default=True, help="CSV to write.")
@click.option("--vectors", type=click.Path(), help="Parquet of item_id and vector; default: the tower's own vectors.")
@click.option("--threshold", type=float, default=0.95, show_default=True, help="Smallest cosine.")
@click.option("--neighbours", type=int, default=10, show_default=True, help="Neighbours of an item to look at.")
@reports_errors
def dataset_pairs(**options: Any) -> None:
    """Find pairs of items with nearly equal vectors, through Faiss.

    The CSV is what dataset.duplicates.pairs reads: the next run decides each pair by its threshold.
    """
    from cli.dataset import pairs

    pairs(**options)


@main.command()
@click.option("--host", envvar="SLUICE_HOST", default="127.0.0.1", show_default=True)
@click.option("--port", envvar="SLUICE_PORT", type=int, default=8080, show_default=True)
@click.option("--alias", default="champion", show_default=True, help="MLflow alias of the release to serve.")
@click.option("--release", "directory", type=click.Path(), help="Serve this release directory instead.")
@click.option("--poll-seconds", type=float, default=10.0, show_default=True, help="How often to look for a promotion.")
@click.option(
    "--clock",
    envvar="SLUICE_CLOCK",
    type=click.Choice(["auto", "wall", "data"]),
    default="auto",
    show_default=True,
    help="wall: the machine's time. data: the release's as-of time, running on. auto: data for a release that is "
    "more than a year old.",
)
@reports_errors
def serve(**options: Any) -> None:
    """Pull the champion from MLflow and answer over HTTP until stopped."""
    from cli.serve import serve as verb

    verb(**options)


@main.command()
@click.argument("user_id")
@click.option("-k", type=int, default=10, show_default=True, help="How many items.")
@click.option("--explain", is_flag=True, help="Show the score and rank of each item at every stage.")
@click.option("--context", multiple=True, metavar="NAME:VALUE", help="What is known about the moment.")
@click.option("--category", multiple=True, help="Only items of this category; several times: any of them.")
@click.option("--max-age-days", type=float, default=None, help="Only items created at most so many days ago.")
@click.option("--alias", default="champion", show_default=True, help="MLflow alias of the release.")
@reports_errors
def recommend(**options: Any) -> None:
    """Print recommendations for USER_ID from the released funnel, without a server.

    The answer is for the release as it was assembled: events posted to a server are not in it.
    """
    from cli.serve import recommend as verb

    verb(**options)


@main.group()
def release() -> None:
    """List, check, promote and roll back releases."""


@release.command("list")
@reports_errors
def release_list() -> None:
    """List registered releases and their aliases."""
    from cli.release import list_releases

    list_releases()


@release.command("page")
@click.option("--server", default="http://127.0.0.1:5000", show_default=True, help="Address of the MLflow server.")
@reports_errors
def release_page(server: str) -> None:
    """Print the address of MLflow's page that lists the runs.

    MLflow's own first page of an experiment shows traces, and there are none.
    """
    from cli.release import page

    page(server)


@release.command("promote")
@click.argument("version")
@click.option("--force", is_flag=True, help="Promote whatever the gate says; the registry records it.")
@reports_errors
def release_promote(version: str, force: bool) -> None:
    """Make VERSION (a number or a release id) the champion, if it passes the gate and is no worse than the champion."""
    from cli.release import promote

    promote(version, force)


@release.command("rollback")
@reports_errors
def release_rollback() -> None:
    """Make the previous champion the champion again."""
    from cli.release import rollback

    rollback()


@release.command("verify")
@click.argument("directory", type=click.Path(path_type=Path))
@reports_errors
def release_verify(directory: Path) -> None:
    """Check every file of the release in DIRECTORY against its manifest."""
    from cli.release import verify

    verify(directory)


@main.command()
@click.option("--alias", default="challenger", show_default=True, help="MLflow alias of the release to report on.")
@click.option("--html", type=click.Path(path_type=Path), help="Also write the report as one HTML file.")
@reports_errors
def report(alias: str, html: Path | None) -> None:
    """Print the stage ledger of a release: what each stage gains on the one before it."""
    from cli.release import report as verb

    verb(alias, html)


@main.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a value of the world.")
@reports_errors
def simulate(directory: Path, overrides: tuple[str, ...]) -> None:
    """Write a synthetic world to DIRECTORY as Parquet, with its truth beside it."""
    from cli.run import simulate as verb

    verb(directory, overrides)


@main.command()
@click.option("--data", type=click.Path(), help="MovieLens directory; default: the synthetic world.")
@click.option("--config", type=click.Path(), help="Recipe in YAML; default: the one that suits the data.")
@click.option("--dags", type=click.Path(path_type=Path), help="DAG folder; default: the one that came with Sluice.")
@click.option("--keep-serving", is_flag=True, help="Leave the server running at the end.")
@click.option("--port", type=int, default=0, help="Port of the demo's server (0: any free one).")
@reports_errors
def demo(**options: Any) -> None:
    """Run the main job as an Airflow DAG run, serve the release, and show what it answers."""
    from cli.demo import demo as verb

    verb(**options)
