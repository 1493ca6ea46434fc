"""Candidates from several sources: quotas, no item twice, and what each source says of each candidate.

The candidates are the first q_s items of each source's list; what is left of ``candidate_k``, because an item was named
twice or a list was short, is filled from the two-tower list. Their order is that of weighted reciprocal rank fusion
(Cormack, Clarke and Buettcher, "Reciprocal Rank Fusion outperforms Condorcet and individual Rank Learning Methods",
2009): the sum over the sources of q_s / candidate_k / (60 + rank), with rank from 1, so that scores of different scales
are never compared. Ties go to the better best rank, then to the lower item index.

Shapes: n candidates of one request, S sources.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stages.candidate.generators.config import TOWER
from stages.candidate.generators.files import SourcesSummary, load_neighbours, read_summary
from stages.candidate.generators.generators import (
    Asked,
    CovisitationSource,
    ItemSource,
    NeighbourSource,
    TrendingSource,
    best_of,
)
from stages.contracts.sources import SourceScores, source_code
from stages.contracts.tables import ScoredItems
from stages.features.config import TrendingConfig
from stages.features.state import FunnelState

RRF_K = 60
"""The constant of the paper: how much less the first ranks differ from the next ones."""

_UNRANKED = np.iinfo(np.int32).max


@dataclass(frozen=True)
class Blended:
    """Candidates of one request with their origin.

    Attributes:
        items: n items by fused score.
        source: int8 ``[n]``, code of the source in whose quota the item stands highest (of equal ones the first by
            configuration); the tower's for what fills the rest.
        sources: what every source says of each, ``[n, S]``; None where there is one source only.
    """

    items: ScoredItems
    source: np.ndarray
    sources: SourceScores | None = None

    @classmethod
    def of_one(cls, items: ScoredItems, name: str, names: tuple[str, ...] = ()) -> Blended:
        """Return candidates of one source; with ``names`` they are taken as named by none of these."""
        source = np.full(len(items), source_code(name), dtype=np.int8)
        return cls(items, source, SourceScores.nothing(names, len(items)) if names else None)


class Blend:
    """The sources of one funnel; shared by threads, each of which brings its request.

    Args:
        summary: names, settings and quotas.
        sources: all but the two-tower index, in the order of ``summary.names``.

    Attributes:
        names: sources in the order of the columns of ``SourceScores``.
        quotas: items of each, by name.
        trending: what the state has to count, None where nothing.
    """

    def __init__(self, summary: SourcesSummary, sources: list[ItemSource]) -> None:
        self.summary = summary
        self.names: tuple[str, ...] = summary.names
        self.quotas: dict[str, int] = dict(summary.quotas)
        self.trending: TrendingConfig | None = summary.config.counted
        self._sources = sources

    @classmethod
    def load(cls, directory: Path, n_items: int) -> Blend | None:
        """Load what the step ``train_sources`` wrote.

        Args:
            directory: holds ``sources.json`` and the neighbours' arrays.
            n_items: size of the catalogue.

        Returns:
            The blend, None where the two-tower index is the only source.

        Raises:
            ReleaseError: if a file is missing, changed or made for another catalogue.
        """
        summary = read_summary(directory, n_items)
        if not summary.config.blends:
            return None
        sources: list[ItemSource] = []
        for name in summary.names:
            if name == "covisitation":
                sources.append(CovisitationSource(summary.config))
            elif name == "trending":
                sources.append(TrendingSource())
            elif name != TOWER:
                sources.append(NeighbourSource(name, *load_neighbours(directory, name, summary), summary.config))
        return cls(summary, sources)

    def read(self, asked: Asked, state: FunnelState, k: int) -> dict[str, ScoredItems]:
        """Return up to ``k`` items of each source that depends on the state, as it stands now.

        Whoever shares the state holds its lock.
        """
        return self._lists(asked, state, k, reads_state=True)

    def complete(
        self, lists: Mapping[str, ScoredItems], asked: Asked, state: FunnelState, tower: ScoredItems, k: int
    ) -> dict[str, ScoredItems]:
        """Add the two-tower list, and those of the sources that do not read the state; no lock is needed."""
        found = {**lists, TOWER: tower, **self._lists(asked, state, k, reads_state=False)}
        return {name: found[name] for name in self.names}

    def _lists(self, asked: Asked, state: FunnelState, k: int, reads_state: bool) -> dict[str, ScoredItems]:
        return {
            source.name: best_of(source.pool(asked, state), asked, k)
            for source in self._sources
            if source.reads_state == reads_state
        }

    def for_newcomer(self, asked: Asked, state: FunnelState, popular: ScoredItems, k: int) -> ScoredItems:
        """Return up to ``k`` items for a request without history: what is trending, then what is popular.

        Whoever shares the state holds its lock.

        Args:
            asked: with an empty history.
            state: as it stands at the moment of the request.
            popular: what the request is answered with where nothing is trending, or that is no source.
            k: items wanted.

        Returns:
            ``popular`` itself, or both lists with 1 / (60 + rank) as scores, rank from 1, since their own have
            different units.
        """
        source = next((each for each in self._sources if each.name == "trending"), None)
        trending = None if source is None else best_of(source.pool(asked, state), asked, k)
        if trending is None or not len(trending):
            return popular
        ids = np.concatenate([trending.ids, popular.ids[~np.isin(popular.ids, trending.ids)]])[:k]
        return ScoredItems(ids=ids, scores=(1.0 / (RRF_K + 1.0 + np.arange(len(ids)))).astype(np.float32))

    def mix(self, lists: Mapping[str, ScoredItems], k: int) -> Blended:
        """Choose by quotas and order by fused rank; see the module.

        Args:
            lists: of every source, see ``complete``.
            k: ``candidate_k``; fewer come back only where fewer may be returned at all.
        """
        within = [lists[name].ids[: self.quotas[name]] for name in self.names]
        chosen = np.unique(np.concatenate(within))
        tower = lists[TOWER].ids
        filling = tower[~np.isin(tower, chosen)][: max(k - len(chosen), 0)]
        items = np.concatenate([chosen, filling])
        said = _look_up(items, lists, self.names)
        quotas = np.array([self.quotas[name] for name in self.names])
        fused = np.where(said.ranks >= 0, quotas / k / (RRF_K + said.ranks + 1.0), 0.0).sum(axis=1)
        ranks = np.where(said.ranks >= 0, said.ranks, _UNRANKED)
        order = np.lexsort((items, ranks.min(axis=1, initial=_UNRANKED), -fused))
        inside = np.where(ranks < quotas, ranks, _UNRANKED)
        codes = np.array([source_code(name) for name in self.names], dtype=np.int8)
        first = np.where(inside.min(axis=1, initial=_UNRANKED) < _UNRANKED, codes[inside.argmin(axis=1)], _TOWER_CODE)
        return Blended(
            items=ScoredItems(ids=items[order], scores=fused[order].astype(np.float32)),
            source=first[order].astype(np.int8),
            sources=said.take(order),
        )


_TOWER_CODE = source_code(TOWER)


def _look_up(items: np.ndarray, lists: Mapping[str, ScoredItems], names: tuple[str, ...]) -> SourceScores:
    """Return rank and score of each item in every list."""
    said = SourceScores.nothing(names, len(items))
    for column, name in enumerate(names):
        ids = lists[name].ids
        if not len(ids):
            continue
        by_id = np.argsort(ids)
        place = by_id[np.minimum(np.searchsorted(ids[by_id], items), len(ids) - 1)]
        found = ids[place] == items
        said.ranks[found, column] = place[found]
        said.scores[found, column] = lists[name].scores[place[found]]
    return said
