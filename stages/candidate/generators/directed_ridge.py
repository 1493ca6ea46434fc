"""The generator ``directed_ridge``: neighbours by the item-item weights of the directed ridge."""

from __future__ import annotations

import numpy as np

from stages.candidate.generators.generator import Arrays, FitData, FitSize
from stages.candidate.generators.neighbours import NeighbourGenerator
from stages.candidate.generators.settings import GeneratorSettings
from stages.candidate.linear.config import LimitedRidge
from stages.candidate.linear.history_weights import power_weights


class RidgeNeighbours(NeighbourGenerator):
    """What comes next after each of the newest items, by the weights of the directed ridge.

    The item k places back weighs k ** -power, as it did when the ridge was fitted, in place of the weights of the other
    generators. The sum over a history is the ridge's own score, except for the neighbours that were cut.
    """

    name = "directed_ridge"
    own_settings = LimitedRidge

    @classmethod
    def history_weights(cls, settings: GeneratorSettings) -> np.ndarray:
        """Return k ** -power for the ``latest`` newest items, float64 ``[H]``, newest first."""
        own = settings.section(cls.name, LimitedRidge)
        return power_weights(np.arange(1, own.latest + 1), own.power, own.latest)

    @classmethod
    def needs(cls, settings: GeneratorSettings, size: FitSize) -> float:
        """Return what the method takes that ``fit`` would use, or the weights while neighbours are chosen."""
        from stages.candidate.generators.neighbour_lists import weighed_gigabytes
        from stages.candidate.linear.directed_ridge import ridge_method

        own = settings.section(cls.name, LimitedRidge)
        method = ridge_method(own, size.users, size.items, size.touches, size.longest, own.memory_gb)
        return max(method.gigabytes, weighed_gigabytes(method, own.neighbours, size, settings.neighbours))

    @classmethod
    def fit(cls, settings: GeneratorSettings, data: FitData) -> Arrays:
        """Fit the ridge and keep each item's best neighbours.

        Raises:
            ConfigError: if the catalogue is too large for ``memory_gb``; the message says what to do.
            DataError: if no user has two touches.
        """
        from stages.candidate.generators.neighbour_lists import weighed_neighbours
        from stages.candidate.linear.directed_ridge import DirectedRidge

        own = settings.section(cls.name, LimitedRidge)
        user_R, item_R = data.sequences()
        model = DirectedRidge.fit(user_R, item_R, len(data.items), own, own.memory_gb)
        return weighed_neighbours(cls.name, model, data.touches(), settings.neighbours, data.allowed)
