"""The verbs that run steps: ingest, run, simulate."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import yaml

from cli.steps_table import steps_table
from stages import pipeline
from stages.contracts.config import parse_config
from stages.contracts.errors import ConfigError
from stages.contracts.results import StageResult, StepEnd
from stages.settings import SYNTHETIC, Settings, load_settings


def parse_overrides(pairs: tuple[str, ...]) -> dict[str, Any]:
    """Turn ``("candidate.training.epochs=3",)`` into nested values; a value is YAML.

    Raises:
        ConfigError: for a pair without ``=`` or a name, a value that is not YAML, or a key below one that has a value.
    """
    values: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        *path, leaf = key.split(".")
        if not equals or not all([*path, leaf]):
            raise ConfigError(f"--set {pair!r}: allowed is KEY=VALUE, such as candidate.training.epochs=3")
        section: Any = values
        for name in path:
            section = section.setdefault(name, {})
            if not isinstance(section, dict):
                raise ConfigError(f"--set {pair!r}: {name} is given a value of its own by another --set")
        try:
            section[leaf] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ConfigError(f"--set {pair!r}: {text!r} is not valid YAML") from None
    return values


def settings_from(
    data: str | None,
    mapping: str | None,
    config: str | None,
    as_of: str | None,
    overrides: tuple[str, ...],
    base: str | None = None,
    processes: int | None = None,
    warm_start: str | None = None,
    promote: bool = True,
    allow_times: bool = False,
    needs_recipe: bool = True,
) -> Settings:
    """Build settings from command-line options and the environment."""
    values = parse_overrides(overrides)
    if base is not None:
        values.setdefault("dataset", {})["base"] = str(Path(base).resolve())
    return load_settings(
        os.environ,
        data=data,
        config=config,
        mapping=mapping,
        as_of=as_of,
        n_processes=processes,
        warm_start=warm_start,
        overrides=values,
        promote=promote,
        allow_times=allow_times,
        needs_recipe=needs_recipe,
    )


def ingest(**options: Any) -> None:
    """Load the data source and print what became of its rows.

    Raises:
        ConfigError: if no data is named.
    """
    if not (options["data"] or os.environ.get("SLUICE_DATA")):
        raise ConfigError(
            f"--data: nothing is given to load; allowed is a PATH, or {SYNTHETIC} for the synthetic world"
        )
    result = pipeline.run_all(settings_from(**options), until="ingest")["ingest"]
    for table, counts in sorted(result.info["tables"].items()):
        click.echo(f"{table}: " + ", ".join(f"{count:,} {name}" for name, count in counts.items()))
    for reason, count in sorted(result.info["reasons"].items()):
        click.echo(f"quarantined: {count:,} rows: {reason}")
    for line in result.info["notes"]:
        click.echo(line)


def run(until: str, **options: Any) -> None:
    """Run the steps and print each one's outcome, then what each took and keeps on disk."""
    settings = settings_from(**options)
    results = pipeline.run_all(settings, until=until)
    if "evaluate" in results:
        click.echo((results["evaluate"].directory / "ledger.md").read_text(encoding="utf-8"))
    if "register" in results:
        _say_release(results)
    _say_steps(results)


def refresh(base: str | None, **options: Any) -> None:
    """Run the refresh and print what became of the items."""
    from stages.refresh import refresh_all

    if base is not None:
        raise ConfigError(f"--base {base}: a refresh extends the champion; leave it out")
    results = refresh_all(settings_from(**options, needs_recipe=False))
    counts, index = results["refresh_vectors"].metrics, results["build_index"]
    new, folded = counts["new_items"], counts["folded_items"]
    click.echo(
        f"{counts['items']:,.0f} items, {new:,.0f} of them new to the champion; {folded:,.0f} embedded by touches"
    )
    click.echo(f"index {index.info['type']}: recall@{index.metrics['recall_k']:.0f} {index.metrics['recall']:.4f}")
    _say_release(results)
    _say_steps(results)


def _say_steps(results: Mapping[str, StageResult]) -> None:
    """Print what each step took, and what it keeps on disk."""
    click.echo(f"\n{steps_table([StepEnd.of(result) for result in results.values()])}")


def _say_release(results: Mapping[str, StageResult]) -> None:
    """Print what was registered and what became of it."""
    info = results["register"].info
    became = results["promote"].info if "promote" in results else {}
    promoted, reason = became.get("promoted", False), became.get("reason", "")
    words = " (champion)" if promoted else f" (stays challenger: {reason})" if reason else ""
    click.echo(f"release {info['release_id']} is version {info['version']}{words}")
    if promoted:
        click.echo(f"  {reason}")


def simulate(directory: Path, overrides: tuple[str, ...]) -> None:
    """Write a synthetic world as Parquet."""
    from stages.simulator.config import WorldConfig
    from stages.simulator.write import write_world

    config = parse_config(WorldConfig, parse_overrides(overrides), "--set")
    if directory.exists() and any(directory.iterdir()):
        raise ConfigError(f"directory {directory}: must be new or empty")
    write_world(config, directory)
    click.echo(f"wrote {directory}")
