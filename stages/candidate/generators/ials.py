"""The generator ``ials``: neighbours by implicit ALS."""

from __future__ import annotations

from stages.candidate.generators.generator import Arrays, FitData
from stages.candidate.generators.neighbours import NeighbourGenerator
from stages.candidate.generators.settings import GeneratorSettings
from stages.candidate.linear.config import SeededAls


class IalsNeighbours(NeighbourGenerator):
    """Neighbours by the answer of implicit ALS to a history of one item.

    Their sum over a history approximates the answer to the whole history, which would take a D x D system for each
    request.
    """

    name = "ials"
    own_settings = SeededAls

    @classmethod
    def fit(cls, settings: GeneratorSettings, data: FitData) -> Arrays:
        """Fit implicit ALS and keep each item's best neighbours.

        Raises:
            DataError: if there are no touches.
        """
        from stages.candidate.generators.neighbour_lists import fitted_neighbours
        from stages.candidate.linear.models import ImplicitAls

        own = settings.section(cls.name, SeededAls)
        model = ImplicitAls.fit(data.touches(), own, own.seed)
        return fitted_neighbours(cls.name, model, data.touches(), settings.neighbours, data.allowed)
