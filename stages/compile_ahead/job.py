"""Compiles what a job runs compiled, and a server: for those who install the platform.

Shapes: B requests, N items.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

from stages.candidate.generators.mixing import joined_lists, mixed_lists
from stages.candidate.generators.neighbour_sums import summed_neighbours
from stages.candidate.generators.quotas import ListedBlock, ListedItems
from stages.candidate.generators.table import TOWER
from stages.candidate.linear.baselines import Popularity
from stages.candidate.linear.config import EaseSettings, RidgeSettings
from stages.candidate.linear.directed_ridge import DirectedRidge
from stages.candidate.linear.models import Ease
from stages.candidate.retrieval.retriever import Answers
from stages.candidate.retrieval.step import Recalls
from stages.compile_ahead.served import N_EVENTS, N_ITEMS, N_REQUESTS, N_USERS, SIGNALS, SmallWorld, compile_served
from stages.contracts.best_items import allowed_entries, best_entries, best_scored
from stages.contracts.candidate_blocks import CandidateBlock
from stages.contracts.exclusions import Exclusions
from stages.contracts.item_lists import ItemLists
from stages.contracts.ragged import places_in_rows, row_offsets
from stages.contracts.snapshot import Targets
from stages.contracts.tables import DAY_MS, PART_RANKER, CandidateTable
from stages.evaluation.baselines import FirstTouches, popularity_rankings
from stages.features.feature_blocks import feature_blocks
from stages.features.reading import COVISITATION, CovisitationReading, Reading, Wanted, read_blocks

_K = 4
"""Items of a list."""


def compile_all() -> None:
    """Call every compiled function with the types of a job's and a server's arguments."""
    world = SmallWorld()
    compile_served()
    _compute_features(world)
    _retrieve(_read(world), world.available_ms)
    _measure(world)


def _read(world: SmallWorld) -> Reading:
    """Replay, and read what retrieval reads."""
    linked = CovisitationReading(np.ones(2), 1.0)
    wanted = Wanted({PART_RANKER: world.available_ms}, _K, linked, trending=("trending",), popular_k=_K)
    (reading,) = read_blocks(world.events, world.requests, world.state(), wanted, N_REQUESTS, world.contexts)
    return reading


def _retrieve(reading: Reading, available_ms: np.ndarray) -> None:
    """Choose the best items of a block, mix lists, learn from them and measure them."""
    n = len(reading)
    periods = np.zeros(n, dtype=np.int64)
    exclusions = Exclusions(
        reading.seen_offsets, reading.seen, np.full(n, DAY_MS, dtype=np.int64), periods, available_ms[None]
    )
    neighbours = np.arange(N_ITEMS + 1), np.zeros(N_ITEMS, dtype=np.int32), np.ones(N_ITEMS, dtype=np.float32)
    pools = summed_neighbours(neighbours, reading.inputs.items, reading.lengths, np.ones(2))
    best_entries(allowed_entries(pools, exclusions, positive=True), _K)
    tower = best_scored(np.ones((n, N_ITEMS), dtype=np.float32), np.arange(N_ITEMS), exclusions, _K)
    lists = {TOWER: tower, COVISITATION: reading.lists[COVISITATION]}
    mixed = mixed_lists(lists, dict.fromkeys(lists, _K // 2), _K, N_ITEMS)
    joined_lists([tower], reading.popular, _K, N_ITEMS)
    targets = np.zeros(n, dtype=np.int64)
    ListedItems.of_blocks(tuple(lists), N_ITEMS, [ListedBlock(lists, np.arange(n + 1), targets)])
    ones = np.ones(n, dtype=np.float32)
    recalls = Recalls(Targets(np.arange(n), targets, ones, ones[:, None]), n, N_ITEMS, (), _K)
    queries, known = np.zeros((n, 1), dtype=np.float32), np.zeros(n, dtype=bool)
    recalls.add(Answers(reading.rows, queries, mixed.items, mixed.source, mixed.sources, known, targets, lists={}))


def _compute_features(world: SmallWorld) -> None:
    """Compute the features of a block."""
    lengths = np.ones(N_REQUESTS, dtype=np.int64)
    lists = ItemLists(row_offsets(lengths), np.zeros(N_REQUESTS, dtype=np.int64), np.ones(N_REQUESTS, np.float32))
    rows = CandidateTable(
        request_id=np.arange(N_REQUESTS),
        item_index=lists.ids,
        score=lists.scores,
        rank=places_in_rows(lengths).astype(np.int32),
        source=np.zeros(N_REQUESTS, dtype=np.int8),
    )
    given = world.events, world.requests, world.state(), world.vectors, world.contexts
    for _ in feature_blocks([CandidateBlock(rows)], *given):
        pass


def _measure(world: SmallWorld) -> None:
    """Rank by popularity, and fit the models that have compiled parts."""
    touches = FirstTouches(world.events, np.ones(len(SIGNALS), dtype=bool))
    for half_life_ms in (None, float(DAY_MS)):
        for _ in popularity_rankings(touches, world.requests, world.available_ms, _K, half_life_ms):
            pass
    Popularity(world.events, N_ITEMS, float(DAY_MS)).scores(world.requests.request_time_ms)
    cells = np.ones(N_EVENTS), (world.events.user_index, world.events.item_index)
    matrix = sparse.csr_matrix(cells, shape=(N_USERS, N_ITEMS))
    Ease.fit(matrix, EaseSettings(method="sparse"))
    user, item = np.sort(world.events.user_index), world.events.item_index
    DirectedRidge.fit(user, item, N_ITEMS, RidgeSettings(method="sparse"))
