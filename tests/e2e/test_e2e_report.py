"""The dataset report of a run: its page, its numbers, and its place in MLflow."""

from __future__ import annotations

import json
import re
from pathlib import Path

from click.testing import CliRunner

from cli.main import main


def test_the_report_tells_the_numbers_of_its_json(job) -> None:
    directory = job.results["dataset_report"].directory
    report = json.loads((directory / "dataset_report.json").read_text())
    page = (directory / "dataset_report.html").read_text(encoding="utf-8")
    own = report["activity"]
    rows = [row for row in report["users"] if row["window_days"] == own["window_days"]]
    shares = [row["traffic_share"] for row in rows]
    assert shares == sorted(shares, reverse=True), "a higher threshold never covers more"
    assert len({row["threshold"] for row in rows}) == len(rows) >= 5
    for row in report["users"] + report["item_support"]:
        assert f"<td>{100 * row['traffic_share']:.1f}%</td>" in page
    for row in report["quality"]["windows"]:
        assert f"<td>{row['ndcg']:.4f}</td>" in page
    assert report["quality"]["sentence"] in page
    assert f"{report['counts']['events']:,}" in page
    assert page.count("<svg") == 3
    assert not re.search(r"""(src|href)=["'](?!#|data:)""", page), "nothing is loaded from elsewhere"
    metrics = job.results["dataset_report"].metrics
    mine = next(row for row in rows if row["threshold"] == own["min_events"])
    assert metrics["traffic_covered"] == mine["traffic_share"]


def test_the_report_is_kept_in_mlflow(job) -> None:
    import mlflow

    run_id = job.results["register"].info["run_id"]
    client = mlflow.MlflowClient(job.settings.registry.tracking_uri)
    assert {Path(entry.path).name for entry in client.list_artifacts(run_id, "reports")} == {
        "dataset_report.html",
        "dataset_report.json",
    }
    logged = client.get_run(run_id).data.metrics
    assert logged["dataset_report/users_covered"] == job.results["dataset_report"].metrics["users_covered"]


def test_the_command_writes_the_page(job, tmp_path: Path) -> None:
    overrides = [f"--set={key}={value}" for key, value in job_overrides()]
    place = tmp_path / "page.html"
    done = CliRunner().invoke(
        main, ["dataset", "report", "--data", "synthetic", "--output", str(place), *overrides], env=job.environ
    )
    assert done.exit_code == 0, done.output
    assert "of the next day's users" in done.output
    assert "page.html" in done.output
    assert place.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert list(tmp_path.iterdir()) == [place]


def job_overrides() -> list[tuple[str, int]]:
    world = {"n_users": 300, "n_items": 400, "n_events": 40_000, "days": 20, "n_topics": 8, "n_categories": 4}
    return [(f"world.{name}", value) for name, value in world.items()]
