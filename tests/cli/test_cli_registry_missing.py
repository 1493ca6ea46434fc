"""Commands that only read never make a registry: one line, an exit code, and nothing on the disk."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from cli.main import main


@pytest.mark.parametrize(
    "words",
    [
        ("release", "list"),
        ("release", "page"),
        ("release", "promote", "1"),
        ("release", "rollback"),
        ("recommend", "somebody"),
        ("report",),
        ("serve", "--port", "0"),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize(
    "address", ["", "sqlite:///{home}/other.db", "sqlite:///{home}/other.db?timeout=5", "{home}/runs"]
)
def test_no_registry_is_made_by_a_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], address: str
) -> None:
    home = tmp_path / "home"
    monkeypatch.setenv("SLUICE_HOME", str(home))
    monkeypatch.setenv("SLUICE_MLFLOW_URI", address.format(home=home))
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 4
    assert len(result.output.strip().splitlines()) == 1
    assert "tracking_uri = " in result.output
    made = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert made <= {"home/serving/events.jsonl"}
