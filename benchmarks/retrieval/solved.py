"""EASE for several models of one command: with the same rows and settings it is solved once.

``ease`` and ``ease_recency`` need the same inverse where they have the same lambda. What is solved is kept by its
settings and its rows as long as a command runs, 10^9 bytes of it at most.

Legend: U users, N items.
"""

from __future__ import annotations

import hashlib
import sys
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np
from scipy import sparse

from stages.candidate.linear.config import EaseSettings
from stages.candidate.linear.models import Ease

KEPT_BYTES = 1_000_000_000
"""Most bytes of weights that are kept."""


class Kept:
    """Models that were solved, the least recently used one first.

    Args:
        most_bytes: of their weights together.
    """

    def __init__(self, most_bytes: int = KEPT_BYTES) -> None:
        self._most_bytes = most_bytes
        self._models: OrderedDict[Hashable, Ease] = OrderedDict()

    @property
    def bytes(self) -> int:
        """The bytes of all weights that are kept."""
        return sum(weight_bytes(model) for model in self._models.values())

    def get(self, key: Hashable, solve: Callable[[], Ease]) -> Ease:
        """Return the model of a key; one that is not kept is solved, and kept if it is not too large."""
        if key in self._models:
            self._models.move_to_end(key)
            return self._models[key]
        model = solve()
        self._models[key] = model
        self._drop_until(self._most_bytes)
        return model

    def make_room(self, needed_gb: float, free_gb: float | None) -> None:
        """Drop models until so much fits beside the others.

        Args:
            needed_gb: 10^9 bytes that come next.
            free_gb: what was free when nothing was kept; None = not known.
        """
        if free_gb is not None:
            self._drop_until(1e9 * (free_gb - needed_gb))

    def _drop_until(self, most_bytes: float) -> None:
        while self._models and self.bytes > most_bytes:
            self._models.popitem(last=False)


_KEPT: ContextVar[Kept | None] = ContextVar("kept", default=None)


@contextmanager
def solved_once() -> Iterator[Kept]:
    """Keep what is solved within; outside of it everything is solved anew."""
    kept = Kept()
    token = _KEPT.set(kept)
    try:
        yield kept
    finally:
        _KEPT.reset(token)


def make_room(needed_gb: float, free_gb: float | None) -> None:
    """See ``Kept.make_room``."""
    kept = _KEPT.get()
    if kept is not None:
        kept.make_room(needed_gb, free_gb)


def solve_ease(history_UN: sparse.csr_matrix, settings: EaseSettings, memory_gb: float) -> Ease:
    """Return ``Ease.fit``, or what it returned before."""
    arrays = history_UN.indptr, history_UN.indices, history_UN.data
    own = (getattr(settings, name) for name in EaseSettings.model_fields)  # a model has others as well
    key = (*own, memory_gb, history_UN.shape, _digest(arrays))
    return _get(key, lambda: _said(Ease.fit(history_UN, settings, memory_gb)))


def weight_bytes(model: Ease) -> int:
    """Return the bytes of a model's weights."""
    weights = model.weights
    if isinstance(weights, np.ndarray):
        return int(weights.nbytes)
    return int(weights.data.nbytes + weights.indices.nbytes + weights.indptr.nbytes)


def _get(key: Hashable, solve: Callable[[], Ease]) -> Ease:
    kept = _KEPT.get()
    return solve() if kept is None else kept.get(key, solve)


def _said(model: Ease) -> Ease:
    """Say on stderr how it was solved."""
    print(f"EASE: {model.method}", file=sys.stderr)
    return model


def _digest(arrays: tuple[np.ndarray, ...]) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for array in arrays:
        digest.update(str(array.dtype).encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.digest()
