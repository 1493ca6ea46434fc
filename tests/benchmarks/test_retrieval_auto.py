"""The rows ``auto`` and ``auto_tower``: what the product chooses for a protocol's rows."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.retrieval.data import Interactions
from benchmarks.retrieval.registry import STATIC, configure
from benchmarks.retrieval.static.auto import Auto, AutoTower, counts_of_rows
from benchmarks.retrieval.static.protocols import PROTOCOLS
from benchmarks.retrieval.static.stage import LearnedMixture, Quotas, TwoTower
from stages.auto.rules import ENOUGH_REQUESTS


def rows_of(users: int, items: int = 50) -> Interactions:
    """Return three rows of each user but the last one, who has one."""
    user = np.append(np.repeat(np.arange(users - 1), 3), users - 1)
    item = (user * 7 + np.append(np.tile(np.arange(3), users - 1), 0) * 11) % items
    return Interactions(user, item, None, users, items)


def test_the_counts_are_those_of_the_training_rows() -> None:
    counts = counts_of_rows(rows_of(40), ordered=False)
    assert (counts.users, counts.touches, counts.requests) == (40, 118, 39)
    assert (counts.ordered, counts.timed, counts.described) == (False, False, 0.0)


def test_a_protocol_without_an_order_says_so() -> None:
    for name, protocol in PROTOCOLS.items():
        auto = configure(STATIC, ["auto"], protocol.settings, [])["auto"]
        assert isinstance(auto, Auto)
        assert auto.ordered == (name in ("ml-1m-loo", "beauty"))


@pytest.mark.parametrize("ordered", [False, True])
def test_the_tower_is_the_one_of_the_mixture(ordered: bool) -> None:
    rows = rows_of(ENOUGH_REQUESTS + 1)
    alone = AutoTower(ordered=ordered, candidate_k=30).chosen(rows)
    whole = Auto(ordered=ordered, candidate_k=30).chosen(rows)
    assert isinstance(alone, TwoTower) and isinstance(whole, LearnedMixture)
    assert whole.two_tower == alone
    assert alone.candidate_k == 30
    assert alone.candidate.model.encoder == ("attention" if ordered else "mean")
    assert whole.hold_out == ("last" if ordered else "share")
    assert ("directed_ridge" in whole.sources.names) == ordered
    few = Auto(ordered=ordered).chosen(rows_of(ENOUGH_REQUESTS))
    assert type(few) is Quotas


def test_what_the_user_gives_stays() -> None:
    given = {"candidate": {"model": {"dimension": 16}}, "sources": {"names": ["tower", "ease"]}}
    whole = Auto(ordered=False, given=given).chosen(rows_of(ENOUGH_REQUESTS + 1))
    assert isinstance(whole, LearnedMixture)
    assert whole.two_tower.candidate.model.dimension == 16
    assert whole.sources.names == ("tower", "ease")
