"""What is compiled ahead is all that a job and a server need: nothing is compiled after it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.conftest import TINY, environment
from tests.time_limits import finished

SOURCES = {
    "names": ["tower", "covisitation", "trending", "ease", "ials", "content", "directed_ridge", "item_knn"],
    "quotas": "learned",
    "ease": {"method": "sparse"},
    "directed_ridge": {"method": "sparse"},
    "mixture": {"kind": "learned", "epochs": 2},
}
SMALL = {
    **TINY,
    "world": {**TINY["world"], "n_users": 200, "n_items": 200, "n_events": 20_000},
    "candidate": {**TINY["candidate"], "training": {"epochs": 1}},
    "sources": SOURCES,
}
JOB = """
import json, os, sys
from serving.events import Event
from serving.funnel import Funnel
from serving.release import load_release
from stages import pipeline
from stages.settings import load_settings

settings = load_settings(os.environ, data="synthetic", overrides=json.loads(sys.argv[1]))
funnel = Funnel(load_release(pipeline.run_all(settings)["assemble"].directory / "release"))
known = funnel.known_users(1)
for user in (*known, "nobody"):
    (*_, item) = funnel.recommend(user, 3, explain=True).items
    event = Event("e", user, item.item_id, "click", 1.0, funnel.clock())
    assert not funnel.contains(event)
    funnel.apply_event(event)
    assert funnel.contains(event)
    funnel.recommend(user, 3)
assert known
"""


@pytest.mark.slow
def test_nothing_is_compiled_after_what_was_compiled_ahead(tmp_path: Path) -> None:
    environ = environment(tmp_path / "home", NUMBA_CACHE_DIR=str(tmp_path / "cache"))
    _run([sys.executable, "-m", "stages.compile_ahead"], environ)
    ahead = _files(tmp_path / "cache")
    assert {"apply_events", "block_features", "request_features", "read_requests"} <= _functions(ahead)
    _run([sys.executable, "-c", JOB, json.dumps(SMALL)], environ)
    after = _files(tmp_path / "cache")
    assert _functions(after - ahead) == set()


def _run(command: list[str], environ: dict[str, str]) -> None:
    done = finished(command, env=environ)
    assert done.returncode == 0, done.stderr[-4000:]


def _files(directory: Path) -> set[tuple[str, int]]:
    """Return every file of compiled code with the time of its last change: a compiled function is always kept."""
    return {(path.name, path.stat().st_mtime_ns) for path in directory.rglob("*") if path.is_file()}


def _functions(files: set[tuple[str, int]]) -> set[str]:
    """Return names of functions, from file names such as ``kernels.apply_events-12.py311.1.nbc``."""
    return {name.partition("-")[0].rpartition(".")[2] for name, _ in files}
