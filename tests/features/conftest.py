"""A tiny world: factories of catalogues, events, requests and states."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from stages.contracts.snapshot import ItemTable
from stages.contracts.tables import EventTable, RequestTable
from stages.features.state import FunnelState
from tests.features.worlds import build_events, build_items, build_requests, build_state, write_inputs


@pytest.fixture(scope="session")
def make_items() -> Callable[..., ItemTable]:
    return build_items


@pytest.fixture(scope="session")
def make_events() -> Callable[..., EventTable]:
    return build_events


@pytest.fixture(scope="session")
def make_requests() -> Callable[..., RequestTable]:
    return build_requests


@pytest.fixture(scope="session")
def make_state() -> Callable[..., FunnelState]:
    return build_state


@pytest.fixture
def make_inputs(tmp_path: Path) -> Callable[..., dict[str, Path]]:
    """Return ``write_inputs`` below a directory of the test's own."""
    return partial(write_inputs, tmp_path)


@pytest.fixture
def inputs(make_inputs: Callable[..., dict[str, Path]]) -> dict[str, Path]:
    """The inputs of ``build_examples`` for two requests."""
    return make_inputs()
