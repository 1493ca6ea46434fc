"""The README's lines of Python, run from the installed wheel where there is neither a clone nor a network."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest

from tests.compiled_code import hand_on
from tests.time_limits import finished

REPOSITORY = Path(__file__).resolve().parents[2]
TOPICS, N_USERS, N_ITEMS, N_RATINGS = 6, 160, 120, 25
DAY_S = 86_400
NO_NETWORK = """
import sys

def _refuse(event, args):
    if event in ("socket.connect", "socket.sendto") and isinstance(args[1], tuple):
        address = args[1][0]
    elif event == "socket.getaddrinfo":
        address = args[0]
    else:
        return
    if address not in {own!r}:
        raise PermissionError(f"network: {{address!r}} was asked for")

sys.addaudithook(_refuse)
"""


def lines_of_python() -> str:
    """Return the README's only block of Python."""
    (block,) = re.findall(r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    return str(block)


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that has the wheel and, beside it, the set that runs the tests, without the clone.

    The set is a line in a ``.pth`` file: ``.pth`` files in that folder, such as an editable installation's, are not
    read.
    """
    venv = tmp_path_factory.mktemp("installed") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    python = venv / "bin" / "python"
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (site,) = (venv / "lib").glob("python3*/site-packages")
    (site / "installed_set.pth").write_text(sysconfig.get_path("purelib") + "\n")
    hand_on(site, venv / "var" / "cache")
    own = ("127.0.0.1", "::1", "localhost", "0.0.0.0", None, os.uname().nodename)
    (site / "no_network.py").write_text(NO_NETWORK.format(own=own))
    (site / "no_network.pth").write_text("import no_network\n")
    return python


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A folder with the ratings of the README's path, in the form of MovieLens 100K.

    Users keep to two of six topics, and popularity says little: a funnel that works beats the popular list.
    """
    folder = tmp_path / "elsewhere"
    data = folder / "path" / "to" / "ml-100k"
    data.mkdir(parents=True)
    rng = np.random.default_rng(0)
    items = []
    for item in range(N_ITEMS):
        genres = ["0"] * 19
        genres[1 + item % TOPICS] = "1"
        items.append("|".join([str(item + 1), f"Film {item + 1} (1995)", "01-Jan-1995", "", "", *genres]))
    (data / "u.item").write_text("\n".join(items) + "\n", encoding="latin-1")
    (data / "u.user").write_text("".join(f"{user + 1}|30|F|writer|55105\n" for user in range(N_USERS)))
    ratings = []
    for user in range(N_USERS):
        liked = rng.choice(TOPICS, size=2, replace=False)
        chance = np.where(np.isin(np.arange(N_ITEMS) % TOPICS, liked), 1.0, 0.05)
        for item in rng.choice(N_ITEMS, size=N_RATINGS, replace=False, p=chance / chance.sum()):
            stars = 5 if item % TOPICS in liked else 2
            ratings.append((880_000_000 + int(rng.integers(100 * DAY_S)), user + 1, item + 1, stars))
    rows = "".join(f"{user}\t{item}\t{stars}\t{seconds}\n" for seconds, user, item, stars in sorted(ratings))
    (data / "u.data").write_text(rows)
    return folder


def run(python: Path, folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run code as a person would who has never seen the clone."""
    unset = ("SLUICE_", "AIRFLOW", "PYTHON", "VIRTUAL_ENV")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(unset)}
    script = folder / "script.py"
    script.write_text(code, encoding="utf-8")
    command = [str(python), str(script)]
    environ["OMP_NUM_THREADS"] = "1"
    return finished(command, cwd=folder, env=environ)


def test_the_readme_has_twenty_lines_of_python() -> None:
    assert len(lines_of_python().splitlines()) <= 20
    compile(lines_of_python(), "README.md", "exec")


@pytest.mark.slow
def test_the_lines_run_the_job_and_print_recommendations(installed: Path, elsewhere: Path) -> None:
    where = (
        "import sys, sluice, stages, serving\nfor m in (sluice, stages, serving): print(m.__file__)\nprint(sys.path)"
    )
    places = run(installed, elsewhere, where).stdout
    assert places.count(str(installed.parents[1] / "lib")) >= 4
    assert str(REPOSITORY) not in places.replace(sysconfig.get_path("purelib"), "")

    done = run(installed, elsewhere, lines_of_python())
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    said = done.stdout
    assert said.startswith("ingest\ncheck_data\ndataset\n"), "the names of the steps, as they start"
    assert re.search(r"^popularity +0\.\d+ ", said, re.MULTILINE) and re.search(
        r"^candidates +0\.\d+ ", said, re.MULTILINE
    )
    user, path = re.search(r"^user (\d+): release \S+, path (\w+)$", said, re.MULTILINE).groups()
    assert path == "funnel"
    answer, newcomer = said.split(f"user {user}: ")[1].split("somebody-new has no history yet: path popular\n")
    films = re.findall(r"^\d\. Film (\d+) \(1995\) \(candidate #\d+", answer, re.MULTILINE)
    assert len(films) == len(set(films)) == 5
    liked = _liked(elsewhere, int(user))
    assert sum((int(film) - 1) % TOPICS in liked for film in films) >= 4, "what a user likes is recommended"
    assert not set(map(int, films)) & _rated(elsewhere, int(user)), "and nothing that was rated before"

    best, rest = re.match(r"after five stars for Film (\d+) \(1995\): path funnel\n(.*)", newcomer, re.DOTALL).groups()
    assert best == films[0]
    others = re.findall(r"^\d\. Film (\d+) \(1995\)$", rest, re.MULTILINE)
    assert len(others) == 5 and best not in others

    home = elsewhere / "var" / "notebook"
    assert (home / "warehouse.duckdb").is_file() and (home / "mlflow.db").is_file()
    assert {path.name for path in elsewhere.iterdir()} == {"path", "var", "script.py"}


def _rated(folder: Path, user: int) -> set[int]:
    rows = [line.split("\t") for line in (folder / "path/to/ml-100k/u.data").read_text().splitlines()]
    return {int(item) for rater, item, _, _ in rows if int(rater) == user}


def _liked(folder: Path, user: int) -> set[int]:
    rows = [line.split("\t") for line in (folder / "path/to/ml-100k/u.data").read_text().splitlines()]
    return {(int(item) - 1) % TOPICS for rater, item, stars, _ in rows if int(rater) == user and stars == "5"}


def test_nothing_of_the_clone_and_no_network_is_in_reach(installed: Path, elsewhere: Path) -> None:
    where = "import sys, sluice, stages, serving\nprint(sluice.__file__, stages.__file__, serving.__file__, *sys.path)"
    sluice, stages, serving, *path = run(installed, elsewhere, where).stdout.split()
    (site,) = (installed.parents[1] / "lib").glob("python3*/site-packages")
    assert [sluice, stages, serving] == [str(site / name / "__init__.py") for name in ("sluice", "stages", "serving")]
    assert sysconfig.get_path("purelib") in path
    assert str(REPOSITORY) not in path and str(REPOSITORY / "dags") not in path
    call = run(installed, elsewhere, "import socket; socket.create_connection(('192.0.2.1', 80), 1)")
    assert "PermissionError: network: '192.0.2.1' was asked for" in call.stderr


def test_the_wheel_has_its_own_recipes_and_dag_files(installed: Path, elsewhere: Path) -> None:
    code = (
        "import sluice\nfrom stages.contracts.shipped import DAGS, IN_CLONE, RECIPES\n"
        "print(RECIPES, DAGS, IN_CLONE, *sluice.shipped_recipes(), *sorted(path.name for path in DAGS.glob('*.py')))\n"
        "print(sluice.load_recipe(data='path/to/ml-100k') == sluice.load_recipe(sluice.shipped_recipes()['movielens']))"
    )
    done = run(installed, elsewhere, code)
    assert done.returncode == 0, done.stderr
    (site,) = (installed.parents[1] / "lib").glob("python3*/site-packages")
    recipes, dags, in_clone, *names = done.stdout.splitlines()[0].split()
    assert (recipes, dags) == (str(site / "stages" / "recipes"), str(site / "sluice_airflow" / "dags"))
    assert in_clone == "False"
    assert names == [
        *sorted(path.stem for path in (REPOSITORY / "configs").glob("*.yaml")),
        *sorted(path.name for path in (REPOSITORY / "dags").glob("*.py")),
    ]
    assert done.stdout.splitlines()[1] == "True"
