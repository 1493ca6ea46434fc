"""The verbs on releases: list, page, promote, rollback, verify, report."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from stages.contracts.config import parse_config
from stages.contracts.files import read_json
from stages.contracts.manifest import read_manifest, verify_release
from stages.release.gate import GateConfig
from stages.release.registry import ReleaseRegistry
from stages.settings import registry_settings, release_cache


def _registry() -> ReleaseRegistry:
    return ReleaseRegistry(registry_settings(os.environ))


def list_releases() -> None:
    """Print every registered release, newest first."""
    table = Table("version", "release", "aliases", "created")
    for entry in reversed(_registry().list()):
        created = datetime.fromtimestamp(entry.created_at_ms / 1000, UTC).isoformat(timespec="seconds")
        table.add_row(str(entry.version), entry.release_id, ", ".join(entry.aliases), created)
    Console().print(table)


def page(server: str) -> None:
    """Print the address of MLflow's page that lists the runs."""
    click.echo(_registry().runs_page(server))


def promote(version: str, force: bool) -> None:
    """Make a registered release the champion if it passes the gate of its own recipe; ``force`` skips the gate."""
    registry = _registry()
    gate = None
    if not force:
        config = registry.pull(version, release_cache(os.environ)) / "config.json"
        gate = parse_config(GateConfig, read_json(config).get("gate", {}), f"{config}, section gate")
    made = registry.challenge(version, gate, force)
    promoted = made.winner()
    click.echo(f"champion: version {promoted.version}, release {promoted.release_id}")
    click.echo(f"  {made.comparison.reason}")


def rollback() -> None:
    """Make the previous champion the champion again."""
    restored = _registry().rollback()
    click.echo(f"champion: version {restored.version}, release {restored.release_id}")


def verify(directory: Path) -> None:
    """Check a release directory."""
    manifest = verify_release(directory)
    click.echo(f"release {manifest.release_id}: {len(manifest.parts)} parts match their manifest")


def report(alias: str, html: Path | None) -> None:
    """Print a release's stage ledger."""
    from stages.evaluation.report import render_ledger, write_html

    directory = _registry().pull(alias, release_cache(os.environ))
    ledger = read_json(directory / "ledger.json")
    click.echo(f"release {read_manifest(directory).release_id}")
    click.echo(render_ledger(ledger))
    if html is not None:
        write_html(ledger, html)
        click.echo(f"wrote {html}")
