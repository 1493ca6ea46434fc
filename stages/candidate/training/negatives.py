"""Negatives that a batch shares, and how often each item is expected among them.

Shapes: N items, M eligible items, n negatives a step.
"""

from __future__ import annotations

import numpy as np

from stages.candidate.config import CandidateConfig
from stages.candidate.data.item_features import Catalogue
from stages.contracts.errors import ConfigError

FULL_SOFTMAX_ITEMS = 200_000
"""Items up to which every step may score all of them."""


class SharedNegatives:
    """Draws negatives from the eligible items, uniformly or by a power of their popularity.

    Uniform ones are drawn without replacement. By popularity an item is drawn, with replacement, in
    proportion to ``(1 + frequency) ** popularity_power``: the power of word2vec (Mikolov et al., 2013)
    with one added, so that an item without examples can be drawn as well. The full softmax takes
    every eligible item, in ascending order.

    Attributes:
        n: negatives a step; if it is the number of eligible items, each is taken once.
        expected: float64 ``[N]``, expected copies of each item in a step.

    Raises:
        ConfigError: if the full softmax is configured for more items than ``FULL_SOFTMAX_ITEMS``.
    """

    def __init__(self, catalogue: Catalogue, config: CandidateConfig) -> None:
        self._eligible, self._full = catalogue.eligible, config.loss.over_all_items
        self.n = min(config.negatives.shared, len(self._eligible))
        if self._full:
            if len(self._eligible) > FULL_SOFTMAX_ITEMS:
                raise ConfigError(
                    f"candidate.loss.kind = 'full_softmax' with {len(self._eligible):,} items: allowed are up to "
                    f"{FULL_SOFTMAX_ITEMS:,}; take 'softmax', which samples them"
                )
            self.n = len(self._eligible)
        self._everything = self.n == len(self._eligible)
        self._cumulative_M: np.ndarray | None = None
        self.expected = np.zeros(len(catalogue))
        if not self.n:
            return
        self.expected[self._eligible] = self.n / len(self._eligible)
        if config.negatives.sampling == "popularity" and not self._everything:
            weight_M = (1.0 + catalogue.frequency[self._eligible]) ** config.negatives.popularity_power
            self.expected[self._eligible] = self.n * weight_M / weight_M.sum()
            self._cumulative_M = np.cumsum(weight_M) / weight_M.sum()

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """Return int64 ``[n]`` items."""
        if self._full:
            return self._eligible
        if self._cumulative_M is None:
            chosen: np.ndarray = rng.choice(self._eligible, self.n, replace=False)
            return chosen
        places = np.searchsorted(self._cumulative_M, rng.random(self.n), side="right")
        drawn: np.ndarray = self._eligible[np.minimum(places, len(self._eligible) - 1)]
        return drawn

    def place(self, items: np.ndarray) -> np.ndarray:
        """Return the int64 places of eligible items among the candidates of the full softmax."""
        places: np.ndarray = np.searchsorted(self._eligible, items)
        return places
