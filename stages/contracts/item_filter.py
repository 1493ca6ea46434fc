"""Which items a request allows: categories, age, the item policy.

A filter becomes a mask over the catalogue before anything is searched, so that retrieval, the popular list and the
filling of short answers use the same rule.

Shapes: N items.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from stages.contracts.config import Config
from stages.contracts.errors import ConfigError
from stages.contracts.snapshot import ItemTable
from stages.contracts.tables import DAY_MS


class ItemFilter(Config):
    """Conditions on an item; all that are given must hold.

    Attributes:
        categories: at least one of these; empty for any.
        max_age_days: created at most so many days before the request; None for any age.
        eligible_for: a period (PART_RANKER, PART_EVALUATION or SERVING) whose item policy the item must pass; the
            policy judges states, support and recency. None for any.
    """

    categories: tuple[str, ...] = ()
    max_age_days: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    eligible_for: Annotated[int, Field(ge=1, le=3)] | None = None

    def __bool__(self) -> bool:
        """Return whether it has any condition."""
        return self != ItemFilter()


class FilterIndex:
    """Turns filters into masks over one catalogue; may be shared by threads.

    Args:
        items: the catalogue, N.
        categories: names by code.
    """

    def __init__(self, items: ItemTable, categories: tuple[str, ...]) -> None:
        self._items = items
        self._codes = {name: code for code, name in enumerate(categories)}
        owners = np.repeat(np.arange(len(items)), np.diff(items.category_offsets))
        order = np.argsort(items.category_codes, kind="stable")
        self._owners = owners[order]
        self._starts = np.searchsorted(items.category_codes[order], np.arange(len(categories) + 1))

    @property
    def categories(self) -> tuple[str, ...]:
        """The names that a filter may use."""
        return tuple(self._codes)

    def mask(self, wanted: ItemFilter, time_ms: int) -> np.ndarray:
        """Return bool ``[N]``, the items that pass at ``time_ms``.

        Raises:
            ConfigError: naming the categories that do not exist.
        """
        unknown = [name for name in wanted.categories if name not in self._codes]
        if unknown:
            raise ConfigError(f"categories = {unknown}: unknown, allowed are {list(self._codes)}")
        mask = np.full(len(self._items), not wanted.categories)
        for name in wanted.categories:
            code = self._codes[name]
            mask[self._owners[self._starts[code] : self._starts[code + 1]]] = True
        if wanted.max_age_days is not None:
            mask &= self._items.created_at_ms >= time_ms - wanted.max_age_days * DAY_MS
        if wanted.eligible_for is not None:
            mask &= ~self._items.withheld(wanted.eligible_for)
        return mask
