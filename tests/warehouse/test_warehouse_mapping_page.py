"""The page of column mappings names every key, and what it shows works as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import yaml
from click.testing import CliRunner

from cli.main import main
from stages.contracts.config import parse_config
from stages.warehouse.mapping import FileSource, IngestSource, InteractionColumns, ItemColumns, UserColumns
from stages.warehouse.mapping_page import described, mapping_page

PAGE = Path(__file__).resolve().parents[2] / "docs" / "mapping.md"


def test_the_page_is_what_the_models_say() -> None:
    assert PAGE.read_text(encoding="utf-8") == mapping_page(), (
        "python -m stages.warehouse.mapping_page > docs/mapping.md"
    )


def test_every_key_is_described() -> None:
    for model in (IngestSource, FileSource, InteractionColumns, ItemColumns, UserColumns):
        missing = [name for name in model.model_fields if not described(model).get(name)]
        assert not missing, f"{model.__name__}: no words on {missing}"


def _block(number: int, kind: str = "") -> str:
    return re.findall(rf"```{kind}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[number]


def test_the_first_example_loads(tmp_path: Path) -> None:
    for name, content in (("clicks.csv", _block(0)), ("m.yaml", _block(0, "yaml")), ("r.yaml", _block(1, "yaml"))):
        (tmp_path / name).write_text(content, encoding="utf-8")
    options = ("--data", "clicks.csv", "--mapping", "m.yaml", "--config", "r.yaml")
    paths = [word if word.startswith("--") else str(tmp_path / word) for word in options]
    done = CliRunner().invoke(main, ["ingest", *paths], env={"SLUICE_HOME": str(tmp_path / "home")})
    assert done.exit_code == 0, done.output
    assert "1 events of 1 users, 2024-05-01T08:00:00Z" in done.output


def test_the_example_of_several_files_is_a_source() -> None:
    source = parse_config(IngestSource, yaml.safe_load(_block(2, "yaml")), "page")
    assert [file.mapping.table for file in source.files] == ["items", "interactions"]
    assert source.files[1].delimiter == "\t" and source.files[1].quote is None
