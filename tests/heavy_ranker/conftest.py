from __future__ import annotations

from pathlib import Path

import pytest

from tests.heavy_ranker.worlds import World, make_world


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("heavy")).write()


@pytest.fixture
def fresh_world(tmp_path: Path) -> World:
    """A small world that a test may change and must write."""
    return make_world(tmp_path / "fresh", n_requests=30)
