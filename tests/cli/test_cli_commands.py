"""The command line explains itself, is documented, and ends with codes that mean something."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from cli.main import EXIT_CODES, main, reports_errors
from stages.contracts.errors import SluiceError, TransientError
from stages.contracts.results import StageResult
from stages.job import headline

ROOT = Path(__file__).resolve().parents[2]


def _commands(group: click.Group, prefix: str = "") -> list[tuple[str, click.Command]]:
    found: list[tuple[str, click.Command]] = []
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            found += _commands(command, f"{prefix}{name} ")
        else:
            found.append((prefix + name, command))
    return found


def test_surface_of_the_command_line_is_frozen() -> None:
    assert sorted(name for name, _ in _commands(main)) == [
        "dataset check",
        "dataset pairs",
        "dataset report",
        "demo",
        "ingest",
        "recommend",
        "refresh",
        "release list",
        "release page",
        "release promote",
        "release rollback",
        "release verify",
        "report",
        "run",
        "serve",
        "simulate",
    ]


@pytest.mark.parametrize(("name", "command"), _commands(main), ids=str)
def test_every_command_explains_itself_and_is_documented(name: str, command: click.Command) -> None:
    result = CliRunner().invoke(main, [*name.split(), "--help"])
    assert result.exit_code == 0
    assert command.help
    assert command.help.split("\n")[0][:20] in " ".join(result.output.split())
    assert f"sluice {name}" in (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("kind", "code"), EXIT_CODES)
def test_errors_become_one_line_and_a_code(kind: type[SluiceError], code: int) -> None:
    @click.command()
    @reports_errors
    def verb() -> None:
        raise kind("field = 1: allowed is 2")

    result = CliRunner().invoke(verb)
    assert result.exit_code == code
    assert result.output == "error: field = 1: allowed is 2\n"


def test_subclasses_take_their_parents_code() -> None:
    assert dict(EXIT_CODES)[TransientError] == 5


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["run", "--data", "{tmp}/nowhere", "--config", "{configs}/movielens.yaml"], 3, "nowhere"),
        (["run", "--config", "{tmp}/none.yaml"], 2, "none.yaml: No such file"),
        (["run", "--config", "{configs}/demo.yaml", "--set", "tyop=1"], 2, "tyop: unknown key"),
        (["run", "--config", "{configs}/demo.yaml", "--warm-start", "{tmp}/x"], 2, "/x: no such directory"),
        (["run", "--config", "{configs}/demo.yaml", "--base", "{tmp}/x"], 2, "/x: no such directory"),
        (["run", "--config", "{configs}/demo.yaml", "--set", "seed=[1"], 2, "--set 'seed=[1': '[1' is not valid YAML"),
        (
            ["refresh", "--config", "{configs}/demo.yaml", "--set", "index.kind=1"],
            2,
            "(--set): index.kind: unkn",
        ),
        (["run", "--config", "{configs}/demo.yaml", "--until", "lunch"], 2, "until = 'lunch'"),
        (["run", "--config", "{configs}/demo.yaml", "--as-of", "soon"], 2, "as_of = 'soon'"),
        (["run"], 2, "data: nothing is given"),
        (["run", "--config", "{configs}/demo.yaml"], 3, "--data synthetic for the synthetic world"),
        (["ingest", "--config", "{configs}/demo.yaml"], 2, "--data: nothing is given"),
        (["dataset", "check"], 2, "data: nothing is given"),
        (["dataset", "report"], 2, "data: nothing is given"),
        (["refresh"], 4, "champion"),
        (["release", "verify", "{tmp}"], 4, "manifest.json: missing"),
        (["recommend", "someone"], 4, "champion"),
        (["refresh", "--config", "{configs}/demo.yaml", "--base", "x"], 2, "--base x: a refresh extends the champion"),
        (["refresh", "--config", "{configs}/demo.yaml"], 4, "champion"),
        (["run", "--config", "{configs}/demo.yaml", "--set", "funnel.objective={lik: 1}"], 2, "lik"),
    ],
)
def test_bad_input_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, words: str
) -> None:
    monkeypatch.setenv("SLUICE_HOME", str(tmp_path / "home"))
    filled = [
        text.format(tmp=tmp_path, configs=ROOT / "configs") if "objective" not in text else text for text in arguments
    ]
    result = CliRunner().invoke(main, filled)
    assert result.exit_code == code, result.output
    assert words in result.output
    assert result.output.count("\n") == 1
    assert "Traceback" not in result.output


def test_a_steps_line_shows_counts_in_full() -> None:
    metrics = {"rows_read": 109_070.0, "share": 0.123456, "none": 0.0}
    result = StageResult(step="ingest", path="var", fingerprint="0", metrics=metrics)
    assert headline(result) == " (rows_read 109,070, share 0.1235, none 0)"
