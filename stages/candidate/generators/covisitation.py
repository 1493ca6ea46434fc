"""The generator ``covisitation``: what other users touched next to the user's newest items."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from stages.candidate.generators.generator import (
    Arrays,
    CandidateGenerator,
    CandidateRequest,
    Pool,
    newest_items,
    place_weights,
    summed_links,
)
from stages.candidate.generators.settings import GeneratorSettings
from stages.features.reading import COVISITATION, CovisitationReading, Wanted
from stages.features.state import FunnelState


class Covisitation(CandidateGenerator):
    """What other users touched next to the user's newest items, as of the request.

    The score of an item is the sum over the user's newest items of weight * link / sqrt(popularity of either side),
    with a smoothed popularity of the candidate; see ``stages.features.covisitation``.
    """

    name = "covisitation"
    reads_state = True
    read_as = COVISITATION

    def __init__(self, settings: GeneratorSettings) -> None:
        self._settings = settings

    @classmethod
    def load(cls, settings: GeneratorSettings, arrays: Arrays, n_items: int) -> Covisitation:
        """Return the generator; its links are in the state."""
        return cls(settings)

    def candidates(self, request: CandidateRequest, state: FunnelState) -> Pool:
        """Return every item with a link."""
        history, weights = newest_items(request.history, self._settings)
        rows = [state.covisitation.neighbours(item) for item in history.tolist()]
        weights = weights / np.sqrt(np.maximum(state.touches[history], 1))
        ids, scores = summed_links([items for items, _ in rows], [links for _, links in rows], weights)
        return ids, scores / np.sqrt(np.maximum(state.touches[ids] + self._settings.covisitation_smoothing, 1))

    def want(self, wanted: Wanted) -> Wanted:
        """Ask for the list of links."""
        reading = CovisitationReading(place_weights(self._settings), self._settings.covisitation_smoothing)
        return replace(wanted, covisitation=reading)
