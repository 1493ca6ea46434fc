"""Where a newcomer finds the runs: the verb, and the demo's last words."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from mlflow import MlflowClient

from cli.demo import _closing_words
from cli.main import main

ROOT = Path(__file__).resolve().parents[2]
PAGE = "http://127.0.0.1:5000/#/experiments/1?workflowType=machine_learning"


def test_the_verb_prints_the_address_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLUICE_HOME", str(tmp_path))
    monkeypatch.delenv("SLUICE_MLFLOW_URI", raising=False)
    MlflowClient(f"sqlite:///{tmp_path}/mlflow.db").create_experiment("sluice")
    result = CliRunner().invoke(main, ["release", "page"])
    assert (result.exit_code, result.output) == (0, f"{PAGE}\n")
    elsewhere = CliRunner().invoke(main, ["release", "page", "--server", "http://127.0.0.1:5001"])
    assert elsewhere.output == PAGE.replace("5000", "5001") + "\n"
    wrong = CliRunner().invoke(main, ["release", "page", "--server", "localhost"])
    assert (wrong.exit_code, wrong.output.count("\n")) == (2, 1)


def test_the_demos_last_words_are_those_of_its_page(capsys: pytest.CaptureFixture[str]) -> None:
    _closing_words("http://127.0.0.1:1", Path("var/demo-ml-100k"), False, PAGE)
    words = capsys.readouterr().out
    assert f"\n    {PAGE}\n" in words
    assert "http://127.0.0.1:8081/dags/train_funnel" in words
    assert words in (ROOT / "docs" / "demo.md").read_text(encoding="utf-8")


def test_outside_a_clone_the_last_words_name_no_makefile(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cli.demo.IN_CLONE", False)
    _closing_words("http://127.0.0.1:1", Path("/srv/my data/demo-world"), False, PAGE)
    words = capsys.readouterr().out
    assert "make " not in words
    assert "SLUICE_HOME='/srv/my data/demo-world' sluice serve" in words
    assert "mlflow server --backend-store-uri 'sqlite:////srv/my data/demo-world/mlflow.db'" in words
