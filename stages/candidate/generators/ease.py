"""The generator ``ease``: neighbours by the item-item weights of EASE."""

from __future__ import annotations

from stages.candidate.generators.generator import Arrays, FitData, FitSize
from stages.candidate.generators.neighbours import NeighbourGenerator
from stages.candidate.generators.settings import GeneratorSettings
from stages.candidate.linear.config import LimitedEase


class EaseNeighbours(NeighbourGenerator):
    """Neighbours by EASE's weights.

    Their sum over a history is EASE's own score, except for the neighbours that were cut.
    """

    name = "ease"
    own_settings = LimitedEase

    @classmethod
    def needs(cls, settings: GeneratorSettings, size: FitSize) -> float:
        """Return what the item-item matrices take, or the weights while neighbours are chosen."""
        from stages.candidate.generators.neighbour_lists import lists_gigabytes
        from stages.candidate.linear.models import ease_gigabytes

        choosing = 4 * size.items**2 / 1e9 + lists_gigabytes(size, settings.neighbours)
        return max(ease_gigabytes(size.items, size.touches), choosing)

    @classmethod
    def fit(cls, settings: GeneratorSettings, data: FitData) -> Arrays:
        """Fit EASE and keep each item's best neighbours.

        Raises:
            ConfigError: if the catalogue is too large for EASE; the message says what to do.
            DataError: if there are no touches.
        """
        from stages.candidate.generators.neighbour_lists import fitted_neighbours
        from stages.candidate.linear.models import Ease

        own = settings.section(cls.name, LimitedEase)
        model = Ease.fit(data.touches(), own, own.memory_gb)
        return fitted_neighbours(cls.name, model, data.touches(), settings.neighbours, data.allowed)
