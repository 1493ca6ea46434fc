"""The verbs of ``sluice dataset``: look at the data before and after a selection."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cli.run import settings_from
from stages import dataset_verbs


def check(**options: Any) -> None:
    """Evaluate the data contracts and print a line for each."""
    dataset_verbs.check_warehouse(settings_from(**options), click.echo)


def report(output: str | None, **options: Any) -> None:
    """Write the dataset report and print what it says."""
    path, sentences = dataset_verbs.report_dataset(
        settings_from(**options), None if output is None else Path(output), lambda step: click.echo(f"{step} …")
    )
    for sentence in sentences:
        click.echo(sentence)
    click.echo(f"report: {path}")


def pairs(output: str, vectors: str | None, threshold: float, neighbours: int, **options: Any) -> None:
    """Write pairs of items with nearly equal vectors."""
    found = dataset_verbs.similar_items(
        settings_from(**options),
        Path(output),
        None if vectors is None else Path(vectors),
        threshold,
        neighbours,
        lambda step: click.echo(f"{step} …"),
    )
    click.echo(f"{found} pairs: {output}")
