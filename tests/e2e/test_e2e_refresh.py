"""``sluice refresh`` as users run it: new items, then nothing new, then a training that goes on from it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pytest
import yaml

from stages.contracts.files import read_json
from stages.contracts.snapshot import Snapshot
from stages.release.registry import ReleaseRegistry
from stages.settings import registry_settings
from tests.homes import BORN, add_items, copy_of
from tests.time_limits import finished

ROOT = Path(__file__).resolve().parents[2]
Sluice = Callable[..., str]


@pytest.fixture(scope="module")
def home(job: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a copy of the small world's home, with three new items in its warehouse."""
    root = tmp_path_factory.mktemp("refresh")
    environ = {**job.environ, **copy_of(Path(job.settings.home), root / "home")}
    add_items(root / "home" / "warehouse.duckdb")
    (root / "home" / "recipe.yaml").write_text(yaml.safe_dump(job.settings.recipe), encoding="utf-8")
    return environ


@pytest.fixture(scope="module")
def sluice(home: dict[str, str]) -> Sluice:
    """Run the command line in that home and return what it prints."""

    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "cli", *arguments]
        done = finished(command, env=home, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="module")
def first(sluice: Sluice) -> list[str]:
    """What a refresh without an argument prints: it reads the warehouse, by the champion's recipe."""
    return sluice("refresh").splitlines()


def held(home: dict[str, str]) -> list[tuple[str, int]]:
    """Return how many events of which source are in the warehouse."""
    with duckdb.connect(str(Path(home["SLUICE_HOME"]) / "warehouse.duckdb"), read_only=True) as connection:
        return connection.execute("SELECT source, count(*) FROM interactions GROUP BY source").fetchall()


def pulled(home: dict[str, str]) -> Path:
    return ReleaseRegistry(registry_settings(home)).pull("champion", Path(home["SLUICE_HOME"]) / "serving" / "releases")


@pytest.mark.slow
def test_it_says_what_became_of_the_items(job: Any, home: dict[str, str], first: list[str]) -> None:
    n_items = len(Snapshot(job.release).items())
    assert first[0].startswith(f"{n_items + len(BORN)} items, {len(BORN)} of them new to the champion; ")
    assert first[0].endswith(" embedded by touches")
    assert first[1] == "index Flat: recall@100 1.0000"
    # Other tests may have registered versions in the home that was copied.
    version = ReleaseRegistry(registry_settings(home)).resolve("champion").version
    assert first[2] == f"release {pulled(home).name} is version {version} (champion)"


@pytest.mark.slow
def test_it_loads_nothing(job: Any, home: dict[str, str], first: list[str]) -> None:
    """It made a synthetic world once, and poured it over what was there."""
    assert held(home) == held(job.environ)
    worlds = [
        sorted(path.name for path in Path(each["SLUICE_HOME"], "world").iterdir()) for each in (home, job.environ)
    ]
    assert worlds[0] == worlds[1]


@pytest.mark.slow
def test_a_release_that_was_refreshed_is_refreshed_again(
    job: Any, home: dict[str, str], sluice: Sluice, first: list[str]
) -> None:
    before = read_json(pulled(home) / "tower.json")
    again = sluice("refresh").splitlines()
    assert " items, 0 of them new to the champion; " in again[0]
    assert again[0].split("; ")[1] == first[0].split("; ")[1], "the same items have touches"
    after = read_json(pulled(home) / "tower.json")
    same = ("tower_version", "item_vectors_sha256", "item_tower_sha256", "vectors_as_of_ms")
    assert [after[name] for name in same] == [before[name] for name in same], "nothing was new"
    trained = read_json(job.release / "tower.json")["tower_version"]
    assert before["trained_version"] == after["trained_version"] == before["refreshed_from"] == trained


@pytest.mark.slow
def test_training_goes_on_from_a_refreshed_release(home: dict[str, str], sluice: Sluice, first: list[str]) -> None:
    """Its rows are the base, its model the state that was trained, found by ``trained_version``."""
    release = pulled(home)
    recipe = str(Path(home["SLUICE_HOME"]) / "recipe.yaml")
    sluice(
        "run", "--config", recipe, "--until", "train_candidate", "--base", str(release), "--warm-start", str(release)
    )
    steps = (Path(home["SLUICE_HOME"]) / "runs" / "train_candidate").glob("[0-9a-f]*")
    towers = [read_json(step / "tower.json") for step in steps]
    (warm,) = [tower for tower in towers if tower["config"]["candidate"]["warm_start"]["path"]]
    trained = read_json(release / "tower.json")["trained_version"]
    (cold,) = [tower for tower in towers if tower["tower_version"] == trained]
    assert not cold["config"]["candidate"]["warm_start"]["path"]
    assert warm["config"]["warm_start_version"] == cold["tower_version"]
    assert warm["n_items"] == cold["n_items"] + len(BORN)
    assert warm["losses"][0] < cold["losses"][0]
