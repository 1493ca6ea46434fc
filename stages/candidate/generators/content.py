"""The generator ``content``: neighbours by categories and words of the title."""

from __future__ import annotations

from stages.candidate.generators.generator import Arrays, FitData, FitSize
from stages.candidate.generators.neighbours import NeighbourGenerator
from stages.candidate.generators.settings import GeneratorSettings
from stages.contracts.snapshot import ItemTable


class ContentNeighbours(NeighbourGenerator):
    """Neighbours by the cosine of tf-idf vectors of categories and titles; new items have some at once."""

    name = "content"

    @classmethod
    def needs(cls, settings: GeneratorSettings, size: FitSize) -> float:
        """Return what the neighbours and a block of cosines take; words of titles come on top, uncounted."""
        from stages.candidate.generators.neighbour_lists import lists_gigabytes

        return lists_gigabytes(FitSize(size.items, 0, 0, 0), settings.neighbours)

    @classmethod
    def fit(cls, settings: GeneratorSettings, data: FitData) -> Arrays:
        """Find each item's nearest ones."""
        return _neighbours(settings, data.items)

    @classmethod
    def refresh(cls, settings: GeneratorSettings, arrays: Arrays, items: ItemTable) -> Arrays:
        """Find the neighbours of the whole catalogue anew."""
        return _neighbours(settings, items)


def _neighbours(settings: GeneratorSettings, items: ItemTable) -> Arrays:
    from stages.candidate.generators.neighbour_lists import content_neighbours

    return content_neighbours(items, settings.neighbours, items.recommendable())
