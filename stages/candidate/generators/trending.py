"""The trending generators: what was touched most within the last minutes, hours or days, by everybody or by a segment.

``trending`` weighs several windows into one list. The others are one window each, so that a learned mixture, quotas and
the rankers read each window's shares and ranks for themselves: ``trending_<window>`` over all users, and
``segment_trending_<window>`` within the request's segment, ``sources.trending.segment``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from stages.candidate.generators.generator import Arrays, CandidateGenerator, CandidateRequest, Pool
from stages.candidate.generators.settings import GeneratorSettings
from stages.contracts.config import Config
from stages.contracts.errors import ConfigError, ReleaseError
from stages.features.config import TrendingConfig
from stages.features.reading import Wanted
from stages.features.state import FunnelState
from stages.features.trending import TRENDING


class Trending(CandidateGenerator):
    """What all users, or those of the request's segment, touched within the last minutes and hours."""

    name = TRENDING
    own_settings: ClassVar[type[Config] | None] = TrendingConfig
    reads_state = True
    read_as = TRENDING
    answers_newcomers = True

    @classmethod
    def counted(cls, settings: GeneratorSettings) -> TrendingConfig | None:
        """Return its windows."""
        return settings.section(TRENDING, TrendingConfig)

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
            raise ReleaseError(f"the state counts nothing for the generator {self.name!r}: it was made without windows")
        return state.trending.scores(request.time_ms, state.trending.segment(request.context), self.name)

    def want(self, wanted: Wanted) -> Wanted:
        """Ask for the list of what is trending."""
        return replace(wanted, trending=(*wanted.trending, self.name))


class OneWindow(Trending):
    """What all users touched within one window.

    Attributes:
        minutes: length of the window.
        by_segment: whether the touches are those of the request's segment, smoothed by all users'.
    """

    own_settings = None
    minutes: ClassVar[float]
    by_segment: ClassVar[bool] = False

    @classmethod
    def counted(cls, settings: GeneratorSettings) -> TrendingConfig | None:
        """Return its window.

        Raises:
            ConfigError: if it needs a segment and ``sources.trending`` names none.
        """
        shared = settings.section(TRENDING, TrendingConfig)
        if cls.by_segment and shared.segment is None:
            raise ConfigError(
                f"sources.trending.segment = None: the generator {cls.name!r} counts by a context column; name one of "
                f"dataset.context.columns, or use {cls.name.removeprefix('segment_')!r}"
            )
        segment = {"segment": shared.segment, "segment_smoothing": shared.segment_smoothing} if cls.by_segment else {}
        return TrendingConfig.model_validate({"windows_minutes": (cls.minutes,), "weights": (1.0,), **segment})


class TenMinutes(OneWindow):
    """The last ten minutes, over all users."""

    name = read_as = "trending_10m"
    minutes = 10.0


class OneHour(OneWindow):
    """The last hour, over all users."""

    name = read_as = "trending_1h"
    minutes = 60.0


class SixHours(OneWindow):
    """The last six hours, over all users."""

    name = read_as = "trending_6h"
    minutes = 360.0


class OneDay(OneWindow):
    """The last day, over all users."""

    name = read_as = "trending_1d"
    minutes = 1440.0


class SevenDays(OneWindow):
    """The last seven days, over all users."""

    name = read_as = "trending_7d"
    minutes = 10080.0


class SegmentTenMinutes(TenMinutes):
    """The last ten minutes, within the request's segment."""

    name = read_as = "segment_trending_10m"
    by_segment = True


class SegmentOneHour(OneHour):
    """The last hour, within the request's segment."""

    name = read_as = "segment_trending_1h"
    by_segment = True


class SegmentSixHours(SixHours):
    """The last six hours, within the request's segment."""

    name = read_as = "segment_trending_6h"
    by_segment = True


class SegmentOneDay(OneDay):
    """The last day, within the request's segment."""

    name = read_as = "segment_trending_1d"
    by_segment = True


class SegmentSevenDays(SevenDays):
    """The last seven days, within the request's segment."""

    name = read_as = "segment_trending_7d"
    by_segment = True
