"""Models of the protocols that are judged on one split: popularity, item-KNN, EASE, implicit ALS, a directed ridge.

A model is a frozen set of settings. ``fit`` gets the training rows of a split and returns a scorer, which scores the
whole catalogue for a block of users. The judge removes the items that a user has seen, and ranks. To add a model, add
its class to ``MODELS``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field
from scipy import sparse

from benchmarks.retrieval.data import Interactions
from benchmarks.retrieval.solved import solve_ease
from benchmarks.retrieval.static.judge import Scorer
from stages.candidate.linear.config import ImplicitAlsSettings, LimitedEase, LimitedItemKnn, LimitedRidge
from stages.candidate.linear.directed_ridge import DirectedRidge, ridge_method
from stages.candidate.linear.item_knn import knn_gigabytes, nearest_items
from stages.candidate.linear.models import ImplicitAls, als_gigabytes, ease_method
from stages.contracts.config import Config
from stages.contracts.errors import DataError

_DAY_SECONDS = 86_400
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


class Popularity(Model):
    """How many users had an item in training."""

    def fit(self, train: Interactions, seed: int) -> Scorer:
        """Count."""
        counts = np.bincount(train.item, minlength=train.items).astype(np.float32)
        return lambda users: np.tile(counts, (len(users), 1))

    def gigabytes(self, train: Interactions) -> float:
        """A count of each item."""
        return 12 * train.items / 1e9


class RecentPopularity(Model):
    """How many users had an item in the last days of training.

    Attributes:
        days: before the latest training row.
    """

    days: Positive = 30.0

    def check(self, train: Interactions) -> None:
        """Check that the rows have times.

        Raises:
            DataError: if they have none, or only an order.
        """
        if train.time is None or not train.in_seconds:
            raise DataError("these data have no times in seconds: what was popular lately is not known")

    def fit(self, train: Interactions, seed: int) -> Scorer:
        """Count."""
        self.check(train)
        assert train.time is not None, "checked"
        recent = train.time > train.time.max() - self.days * _DAY_SECONDS
        return Popularity().fit(train.take(np.flatnonzero(recent)), seed)

    def gigabytes(self, train: Interactions) -> float:
        """A count of each item, and the recent rows."""
        return (12 * train.items + 32 * len(train)) / 1e9


class ItemKnn(Model, LimitedItemKnn):
    """Cosines of items, each with its nearest ones only.

    Attributes:
        neighbours: neighbours of an item that are kept.
    """

    neighbours: Count = 100

    def fit(self, train: Interactions, seed: int) -> Scorer:
        """Keep the nearest neighbours of each item; a score sums their weights over the history."""
        history = train.matrix
        found = nearest_items(history, self, self.neighbours)
        nearest = sparse.csr_matrix((found.scores, found.ids, found.offsets), shape=(train.items, train.items))
        return lambda users: (history[users] @ nearest).toarray()

    def gigabytes(self, train: Interactions) -> float:
        """The touches, a block of cosines, and the neighbours."""
        return knn_gigabytes(train.users, train.items, len(train), self.neighbours)


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


class DirectedRidgeModel(Model, LimitedRidge):
    """Predicts the next item from a history by ridge regression."""

    def fit(self, train: Interactions, seed: int) -> Scorer:
        """Solve in closed form."""
        order = np.lexsort((-train.rank_from_latest, train.user))
        ridge = DirectedRidge.fit(train.user[order], train.item[order], train.items, self, self.memory_gb)
        history = train.power_matrix(self.power, self.latest)
        return lambda users: ridge.score(history[users])

    def check(self, train: Interactions) -> None:
        """Check that the rows have an order, and that some user has two."""
        if not train.rank_from_latest.any():
            raise DataError("directed ridge: no user has two events; allowed are histories and what followed them")

    def gigabytes(self, train: Interactions) -> float:
        """What the method takes: two item-item matrices, or the nearest items of each; and the histories."""
        longest = int(np.bincount(train.user).max(initial=0))
        return ridge_method(self, train.users, train.items, len(train), longest, self.memory_gb).gigabytes


MODELS: dict[str, type[Model]] = {
    "popularity": Popularity,
    "popularity_recent": RecentPopularity,
    "item_knn": ItemKnn,
    "ials": Ials,
    "ease": EaseModel,
    "ease_recency": RecencyEase,
    "directed_ridge": DirectedRidgeModel,
}
