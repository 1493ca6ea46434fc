"""The generator ``trending``: what was touched most within the last minutes and hours."""

from __future__ import annotations

from dataclasses import replace

from stages.candidate.generators.generator import Arrays, CandidateGenerator, CandidateRequest, Pool
from stages.candidate.generators.settings import GeneratorSettings
from stages.contracts.errors import ReleaseError
from stages.features.config import TrendingConfig
from stages.features.reading import TRENDING, Wanted
from stages.features.state import FunnelState


class Trending(CandidateGenerator):
    """What all users, or those of the request's segment, touched within the last minutes and hours."""

    name = "trending"
    own_settings = TrendingConfig
    reads_state = True
    read_as = TRENDING
    answers_newcomers = True

    @classmethod
    def counted(cls, settings: GeneratorSettings) -> TrendingConfig | None:
        """Return its windows."""
        return settings.section(cls.name, TrendingConfig)

    @classmethod
    def load(cls, settings: GeneratorSettings, arrays: Arrays, n_items: int) -> Trending:
        """Return the generator; its counts are in the state."""
        return cls()

    def candidates(self, request: CandidateRequest, state: FunnelState) -> Pool:
        """Return every item of the longest window.

        Raises:
            ReleaseError: if the state does not count what is trending.
        """
        if state.trending is None:
            raise ReleaseError("the state counts nothing for the generator 'trending': it was made without its windows")
        return state.trending.scores(request.time_ms, state.trending.segment(request.context))

    def want(self, wanted: Wanted) -> Wanted:
        """Ask for the list of what is trending."""
        return replace(wanted, trending=True)
