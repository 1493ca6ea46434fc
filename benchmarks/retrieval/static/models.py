"""Models of the protocols that are judged on one split: popularity, item-KNN, EASE, implicit ALS.

A model is a frozen set of settings. ``fit`` gets the training rows of a split and returns a scorer, which scores the
whole catalogue for a block of users. The judge removes the items that a user has seen, and ranks. To add a model, add
its class to ``MODELS``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field
from scipy import sparse

from benchmarks.retrieval.data import Interactions
from benchmarks.retrieval.solved import solve_ease
from benchmarks.retrieval.static.judge import Scorer, top_k_of_rows
from stages.candidate.linear.config import ImplicitAlsSettings, LimitedEase
from stages.candidate.linear.models import ImplicitAls, als_gigabytes, ease_method
from stages.contracts.config import Config

_COLUMNS = 1024
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class Model(Config, ABC):
    """Settings of a model, and how it is fitted."""

    deterministic: ClassVar[bool] = True
    """Whether ``fit`` gives the same with every seed; then one run on a fixed split is enough."""

    @abstractmethod
    def fit(self, train: Interactions, seed: int) -> Scorer:
        """Learn from ``train`` and return a scorer of its users."""

    @abstractmethod
    def gigabytes(self, train: Interactions) -> float:
        """Return the 10^9 bytes that ``fit`` takes at most, beside ``train`` itself."""

    def check(self, train: Interactions) -> None:
        """Raise those errors of ``fit`` that the rows show before anything is trained.

        Raises:
            SluiceError: if the rows lack what the model reads.
        """

    def members(self) -> Mapping[str, Model]:
        """Return the models that this one fits."""
        return {}


class Popularity(Model):
    """How many users had an item in training."""

    def fit(self, train: Interactions, seed: int) -> Scorer:
        """Count."""
        counts = np.bincount(train.item, minlength=train.items).astype(np.float32)
        return lambda users: np.tile(counts, (len(users), 1))

    def gigabytes(self, train: Interactions) -> float:
        """A count of each item."""
        return 12 * train.items / 1e9


class ItemKnn(Model):
    """Cosines of items, each with its nearest ones only.

    Attributes:
        neighbours: neighbours of an item that are kept.
        shrink: added to the product of the norms, so that rare items are not near by chance.
    """

    neighbours: Count = 100
    shrink: Annotated[float, Field(ge=0)] = 0.0

    def fit(self, train: Interactions, seed: int) -> Scorer:
        """Keep the nearest neighbours of each item; a score sums their cosines over the history."""
        history = train.matrix
        nearest = cosine_neighbours(history, self.neighbours, self.shrink)
        return lambda users: (history[users] @ nearest).toarray()

    def gigabytes(self, train: Interactions) -> float:
        """Some matrices of a block of columns, and the neighbours that are kept while they are put together."""
        kept = 32 * min(self.neighbours, train.items) * train.items
        return (24 * min(_COLUMNS, train.items) * train.items + kept + 32 * len(train)) / 1e9


class EaseModel(Model, LimitedEase):
    """EASE on the whole history."""

    regularisation: Positive = 500.0

    def gigabytes(self, train: Interactions) -> float:
        """What the method takes: two item-item matrices, or the nearest items of each; and the histories."""
        return ease_method(self, train.users, train.items, len(train), self.memory_gb).gigabytes

    def fit(self, train: Interactions, seed: int) -> Scorer:
        """Solve in closed form."""
        ease = solve_ease(train.matrix, self, self.memory_gb)
        return lambda users: ease.score(train.matrix[users])


class RecencyEase(EaseModel):
    """EASE with the same weights, applied to a history in which an item weighs exp(-rank / decay).

    Attributes:
        decay: in places before the latest item.
    """

    decay: Positive = 5.0

    def check(self, train: Interactions) -> None:
        """Check that the rows have an order."""
        _ = train.rank_from_latest

    def fit(self, train: Interactions, seed: int) -> Scorer:
        """Solve in closed form from unweighted histories; histories are weighted for scoring only."""
        history = train.recency_matrix(self.decay)
        ease = solve_ease(train.matrix, self, self.memory_gb)
        return lambda users: ease.score(history[users])


class Ials(Model, ImplicitAlsSettings):
    """Implicit ALS; histories are folded in."""

    deterministic: ClassVar[bool] = False

    def fit(self, train: Interactions, seed: int) -> Scorer:
        """Alternate least squares from factors drawn with ``seed``."""
        als = ImplicitAls.fit(train.matrix, self, seed)
        return lambda users: als.score(train.matrix[users])

    def gigabytes(self, train: Interactions) -> float:
        """Factors, and the matrix by users and by items."""
        return als_gigabytes(train.users, train.items, len(train), self.factors)


MODELS: dict[str, type[Model]] = {
    "popularity": Popularity,
    "item_knn": ItemKnn,
    "ials": Ials,
    "ease": EaseModel,
    "ease_recency": RecencyEase,
}


def cosine_neighbours(history_UN: sparse.csr_matrix, neighbours: int, shrink: float) -> sparse.csr_matrix:
    """Return the cosines of each item with its nearest other items, float32 ``[N, N]``.

    Column j holds at most ``neighbours`` values, the largest; of equal ones the lower item is kept.
    """
    items = history_UN.shape[1]
    by_item = history_UN.tocsc()
    norms_N = np.sqrt(np.asarray(history_UN.multiply(history_UN).sum(axis=0)).ravel())
    parts = []
    for start in range(0, items, _COLUMNS):
        columns = np.arange(start, min(start + _COLUMNS, items))
        cosine = (by_item[:, columns].T @ by_item).toarray()
        cosine /= np.maximum(norms_N[columns, None] * norms_N + shrink, 1e-12)
        cosine[columns - start, columns] = 0
        nearest = top_k_of_rows(np.where(cosine > 0, cosine, -np.inf), neighbours)
        row, place = np.nonzero(nearest >= 0)
        item = nearest[row, place]
        parts.append(sparse.csc_matrix((cosine[row, item], (item, row)), shape=(items, len(columns))))
    return sparse.hstack(parts, format="csr", dtype=np.float32)
