"""The interface of a candidate generator: fitted once, loaded with a release, called for candidates at each request.

A generator is a subclass of ``CandidateGenerator`` in a module of its own, and a row with its name in
``stages.contracts.sources.GENERATORS``. Fitting, the files of a release, the blend, serving and the refresh follow from
these two.

No torch and no scipy at the top of a generator's module: serving imports it. What ``fit`` and ``refresh`` need is
imported inside of them.

Shapes: B requests of a block, H items of a history, L history length, M items of a pool, N items, U users, X context
columns.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from stages.candidate.generators.settings import GeneratorSettings
from stages.contracts.config import Config
from stages.contracts.exclusions import Exclusions
from stages.contracts.item_lists import ItemLists
from stages.contracts.snapshot import ItemTable, Snapshot
from stages.contracts.tables import ScoredItems
from stages.contracts.top_k import top_k
from stages.features.config import FeatureConfig, TrendingConfig
from stages.features.reading import Wanted
from stages.features.state import FunnelState

Arrays = Mapping[str, np.ndarray]
"""What a fitted generator keeps, by the names in ``CandidateGenerator.arrays``."""
Pool = tuple[np.ndarray, np.ndarray]
"""Distinct int64 items and their float64 scores, both ``[M]``."""


@dataclass(frozen=True)
class CandidateRequest:
    """One request, as the generators read it.

    Attributes:
        history: int64 ``[H]`` items, newest first.
        time_ms: when it was made, int ms UTC.
        context: one code for each context column of the state; empty where nothing is known.
        seen: int64 items that must not be returned.
        available_ms: int64 ``[N]``, when each item may be recommended. It is NEVER_AVAILABLE_MS for an item that the
            item policy or the request's filter excludes.
    """

    history: np.ndarray
    time_ms: int
    context: Sequence[int]
    seen: np.ndarray
    available_ms: np.ndarray


@dataclass(frozen=True)
class RequestBlock:
    """Requests that are answered together, as the generators read them.

    Attributes:
        history: int64 ``[B, L]`` items, newest first, padded on the right.
        lengths: int64 ``[B]``, items of each history.
        context: int64 ``[B, X]``, as ``CandidateRequest.context``.
        exclusions: times of the requests, and what must not be returned.
    """

    history: np.ndarray
    lengths: np.ndarray
    context: np.ndarray
    exclusions: Exclusions

    def __len__(self) -> int:
        return len(self.lengths)

    def request(self, number: int) -> CandidateRequest:
        """Return one of the requests."""
        exclusions = self.exclusions
        return CandidateRequest(
            history=self.history[number, : self.lengths[number]],
            time_ms=int(exclusions.time_ms[number]),
            context=tuple(self.context[number].tolist()),
            seen=exclusions.seen_by(number),
            available_ms=exclusions.available_ms[exclusions.period[number]],
        )


@dataclass(frozen=True)
class FitData:
    """What a generator may be fitted to.

    Attributes:
        snapshot: of the run. Only its candidate period is for fitting.
        features: the features of the run, such as which signals are exposures.
        items: the catalogue, N.
        allowed: int64 items that may be recommended.
        touches: returns the users' touches of the candidate period, a scipy CSR matrix ``[U, N]`` of ones. The towers
            train on the same touches. The matrix is made at the first call.
        sequences: returns the same touches in their order, as int64 users and items ``[R]``: users one after the other,
            each user's oldest touch first.
    """

    snapshot: Snapshot
    features: FeatureConfig
    items: ItemTable
    allowed: np.ndarray
    touches: Callable[[], Any]
    sequences: Callable[[], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class FitSize:
    """The sizes that the memory of a fit follows from, known as soon as there is a snapshot.

    Attributes:
        items: N.
        users: users with touches.
        touches: cells of ``FitData.touches``.
        longest: touches of the user who has most of them.
    """

    items: int
    users: int
    touches: int
    longest: int


class CandidateGenerator(ABC):
    """One candidate generator beside the two-tower index.

    Attributes:
        name: its key in ``stages.contracts.sources.GENERATORS``, and in ``sources.names`` of a recipe.
        own_settings: the type of the recipe's section ``sources.<name>``; None where there is no such section.
        arrays: the arrays that ``fit`` returns, by name. A release holds each as ``sources/<name>_<array>.npy``.
        reads_state: whether the candidates depend on the state. The server then calls ``candidates`` while it holds
            the state's lock.
        read_as: the list of a ``Reading`` that holds this generator's best candidates, so that ``candidates`` need not
            be called at each request of a replay; empty where there is no such list. See ``want``.
        answers_newcomers: whether it may also answer requests without a history, ahead of popular items; it does where
            that measures best.
    """

    name: ClassVar[str]
    own_settings: ClassVar[type[Config] | None] = None
    arrays: ClassVar[Mapping[str, np.dtype]] = {}
    reads_state: ClassVar[bool] = False
    read_as: ClassVar[str] = ""
    answers_newcomers: ClassVar[bool] = False

    @classmethod
    def counted(cls, settings: GeneratorSettings) -> TrendingConfig | None:
        """Return the windows that the state must count for this generator's list, None where it needs none."""
        return None

    @classmethod
    def needs(cls, settings: GeneratorSettings, size: FitSize) -> float:
        """Return the 10^9 bytes that ``fit`` takes at most; 0 where it takes next to nothing.

        It is compared with ``memory_gb`` of the generator's own section, where that has one, and with the memory that
        is available, before anything is trained.
        """
        return 0.0

    @classmethod
    def fit(cls, settings: GeneratorSettings, data: FitData) -> Arrays:
        """Return the fitted arrays; nothing where the generator only reads the state."""
        return {}

    @classmethod
    @abstractmethod
    def load(cls, settings: GeneratorSettings, arrays: Arrays, n_items: int) -> CandidateGenerator:
        """Make the generator from its fitted arrays.

        Args:
            settings: as they were when it was fitted.
            arrays: with the types of ``cls.arrays``; a large one is mapped from its file.
            n_items: N.

        Raises:
            ReleaseError: if the arrays do not fit together, or the catalogue.
        """

    @classmethod
    def refresh(cls, settings: GeneratorSettings, arrays: Arrays, items: ItemTable) -> Arrays:
        """Return the arrays for a catalogue that has grown; nothing is fitted to new events.

        Without a method of its own a generator keeps its arrays.

        Args:
            settings: as they were when it was fitted.
            arrays: of the release.
            items: the catalogue, with new items behind those of the release.
        """
        return arrays

    @abstractmethod
    def candidates(self, request: CandidateRequest, state: FunnelState) -> Pool:
        """Return every possible candidate; the caller removes what the request excludes and keeps the best.

        Items with a score of 0 or below are no candidates.
        """

    def want(self, wanted: Wanted) -> Wanted:
        """Return what a replay reads, with the list ``read_as`` added."""
        return wanted

    def lists(self, block: RequestBlock, state: FunnelState, k: int) -> ItemLists:
        """Return the best ``k`` candidates of each request of a block, where they do not depend on the state.

        Without a method of its own a generator is called request by request.

        Args:
            block: the requests.
            state: not read.
            k: items of a list, at most.
        """
        requests = [block.request(number) for number in range(len(block))]
        return ItemLists.join([best_of(self.candidates(request, state), request, k) for request in requests])


def best_of(pool: Pool, request: CandidateRequest, k: int) -> ScoredItems:
    """Return the best ``k`` items of a pool that the request allows; ties by item index."""
    ids, scores = pool[0], pool[1].astype(np.float32)
    kept = (scores > 0) & (request.available_ms[ids] <= request.time_ms) & ~np.isin(ids, request.seen)
    ids, scores = ids[kept], scores[kept]
    best = top_k(scores, k, ids)
    return ScoredItems(ids=ids[best].astype(np.int64), scores=scores[best])


def newest_items(history: np.ndarray, settings: GeneratorSettings) -> Pool:
    """Return the newest items of a history, and their weights by position."""
    newest = history[: settings.history_length]
    return newest, place_weights(settings)[: len(newest)]


def place_weights(settings: GeneratorSettings) -> np.ndarray:
    """Return the float64 weight of each of the newest ``history_length`` items, newest first."""
    return np.exp(-np.arange(settings.history_length) / settings.history_decay)


def summed_links(items: list[np.ndarray], links: list[np.ndarray], weights: np.ndarray) -> Pool:
    """Return the distinct linked items, each with the sum of its links.

    Args:
        items: the items that are linked with each item of a history.
        links: the strength of each link, parallel to ``items``.
        weights: float64 ``[H]``, factor of the links of each item of the history.
    """
    if not items:
        return np.zeros(0, dtype=np.int64), np.zeros(0)
    factors = np.repeat(weights, [len(row) for row in items])
    ids, position = np.unique(np.concatenate(items), return_inverse=True)
    scores = np.bincount(position, np.concatenate(links) * factors, minlength=len(ids))
    return ids.astype(np.int64), scores
