"""The generator ``item_knn``: neighbours by the cosine of who touched the items."""

from __future__ import annotations

from stages.candidate.generators.generator import Arrays, FitData, FitSize
from stages.candidate.generators.neighbours import NeighbourGenerator
from stages.candidate.generators.settings import GeneratorSettings
from stages.candidate.linear.config import LimitedItemKnn

_LONGEST = 10


class ItemKnnNeighbours(NeighbourGenerator):
    """The nearest items by the cosine of their columns of the user-item matrix, found with sparse products only.

    ``neighbours`` are the nearest items of each candidate; of an item of the history, at most ten times as many are
    kept, which bounds the cost of a request.
    """

    name = "item_knn"
    own_settings = LimitedItemKnn

    @classmethod
    def needs(cls, settings: GeneratorSettings, size: FitSize) -> float:
        """Return what the touches, a block of cosines and the neighbours take."""
        from stages.candidate.linear.item_knn import knn_gigabytes

        return knn_gigabytes(size.users, size.items, size.touches, settings.neighbours)

    @classmethod
    def fit(cls, settings: GeneratorSettings, data: FitData) -> Arrays:
        """Keep each item's nearest items.

        Raises:
            DataError: if there are no touches.
        """
        from stages.candidate.generators.neighbour_lists import as_arrays
        from stages.candidate.linear.item_knn import nearest_items

        own = settings.section(cls.name, LimitedItemKnn)
        found = nearest_items(data.touches(), own, settings.neighbours, data.allowed, _LONGEST * settings.neighbours)
        return as_arrays(found.lengths, found.ids, found.scores)
