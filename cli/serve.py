"""The verbs on a released funnel: serve, recommend."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click

from serving.config import ServeConfig
from serving.funnel import Funnel
from serving.release import load_release
from serving.release_source import DirectorySource, RegistrySource, ReleaseSource, fetch_or_last_known
from serving.schema import parse_context
from serving.server import open_service
from serving.server import serve as serve_http
from stages.contracts.config import parse_config
from stages.contracts.item_filter import ItemFilter
from stages.release.registry import ReleaseRegistry
from stages.settings import registry_settings, release_cache


def serve(host: str, port: int, alias: str, directory: str | None, poll_seconds: float, clock: str) -> None:
    """Serve over HTTP until stopped."""
    cache = release_cache(os.environ)
    values = {"host": host, "port": port, "alias": alias, "poll_seconds": poll_seconds, "clock": clock}
    config = parse_config(ServeConfig, {**values, "cache_dir": cache, "data_dir": cache.parent}, "serve")
    service = open_service(_source(alias, directory), config)
    try:
        serve_http(
            service, host, port, announce=lambda url: click.echo(f"serving {service.funnel.release_id} on {url}")
        )
    finally:
        service.stop()


def recommend(
    user_id: str,
    k: int,
    explain: bool,
    context: tuple[str, ...],
    category: tuple[str, ...],
    max_age_days: float | None,
    alias: str,
) -> None:
    """Print one answer."""
    fetched, error = fetch_or_last_known(_source(alias, None))
    if error is not None:
        click.echo(f"the registry cannot be asked, this is the release it named last: {error}", err=True)
    release = load_release(fetched)
    wanted = parse_config(ItemFilter, {"categories": category, "max_age_days": max_age_days}, "recommend")
    answer = Funnel(release).recommend(user_id, k, explain=explain, context=parse_context(context), wanted=wanted)
    if explain:
        click.echo(json.dumps(answer.as_dict(), indent=2, ensure_ascii=False))
        return
    click.echo(f"release {answer.release_id}, path {answer.path}")
    for item in answer.items:
        click.echo(f"{item.rank + 1:3d}. {item.title} [{item.item_id}] {item.score:.4f}")


def _source(alias: str, directory: str | None) -> ReleaseSource:
    if directory is not None:
        return DirectorySource(Path(directory), release_cache(os.environ))
    return RegistrySource(ReleaseRegistry(registry_settings(os.environ)), alias, release_cache(os.environ))
