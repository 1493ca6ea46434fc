"""A candidate generator that only the tests have: the newest items. With its row in the table this is all of it."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from stages.candidate.generators.generator import Arrays, CandidateGenerator, CandidateRequest, FitData, Pool
from stages.candidate.generators.settings import GeneratorSettings
from stages.contracts.config import Config
from stages.contracts.errors import ReleaseError
from stages.contracts.snapshot import ItemTable
from stages.contracts.tables import DAY_MS
from stages.features.state import FunnelState


class NewestSettings(Config):
    """The section ``sources.newest``.

    Attributes:
        half_life_days: an item's score halves in so many days.
    """

    half_life_days: Annotated[float, Field(gt=0)] = 7.0


class Newest(CandidateGenerator):
    """Items by their age at the request."""

    name = "newest"
    own_settings = NewestSettings
    arrays = {"born_ms": np.dtype(np.int64)}

    def __init__(self, half_life_days: float, born_ms: np.ndarray) -> None:
        self._half_life_ms, self._born_ms = half_life_days * DAY_MS, born_ms

    @classmethod
    def fit(cls, settings: GeneratorSettings, data: FitData) -> Arrays:
        """Keep when each item was made."""
        return {"born_ms": data.items.created_at_ms}

    @classmethod
    def load(cls, settings: GeneratorSettings, arrays: Arrays, n_items: int) -> Newest:
        """Return the generator."""
        if arrays["born_ms"].shape != (n_items,):
            raise ReleaseError(f"newest_born_ms.npy: {list(arrays['born_ms'].shape)}, expected {n_items} items")
        return cls(settings.section(cls.name, NewestSettings).half_life_days, arrays["born_ms"])

    @classmethod
    def refresh(cls, settings: GeneratorSettings, arrays: Arrays, items: ItemTable) -> Arrays:
        """Add the new items."""
        return {"born_ms": items.created_at_ms}

    def candidates(self, request: CandidateRequest, state: FunnelState) -> Pool:
        """Return every item that has been made by now."""
        born = np.flatnonzero(self._born_ms <= request.time_ms)
        return born, 2.0 ** (-(request.time_ms - self._born_ms[born]) / self._half_life_ms)
