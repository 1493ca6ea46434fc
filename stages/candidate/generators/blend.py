"""Mixes the candidates of several generators, and keeps each generator's score and rank of each candidate.

With a learned mixture (``mixture``) the candidates are the best items of all lists by its score. Otherwise quotas mix
the lists, as follows.

The candidates are the first q_s items of each generator's list. Where generators agree, or a list is short, fewer than
``candidate_k`` are chosen; the two-tower list fills the rest. They are ordered by weighted reciprocal rank fusion
(Cormack, Clarke and Buettcher, "Reciprocal Rank Fusion outperforms Condorcet and individual Rank Learning Methods",
2009): the sum over the generators of q_s / candidate_k / (60 + rank), with rank from 1, so that scores of different
scales are never compared. Ties go to the better best rank, then to the lower item index.

One request is mixed here, a block of requests in ``mixing``, with the same result.

Shapes: B requests of a block, n candidates of one request, S generators.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stages.candidate.generators.files import SourcesSummary, load_arrays, load_mixture, read_summary
from stages.candidate.generators.generator import CandidateGenerator, CandidateRequest, RequestBlock, best_of
from stages.candidate.generators.mixing import RRF_K, MixedLists, joined_lists, mixed_lists
from stages.candidate.generators.mixture import Mixture
from stages.candidate.generators.table import TOWER, generator_class
from stages.contracts.errors import DataError, ReleaseError
from stages.contracts.item_lists import ItemLists
from stages.contracts.newcomers import NewcomerList
from stages.contracts.sources import SourceScores, source_code
from stages.contracts.tables import ScoredItems
from stages.features.config import TrendsConfig
from stages.features.reading import Wanted
from stages.features.state import FunnelState

_UNRANKED = np.iinfo(np.int32).max


@dataclass(frozen=True)
class Blended:
    """Candidates of one request with their origin.

    Attributes:
        items: n items by fused score, or by the score of the learned mixture.
        source: int8 ``[n]``, code of the generator in whose quota the item has the best rank (of equal ones the first
            by configuration); the tower's for an item that fills the rest. With a learned mixture, of the generator in
            whose list it has the best rank.
        sources: score and rank of each in every generator's list, ``[n, S]``; None where there is one generator.
    """

    items: ScoredItems
    source: np.ndarray
    sources: SourceScores | None = None

    @classmethod
    def of_one(cls, items: ScoredItems, name: str, names: tuple[str, ...] = ()) -> Blended:
        """Return the candidates of one generator; with ``names``, mark them as in none of these generators' lists."""
        source = np.full(len(items), source_code(name), dtype=np.int8)
        return cls(items, source, SourceScores.nothing(names, len(items)) if names else None)


class Blend:
    """The candidate generators of one funnel; threads share it, and each brings its request.

    Args:
        summary: names, settings and quotas.
        generators: all but the two-tower index, in the order of ``summary.names``.
        mixture: the learned mixture; None where quotas mix the lists.

    Attributes:
        names: generators in the order of the columns of ``SourceScores``.
        quotas: items of each, by name.
        trending: the windows that the state must count; None without any.
        mixture: as given.
    """

    def __init__(
        self, summary: SourcesSummary, generators: list[CandidateGenerator], mixture: Mixture | None = None
    ) -> None:
        self.summary, self.mixture = summary, mixture
        self.names: tuple[str, ...] = summary.names
        self.quotas: dict[str, int] = dict(summary.quotas)
        self.trending: TrendsConfig | None = summary.config.counted
        self._generators = generators

    @classmethod
    def load(cls, directory: Path, n_items: int, hashes: Mapping[str, str] | None = None) -> Blend | None:
        """Load what the step ``train_sources`` wrote.

        Args:
            directory: holds ``sources.json`` and the generators' arrays.
            n_items: size of the catalogue.
            hashes: sha256 of the files as found, by path in a release; None computes them.

        Returns:
            The blend, None where the two-tower index is the only generator.

        Raises:
            ReleaseError: if a file is missing, changed or made for another catalogue.
        """
        summary = read_summary(directory, n_items)
        if not summary.config.blends:
            return None
        generators: list[CandidateGenerator] = []
        for name in summary.names:
            if name != TOWER:
                kind = generator_class(name)
                arrays = load_arrays(directory, kind, summary, hashes)
                try:
                    generators.append(kind.load(summary.config, arrays, n_items))
                except ReleaseError as error:
                    raise ReleaseError(f"{directory}: {error}") from None
        return cls(summary, generators, load_mixture(directory, summary, hashes))

    def list_length(self, k: int) -> int:
        """Return how many items of each generator's list ``mix`` needs for ``k`` candidates."""
        return k if self.mixture is None else max(k, self.mixture.pool)

    def read(self, request: CandidateRequest, state: FunnelState, k: int) -> dict[str, ScoredItems]:
        """Return up to ``k`` items of each generator that reads the state, from the state as it is now.

        Where threads share the state, the caller holds its lock.
        """
        return self._lists(request, state, k, reads_state=True)

    def complete(
        self,
        state_lists: Mapping[str, ScoredItems],
        request: CandidateRequest,
        state: FunnelState,
        tower: ScoredItems,
        k: int,
    ) -> dict[str, ScoredItems]:
        """Add the two-tower list, and the lists of the generators that do not read the state; no lock is needed.

        Args:
            state_lists: of ``read``.
            request: as given to ``read``.
            state: not read.
            tower: the two-tower list.
            k: items of a list, at most.
        """
        found = {**state_lists, TOWER: tower, **self._lists(request, state, k, reads_state=False)}
        return {name: found[name] for name in self.names}

    def _lists(
        self, request: CandidateRequest, state: FunnelState, k: int, reads_state: bool
    ) -> dict[str, ScoredItems]:
        return {
            generator.name: best_of(generator.candidates(request, state), request, k)
            for generator in self._generators
            if generator.reads_state == reads_state
        }

    @property
    def newcomer_generators(self) -> tuple[str, ...]:
        """The generators that may answer users without history, in the order of configuration."""
        return tuple(generator.name for generator in self._generators if generator.answers_newcomers)

    def _answering(self, chosen: NewcomerList | None) -> list[CandidateGenerator]:
        """Return the generators whose items come before popular ones: all of them where nothing was chosen."""
        return [
            generator
            for generator in self._generators
            if generator.answers_newcomers and (chosen is None or generator.name == chosen.generator)
        ]

    def for_newcomer(
        self,
        request: CandidateRequest,
        state: FunnelState,
        popular: ScoredItems,
        k: int,
        chosen: NewcomerList | None = None,
    ) -> ScoredItems:
        """Return up to ``k`` items for a request without history: a generator's where it is chosen, then popular ones.

        Where threads share the state, the caller holds its lock.

        Args:
            request: with an empty history.
            state: as it is at the time of the request.
            popular: the popular items, which are the answer where no generator has one.
            k: items wanted.
            chosen: the list; None takes the one of ``sources.json``.

        Returns:
            ``popular`` itself, or all lists joined with 1 / (60 + rank) as scores, rank from 1, since their own scores
            have different units.
        """
        lists = [
            best_of(generator.candidates(request, state), request, k)
            for generator in self._answering(chosen or self.summary.newcomers)
        ]
        if not any(len(items) for items in lists):
            return popular
        joined = np.concatenate([items.ids for items in (*lists, popular)])
        _, first = np.unique(joined, return_index=True)
        ids = joined[np.sort(first)][:k]
        return ScoredItems(ids=ids, scores=(1.0 / (RRF_K + 1.0 + np.arange(len(ids)))).astype(np.float32))

    def want(self, wanted: Wanted) -> Wanted:
        """Return what a replay reads, with the lists of the generators that have a reader there."""
        for generator in self._generators:
            wanted = generator.want(wanted)
        return wanted

    @property
    def visits(self) -> bool:
        """Whether a generator must be called at each request of a replay."""
        return any(generator.reads_state and not generator.read_as for generator in self._generators)

    def visit(self, request: CandidateRequest, state: FunnelState, k: int) -> dict[str, ScoredItems]:
        """Return up to ``k`` items of each generator that must be called at the request, from the state as it is."""
        return {
            generator.name: best_of(generator.candidates(request, state), request, k)
            for generator in self._generators
            if generator.reads_state and not generator.read_as
        }

    def block_lists(
        self, read: Mapping[str, ItemLists], block: RequestBlock, state: FunnelState, k: int
    ) -> dict[str, ItemLists]:
        """Return the lists of all generators but the two-tower index, for a block of requests.

        Args:
            read: the lists of a ``Reading`` by name, and those of the generators that were called at each request.
            block: the requests.
            state: not read.
            k: items of a list, at most.
        """
        return {
            generator.name: read[generator.read_as or generator.name]
            if generator.reads_state
            else generator.lists(block, state, k)
            for generator in self._generators
        }

    def block_for_newcomers(
        self, lists: Mapping[str, ItemLists], popular: ItemLists, k: int, n_items: int
    ) -> ItemLists:
        """Return what ``for_newcomer`` returns for each request of a block.

        Args:
            lists: of ``block_lists``.
            popular: the popular items of each request.
            k: items wanted.
            n_items: size of the catalogue.
        """
        answering = [lists[generator.name] for generator in self._answering(self.summary.newcomers)]
        return joined_lists(answering, popular, k, n_items)

    def mix_block(
        self, lists: Mapping[str, ItemLists], k: int, n_items: int, history_lengths: np.ndarray
    ) -> MixedLists:
        """Return what ``mix`` returns for each request of a block.

        Args:
            lists: of ``block_lists``, and the two-tower list.
            k: ``candidate_k``.
            n_items: size of the catalogue.
            history_lengths: int ``[B]``, items of each request's history.
        """
        if self.mixture is not None:
            return self.mixture.mixed(lists, history_lengths, k)
        return mixed_lists({name: lists[name] for name in self.names}, self.quotas, k, n_items)

    def mix(self, lists: Mapping[str, ScoredItems], k: int, history_length: int | None = None) -> Blended:
        """Choose and order the candidates of one request; see the module.

        Args:
            lists: of every generator, see ``complete``.
            k: ``candidate_k``. Fewer are returned only where the request allows fewer items.
            history_length: items of the request's history; only a learned mixture reads it.

        Raises:
            DataError: if a learned mixture is not told the length of the history.
        """
        if self.mixture is None:
            return self._mix_by_quotas(lists, k)
        if history_length is None:
            raise DataError("a learned mixture reads history_length, found None: allowed are whole numbers")
        of_one = {name: ItemLists.join([lists[name]]) for name in self.names}
        mixed = self.mixture.mixed(of_one, np.array([history_length]), k)
        return Blended(mixed.items.row(0), mixed.source, mixed.sources)

    def _mix_by_quotas(self, lists: Mapping[str, ScoredItems], k: int) -> Blended:
        within = [lists[name].ids[: self.quotas[name]] for name in self.names]
        chosen = np.unique(np.concatenate(within))
        tower = lists[TOWER].ids
        filling = tower[~np.isin(tower, chosen)][: max(k - len(chosen), 0)]
        items = np.concatenate([chosen, filling])
        source_scores = _look_up(items, lists, self.names)
        quotas = np.array([self.quotas[name] for name in self.names])
        shares = np.where(source_scores.ranks >= 0, quotas / k / (RRF_K + source_scores.ranks + 1.0), 0.0)
        fused = sum(shares.T, np.zeros(len(items)))  # one generator after the other: ``mixing`` sums in the same order
        ranks = np.where(source_scores.ranks >= 0, source_scores.ranks, _UNRANKED)
        order = np.lexsort((items, ranks.min(axis=1, initial=_UNRANKED), -fused))
        inside = np.where(ranks < quotas, ranks, _UNRANKED)
        codes = np.array([source_code(name) for name in self.names], dtype=np.int8)
        first = np.where(inside.min(axis=1, initial=_UNRANKED) < _UNRANKED, codes[inside.argmin(axis=1)], _TOWER_CODE)
        return Blended(
            items=ScoredItems(ids=items[order], scores=fused[order].astype(np.float32)),
            source=first[order].astype(np.int8),
            sources=source_scores.take(order),
        )


_TOWER_CODE = source_code(TOWER)


def _look_up(items: np.ndarray, lists: Mapping[str, ScoredItems], names: tuple[str, ...]) -> SourceScores:
    """Return rank and score of each item in every list."""
    source_scores = SourceScores.nothing(names, len(items))
    for column, name in enumerate(names):
        ids = lists[name].ids
        if not len(ids):
            continue
        by_id = np.argsort(ids)
        place = by_id[np.minimum(np.searchsorted(ids[by_id], items), len(ids) - 1)]
        found = ids[place] == items
        source_scores.ranks[found, column] = place[found]
        source_scores.scores[found, column] = lists[name].scores[place[found]]
    return source_scores
