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
        """Return what the method takes that ``fit`` would use, or the weights while neighbours are chosen."""
        from stages.candidate.generators.neighbour_lists import weighed_gigabytes
        from stages.candidate.linear.models import ease_method

        own = settings.section(cls.name, LimitedEase)
        method = ease_method(own, size.users, size.items, size.touches, own.memory_gb)
        return max(method.gigabytes, weighed_gigabytes(method, own.neighbours, size, settings.neighbours))

    @classmethod
    def fit(cls, settings: GeneratorSettings, data: FitData) -> Arrays:
        """Fit EASE and keep each item's best neighbours.

        Raises:
            ConfigError: if the catalogue is too large for ``memory_gb``; the message says what to do.
            DataError: if there are no touches.
        """
        from stages.candidate.generators.neighbour_lists import weighed_neighbours
        from stages.candidate.linear.models import Ease

        own = settings.section(cls.name, LimitedEase)
        model = Ease.fit(data.touches(), own, own.memory_gb)
        return weighed_neighbours(cls.name, model, data.touches(), settings.neighbours, data.allowed)
