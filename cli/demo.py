"""The demo: the whole platform once, from raw interactions to answers over HTTP."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import httpx

from cli.airflow import DAG_ID, run_dag
from cli.steps_table import steps_table
from stages.contracts.errors import DataError, TransientError
from stages.contracts.files import atomic_file, read_json
from stages.contracts.results import StepEnd
from stages.contracts.shipped import DAGS, IN_CLONE
from stages.release.registry import ReleaseRegistry
from stages.settings import SYNTHETIC, load_settings

START_SECONDS = 120
MLFLOW, AIRFLOW = "http://127.0.0.1:5000", "http://127.0.0.1:8081"
"""Where ``make mlflow`` and ``make airflow`` serve."""


def demo(data: str | None, config: str | None, dags: Path | None, keep_serving: bool, port: int) -> None:
    """Run the DAG, serve its release, show its answers, and stop."""
    data = data or os.environ.get("SLUICE_DATA") or SYNTHETIC
    home = _home(data)
    environ = {**os.environ, "SLUICE_HOME": str(home)}
    settings = load_settings(environ, data=data, config=config)
    shown = "the synthetic world" if settings.data == SYNTHETIC else settings.data
    click.secho(f"Running the DAG train_funnel on {shown} (home: {home})", bold=True)
    started = time.monotonic()
    params = {"data": settings.data, "config": settings.config_path}
    ends: list[StepEnd] = []

    def echo(line: str) -> None:
        click.echo(f"  {line}")
        ends.extend(filter(None, [StepEnd.parse(line)]))

    log = run_dag(home, dags or DAGS, params, environ, echo)
    click.echo(f"\n{steps_table(ends)}\n")
    click.echo(f"DAG run finished in {time.monotonic() - started:.0f} s; its log: {log}")
    _point_to(home)
    port = port or _free_port()
    base = f"http://127.0.0.1:{port}"
    # Requests to this machine itself use no proxy of the environment.
    with httpx.Client(base_url=base, timeout=30, trust_env=False) as client, _server(client, home, environ) as process:
        _show(client, home)
        _closing_words(base, home, keep_serving, ReleaseRegistry(settings.registry).runs_page(MLFLOW))
        if keep_serving:
            process.wait()


def _home(data: str) -> Path:
    base = Path(os.environ.get("SLUICE_HOME") or "var").resolve()
    return base / f"demo-{'world' if data == SYNTHETIC else Path(data).resolve().name}"


def _point_to(home: Path) -> None:
    """Point the link ``latest`` beside the homes to the one that ran last: ``make serve`` reads it."""
    link = home.parent / "latest"
    with atomic_file(link) as temporary:
        temporary.symlink_to(home.name)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _server(client: httpx.Client, home: Path, environ: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``sluice serve`` on the client's port as its own process until the block ends."""
    log = home / "serving.log"
    command = [sys.executable, "-m", "cli", "serve", "--port", str(client.base_url.port)]
    with log.open("wb") as stream:
        process = subprocess.Popen(command, env=environ, stdout=stream, stderr=stream)
        try:
            _wait_ready(client, process, log)
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=30)


def _wait_ready(client: httpx.Client, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            words = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise TransientError(f"the server stopped: {words[-1] if words else 'no output'} (log: {log})")
        try:
            _answer(client.get("/readyz"))
        except httpx.HTTPError:
            time.sleep(0.2)
        else:
            return
    raise TransientError(f"the server was not ready after {START_SECONDS} s (log: {log})")


def _answer(response: httpx.Response) -> Any:
    """Return the body of an answer; httpx.HTTPStatusError if it is an error."""
    return response.raise_for_status().json()


def _recommend(client: httpx.Client, user_id: str, k: int = 8) -> Any:
    return _answer(client.get("/v1/recommendations", params={"user_id": user_id, "k": k, "explain": True}))


def _show(client: httpx.Client, home: Path) -> None:
    from cli.showcase import choose
    from serving.release import load_release
    from stages.evaluation.report import render_ledger

    release = load_release(home / "serving" / "releases" / _answer(client.get("/readyz"))["release_id"])
    click.secho("\nThe stage ledger: what each stage gains on held-out requests", bold=True)
    click.echo(render_ledger(read_json(release.directory / "ledger.json")))
    shown = choose(release)
    for user in (shown.heavy_user, shown.light_user):
        answer = _recommend(client, user.user_id)
        _print_answer(f"A {user.kind} user ({user.user_id}, {user.n_items} items so far)", answer)
    unknown = f"new-user-{uuid.uuid4().hex[:8]}"
    before = _recommend(client, unknown)
    _print_answer(f"An unknown user ({unknown})", before)
    click.secho(f"\nThree events of that user: {'; '.join(shown.titles)}", bold=True)
    event = {"user_id": unknown, "signal": shown.signal, "value": shown.value}
    _answer(client.post("/v1/events", json=[{**event, "item_id": item_id} for item_id in shown.item_ids]))
    after = _recommend(client, unknown)
    _print_answer(f"The very next answer for {unknown}", after)
    changed = len({item["item_id"] for item in after["items"]} - {item["item_id"] for item in before["items"]})
    click.echo(f"  {changed} of {len(after['items'])} items are new")
    if not changed:
        raise DataError(f"the list of {unknown} did not change after three events")


def _print_answer(head: str, answer: Any) -> None:
    click.secho(f"\n{head}: release {answer['release_id']}, path {answer['path']}", bold=True)
    for item in answer["items"]:
        stages = " ".join(
            f"{stage} #{place['rank'] + 1}" for stage, place in item.get("explain", {}).items() if place is not None
        )
        click.echo(f"  {item['rank'] + 1:2d}. {item['title'][:60]:60s} {stages}")


def _closing_words(base: str, home: Path, keep_serving: bool, runs_page: str) -> None:
    click.secho("\nTry it", bold=True)
    serve, mlflow = ("make serve", "make mlflow") if IN_CLONE else (_serve(home), _mlflow(home))
    if not keep_serving:
        click.echo(f"  {serve:30s}  # serve this release on port 8080, then")
    address = base if keep_serving else "http://127.0.0.1:8080"
    click.echo(f"  curl '{address}/v1/recommendations?user_id=someone&k=5&explain=true'")
    click.echo(f"  {mlflow:30s}  # runs, metrics and the release registry, at")
    click.echo(f"    {runs_page}")
    if IN_CLONE:
        click.echo(f"  {'make airflow':30s}  # the DAG and its runs: {AIRFLOW}/dags/{DAG_ID}")
    click.echo(f"  everything this run wrote is below {home}")


def _serve(home: Path) -> str:
    """Return what ``make serve`` runs, for where there is no Makefile."""
    return f"SLUICE_HOME={shlex.quote(str(home))} sluice serve"


def _mlflow(home: Path) -> str:
    """Return what ``make mlflow`` runs, for where there is no Makefile."""
    store, artifacts = f"sqlite:///{home / 'mlflow.db'}", str(home / "mlartifacts")
    return shlex.join(["mlflow", "server", "--backend-store-uri", store, "--artifacts-destination", artifacts])
