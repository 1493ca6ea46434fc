"""``python -m stages.compile_ahead``: compiles what a job and a server run compiled, into the cache, once.

It calls the product's own functions on a small made-up log, since a function is compiled for the types of its
arguments. So whoever installs the platform waits for the compiler, and no job or request does. See
``stages.contracts.compiled``; on another kind of processor the functions are compiled again when they are first used.

Shapes: B requests, N items, E events.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from stages.candidate.generators.mixing import joined_lists, mixed_lists
from stages.candidate.generators.neighbour_sums import summed_neighbours
from stages.candidate.generators.quotas import ListedBlock, ListedItems
from stages.candidate.generators.table import TOWER
from stages.candidate.linear.baselines import Popularity
from stages.candidate.linear.config import ImplicitAlsSettings
from stages.candidate.linear.models import ImplicitAls
from stages.candidate.retrieval.retriever import Answers
from stages.candidate.retrieval.step import Recalls
from stages.contracts.best_items import allowed_entries, best_entries, best_scored
from stages.contracts.candidate_blocks import CandidateBlock
from stages.contracts.compiled import CACHE
from stages.contracts.compiled_cache import share
from stages.contracts.exclusions import Exclusions
from stages.contracts.item_lists import ItemLists
from stages.contracts.ragged import places_in_rows, row_offsets
from stages.contracts.snapshot import ContextColumn, ItemTable, Targets, Task
from stages.contracts.tables import DAY_MS, PART_RANKER, CandidateTable, EventTable, RequestTable
from stages.evaluation.baselines import FirstTouches, popularity_rankings
from stages.features.config import FeatureConfig, TrendingConfig
from stages.features.feature_blocks import feature_blocks
from stages.features.ranking import ranking_features
from stages.features.reading import COVISITATION, CovisitationReading, Reading, Wanted, read_blocks
from stages.features.state import FunnelState

_SIGNALS = ("click",)
_TASKS = (Task(name="click", signals=_SIGNALS, relevance=1.0),)
_CONTEXT = (ContextColumn(name="device", values=("phone", "desktop")),)
_N_USERS, _N_ITEMS, _N_EVENTS, _N_REQUESTS, _K = 3, 8, 16, 4, 4


class SmallWorld:
    """A log of a few events, and requests that come after them.

    Attributes:
        items, events, requests, contexts: as in a snapshot; each request has a candidate and a target.
        available_ms: int64 ``[N]``.
        vectors: float32 ``[N, 4]``.
    """

    def __init__(self) -> None:
        numbers = np.arange(_N_EVENTS)
        names = np.array([f"i{number}" for number in range(_N_ITEMS)], dtype=object)
        self.items = ItemTable(
            item_id=names,
            title=names,
            created_at_ms=np.zeros(_N_ITEMS, dtype=np.int64),
            duration_s=np.ones(_N_ITEMS, dtype=np.float32),
            category_offsets=np.arange(_N_ITEMS + 1),
            category_codes=np.zeros(_N_ITEMS, dtype=np.int32),
            n_categories=1,
        )
        self.events = EventTable(
            user_index=numbers % _N_USERS,
            item_index=numbers % (_N_ITEMS - 1),
            event_time_ms=numbers * 1000,
            signal=np.zeros(_N_EVENTS, dtype=np.int16),
            value=np.ones(_N_EVENTS, dtype=np.float32),
            part=np.zeros(_N_EVENTS, dtype=np.int8),
            active=np.ones(_N_EVENTS, dtype=np.bool_),
            context=np.ones(_N_EVENTS, dtype=np.int32),
        )
        self.requests = RequestTable(
            request_id=np.arange(_N_REQUESTS),
            user_index=np.arange(_N_REQUESTS),  # the last one has no history
            request_time_ms=np.full(_N_REQUESTS, _N_EVENTS * 1000, dtype=np.int64),
            part=np.full(_N_REQUESTS, PART_RANKER, dtype=np.int8),
            context=np.ones(_N_REQUESTS, dtype=np.int32),
        )
        self.contexts = np.arange(2, dtype=np.int32)[:, None]
        self.available_ms = self.items.available_from_ms(PART_RANKER)
        self.vectors = np.ones((_N_ITEMS, 4), dtype=np.float32)

    def state(self) -> FunnelState:
        """Return a state before any event."""
        trending = TrendingConfig(segment="device")
        return FunnelState.empty(self.items, FeatureConfig(), _SIGNALS, _TASKS, _N_USERS, _CONTEXT, trending)


def compile_all(advance: Callable[[], None] = lambda: None) -> None:
    """Call every compiled function with the types of a job's and a server's arguments.

    Args:
        advance: called after each of ``N_PARTS`` parts.
    """
    world = SmallWorld()
    reading = _read(world)
    advance()
    _retrieve(reading, world.available_ms)
    advance()
    _compute_features(world)
    advance()
    _serve(world)
    advance()
    _measure(world)
    advance()


N_PARTS = 5


def _read(world: SmallWorld) -> Reading:
    """Replay, and read what retrieval reads."""
    linked = CovisitationReading(np.ones(2), 1.0)
    wanted = Wanted({PART_RANKER: world.available_ms}, _K, linked, trending=True, popular_k=_K)
    blocks = read_blocks(world.events, world.requests, world.state(), wanted, _N_REQUESTS, world.contexts)
    return next(iter(list(blocks)))


def _retrieve(reading: Reading, available_ms: np.ndarray) -> None:
    """Choose the best items of a block, mix lists, learn from them and measure them."""
    n = len(reading)
    periods = np.zeros(n, dtype=np.int64)
    exclusions = Exclusions(
        reading.seen_offsets, reading.seen, np.full(n, DAY_MS, dtype=np.int64), periods, available_ms[None]
    )
    neighbours = np.arange(_N_ITEMS + 1), np.zeros(_N_ITEMS, dtype=np.int32), np.ones(_N_ITEMS, dtype=np.float32)
    pools = summed_neighbours(neighbours, reading.inputs.items, reading.lengths, np.ones(2))
    best_entries(allowed_entries(pools, exclusions, positive=True), _K)
    tower = best_scored(np.ones((n, _N_ITEMS), dtype=np.float32), np.arange(_N_ITEMS), exclusions, _K)
    lists = {TOWER: tower, COVISITATION: reading.lists[COVISITATION]}
    mixed = mixed_lists(lists, dict.fromkeys(lists, _K // 2), _K, _N_ITEMS)
    joined_lists([tower], reading.popular, _K, _N_ITEMS)
    targets = np.zeros(n, dtype=np.int64)
    ListedItems.of_blocks(tuple(lists), _N_ITEMS, [ListedBlock(lists, np.arange(n + 1), targets)])
    ones = np.ones(n, dtype=np.float32)
    recalls = Recalls(Targets(np.arange(n), targets, ones, ones[:, None]), n, _N_ITEMS, ())
    queries, known = np.zeros((n, 1), dtype=np.float32), np.zeros(n, dtype=bool)
    recalls.add(Answers(reading.rows, queries, mixed.items, mixed.source, mixed.sources, known, lists={}))


def _compute_features(world: SmallWorld) -> None:
    """Compute the features of a block, and one request's."""
    lengths = np.ones(_N_REQUESTS, dtype=np.int64)
    lists = ItemLists(row_offsets(lengths), np.zeros(_N_REQUESTS, dtype=np.int64), np.ones(_N_REQUESTS, np.float32))
    rows = CandidateTable(
        request_id=np.arange(_N_REQUESTS),
        item_index=lists.ids,
        score=lists.scores,
        rank=places_in_rows(lengths).astype(np.int32),
        source=np.zeros(_N_REQUESTS, dtype=np.int8),
    )
    blocks, state = [CandidateBlock(rows)], world.state()
    for _ in feature_blocks(blocks, world.events, world.requests, state, world.vectors, world.contexts):
        pass
    ranks = np.zeros(1, dtype=np.int32)
    ranking_features(state, 0, DAY_MS, lists.ids[:1], lists.scores[:1], ranks, world.vectors, (1,))


def _serve(world: SmallWorld) -> None:
    """Apply an event, read what a server reads, save a state and load it."""
    state = world.state()
    state.apply(0, 0, 0, 1.0, 0, state.context_values((1,)))
    state.has_touched(0, 0)
    state.covisitation.neighbours(0)
    if state.trending is not None:
        state.trending.scores(DAY_MS, 1)
    with TemporaryDirectory() as directory:
        state.save(Path(directory))
        given = world.items, state.config, _SIGNALS, _TASKS, _CONTEXT, state.trending and state.trending.config
        FunnelState.load(Path(directory), *given).apply(0, 1, 0, 1.0, 1000, (0,))


def _measure(world: SmallWorld) -> None:
    """Rank by popularity, and fit a baseline."""
    from scipy import sparse

    touches = FirstTouches(world.events, np.ones(len(_SIGNALS), dtype=bool))
    for half_life_ms in (None, float(DAY_MS)):
        for _ in popularity_rankings(touches, world.requests, world.available_ms, _K, half_life_ms):
            pass
    Popularity(world.events, _N_ITEMS, float(DAY_MS)).scores(world.requests.request_time_ms)
    cells = np.ones(_N_EVENTS), (world.events.user_index, world.events.item_index)
    matrix = sparse.csr_matrix(cells, shape=(_N_USERS, _N_ITEMS))
    ImplicitAls.fit(matrix, ImplicitAlsSettings(factors=2, iterations=1), 0)


def main() -> int:
    """Compile, and let all users of the environment read the result; return the exit code."""
    if CACHE is None:
        sys.stderr.write("nothing can be kept: set NUMBA_CACHE_DIR to a directory that only you can write to\n")
        return 1
    compile_all()
    share(CACHE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
