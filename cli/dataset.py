"""The verbs of ``sluice dataset``: look at the data before and after a selection."""

from __future__ import annotations

from typing import Any

import click

from cli.run import settings_from
from stages import pipeline


def check(**options: Any) -> None:
    """Evaluate the data contracts and print a line for each."""
    pipeline.check_warehouse(settings_from(**options), click.echo)
