from __future__ import annotations

import pytest

from stages.contracts.examples import ExampleRows
from tests.light_ranker.worlds import World, linear_preference, make_rows, secret_favourites, written


@pytest.fixture(scope="session")
def linear(tmp_path_factory: pytest.TempPathFactory) -> World:
    return written(tmp_path_factory.mktemp("linear"), make_rows(linear_preference))


@pytest.fixture(scope="session")
def secret(tmp_path_factory: pytest.TempPathFactory) -> World:
    return written(tmp_path_factory.mktemp("secret"), make_rows(secret_favourites, n_requests=300, n_users=20))


@pytest.fixture
def small_rows() -> ExampleRows:
    """Rows of 20 requests that a test may change."""
    return make_rows(linear_preference, n_requests=20)
