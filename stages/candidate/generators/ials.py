"""The generator ``ials``: neighbours by implicit ALS."""

from __future__ import annotations

from stages.candidate.generators.generator import Arrays, FitData, FitSize
from stages.candidate.generators.neighbours import NeighbourGenerator
from stages.candidate.generators.settings import GeneratorSettings
from stages.candidate.linear.config import LimitedAls


class IalsNeighbours(NeighbourGenerator):
    """Neighbours by the answer of implicit ALS to a history of one item.

    Their sum over a history approximates the answer to the whole history, which would take a D x D system for each
    request.
    """

    name = "ials"
    own_settings = LimitedAls

    @classmethod
    def needs(cls, settings: GeneratorSettings, size: FitSize) -> float:
        """Return what the factors and the touches take, or the items' factors while neighbours are chosen."""
        from stages.candidate.generators.neighbour_lists import lists_gigabytes
        from stages.candidate.linear.models import als_gigabytes

        factors = settings.section(cls.name, LimitedAls).factors
        choosing = 8 * factors * size.items / 1e9 + lists_gigabytes(size, settings.neighbours)
        return max(als_gigabytes(size.users, size.items, size.touches, factors), choosing)

    @classmethod
    def fit(cls, settings: GeneratorSettings, data: FitData) -> Arrays:
        """Fit implicit ALS and keep each item's best neighbours.

        Raises:
            DataError: if there are no touches.
        """
        from stages.candidate.generators.neighbour_lists import fitted_neighbours
        from stages.candidate.linear.models import ImplicitAls

        own = settings.section(cls.name, LimitedAls)
        model = ImplicitAls.fit(data.touches(), own, own.seed)
        return fitted_neighbours(cls.name, model, data.touches(), settings.neighbours, data.allowed)
