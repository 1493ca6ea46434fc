"""The two-tower as a model of the static protocols, and its blend with a closed form.

The blend is a candidate stage with one more candidate generator, the closed form. ``--models blend`` prints the rows of
the two-tower and of the blend; the tower is fitted once for both.

Legend: U users, N items, B users of a block, D dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from benchmarks.retrieval.data import Interactions, Split
from benchmarks.retrieval.product_towers import latest_queries, shuffled, towers_gigabytes, train_towers
from benchmarks.retrieval.solved import solve_ease, solve_ridge
from benchmarks.retrieval.static.judge import CELLS, METRICS, Scorer, judge
from benchmarks.retrieval.static.models import Count, Model, Positive
from benchmarks.retrieval.static.protocols import deal_by_user, leave_last_out
from stages.candidate.config import CandidateConfig
from stages.candidate.linear.config import LimitedEase, LimitedRidge
from stages.candidate.linear.directed_ridge import ridge_method
from stages.candidate.linear.models import ease_method
from stages.contracts.errors import DataError
from stages.features.config import FeatureConfig

WEIGHTS = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0, 1.5, 2.0, 3.0)
"""Weights of the closed form that are tried where none is given."""
_HELD_SEED = 2_000_003
"""Added to a seed for the blend's own validation."""
_KEPT_BYTES = 500_000_000
NotNegative = Annotated[float, Field(ge=0)]


class TwoTower(Model):
    """The product's two-tower: ``stages.candidate`` trained on the rows, answering with the exported files.

    Attributes:
        candidate: model and training; ``training.seed`` is set to the seed of the run.
        features: ``history_length`` is L.
        orders: 0 keeps the rows in time order, or in file order without times. n trains on n random orders of each
            user's rows, for protocols that hold out items at random; ``training.histories: others`` needs no copies.
    """

    deterministic: ClassVar[bool] = False
    candidate: CandidateConfig = CandidateConfig()
    features: FeatureConfig = FeatureConfig()
    orders: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _rows_are_held_out_of_all_orders(self) -> TwoTower:
        if self.orders and self.candidate.training.early_stopping is not None:
            raise ValueError(
                f"orders = {self.orders} with candidate.training.early_stopping: what is held out of one order is "
                "trained on in another; take orders = 0 and candidate.training.histories = 'others'"
            )
        return self

    def fit(self, train: Interactions, seed: int) -> Scorer:
        """Train, and embed every user's latest history; a user without rows gets the popular items."""
        rows = shuffled(train, self.orders, seed) if self.orders else train
        trained = train_towers(rows, self.candidate.changed(training={"seed": seed}), self.features)
        query_UD = latest_queries(trained, train, self.features.history_length)
        popular_N = np.bincount(train.item, minlength=train.items).astype(np.float32)
        known_U = np.bincount(train.user, minlength=train.users) > 0

        def score(users: np.ndarray) -> np.ndarray:
            scores_BN = trained.scores(query_UD[users])
            scores_BN[~known_U[users]] = popular_N
            return scores_BN

        return score

    def gigabytes(self, train: Interactions) -> float:
        """The training, its processes, and the vectors of all users."""
        rows = len(train) * max(1, self.orders)
        training = towers_gigabytes(rows, train.items, self.candidate, self.features)
        return max(training, self.kept_gigabytes(train))

    def kept_gigabytes(self, train: Interactions) -> float:
        """Return roughly the memory kept after training: this process with torch, the rows, and all user vectors."""
        queries = 2 * 4 * train.users * self.candidate.model.vectors_a_user * self.candidate.model.dimension
        return (_KEPT_BYTES + 200 * len(train) + queries) / 1e9


class DirectedRidgeModel(Model, LimitedRidge):
    """Predicts the next item from a history by ridge regression."""

    def fit(self, train: Interactions, seed: int) -> Scorer:
        """Solve in closed form."""
        order = np.lexsort((-train.rank_from_latest, train.user))
        ridge = solve_ridge(train.user[order], train.item[order], train.items, self, self.memory_gb)
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


class BlendEase(Model, LimitedEase):
    """EASE as a member of a blend.

    Attributes:
        decay: decay of the history's weights, as in ``ease_recency``; None weighs all items alike.
    """

    regularisation: Positive = 500.0
    decay: Positive | None = None

    def check(self, train: Interactions) -> None:
        """Check that the rows have an order if there is a decay."""
        if self.decay is not None:
            _ = train.rank_from_latest

    def gigabytes(self, train: Interactions) -> float:
        """What the method takes: two item-item matrices, or the nearest items of each; and the histories."""
        return ease_method(self, train.users, train.items, len(train), self.memory_gb).gigabytes

    def fit(self, train: Interactions, seed: int) -> Scorer:
        """Solve in closed form."""
        history = train.matrix if self.decay is None else train.recency_matrix(self.decay)
        ease = solve_ease(train.matrix, self, self.memory_gb)
        return lambda users: ease.score(history[users])


class Blend(Model):
    """The two-tower's scores plus a weight times a closed form's scores.

    Both are standardised over the catalogue for each user before they are added.

    Attributes:
        two_tower: settings of the model of that name.
        closed_form: which closed form is added.
        ease, ridge: settings of each closed form.
        weight: weight of the closed form. None chooses it among ``WEIGHTS`` on rows cut from the training rows; both
            models are fitted once more for that.
        hold_out: which rows are cut: ``last`` is each user's latest row, ``share`` a random fifth of a user's rows.
        metric, k: the metric that chooses the weight.
    """

    deterministic: ClassVar[bool] = False
    parts: ClassVar[tuple[str, ...]] = ("two_tower",)
    two_tower: TwoTower = TwoTower()
    closed_form: Literal["ease", "ridge"] = "ease"
    ease: BlendEase = BlendEase()
    ridge: DirectedRidgeModel = DirectedRidgeModel()
    weight: NotNegative | None = None
    hold_out: Literal["last", "share"] = "last"
    metric: str = "ndcg"
    k: Count = 10

    @model_validator(mode="after")
    def _known_metric(self) -> Blend:
        if self.metric not in METRICS:
            raise ValueError(f"metric = {self.metric!r}: allowed are {', '.join(METRICS)}")
        return self

    def fit(self, train: Interactions, seed: int) -> Scorer:
        """Fit both models; if no weight is given, choose one first."""
        weight = self._chosen(train, seed) if self.weight is None else self.weight
        tower, closed = self._parts(train, seed)
        return lambda users: blended(tower(users), closed(users), weight)

    def members(self) -> Mapping[str, Model]:
        """Return the tower and the closed form that is added."""
        return {"two_tower": self.two_tower, self.closed_form: self._closed}

    def check(self, train: Interactions) -> None:
        """Check that rows can be held out if the weight is to be chosen."""
        if self.weight is None and not len(held_out(train, self.hold_out, _HELD_SEED).test):
            raise DataError("no row can be held out to choose the weight on; allowed are users of several items")

    def gigabytes(self, train: Interactions) -> float:
        """The larger of training and of the closed form beside the kept tower, plus scores while standardised."""
        scores = 24 * min(CELLS, train.users * train.items) / 1e9
        second = self.two_tower.kept_gigabytes(train) + self._closed.gigabytes(train)
        return scores + max(self.two_tower.gigabytes(train), second)

    @property
    def _closed(self) -> Model:
        return self.ease if self.closed_form == "ease" else self.ridge

    def _parts(self, train: Interactions, seed: int) -> tuple[Scorer, Scorer]:
        return self.two_tower.fit(train, seed), self._closed.fit(train, seed)

    def _chosen(self, train: Interactions, seed: int) -> float:
        """Return the weight that is best on rows cut from the training rows; of equal ones the smallest."""
        split = held_out(train, self.hold_out, seed + _HELD_SEED)
        tower, closed = self._parts(split.train, seed)

        def worth(weight: float) -> float:
            found = judge(lambda users: blended(tower(users), closed(users), weight), split, self.k)
            return float(found[self.metric].mean())

        return max(WEIGHTS, key=worth)


def held_out(train: Interactions, kind: str, seed: int) -> Split:
    """Cut validation rows from training rows: each user's latest row, or a random fifth of a user's rows."""
    return leave_last_out(train, False) if kind == "last" else deal_by_user(train, seed, 0.2)


def blended(tower_BN: np.ndarray, closed_BN: np.ndarray, weight: float) -> np.ndarray:
    """Return the sum of standardised scores, float32 ``[B, N]``."""
    total: np.ndarray = standardised(tower_BN) + np.float32(weight) * standardised(closed_BN)
    return total


def standardised(scores_BN: np.ndarray) -> np.ndarray:
    """Return each row with mean 0 and standard deviation 1; a constant row becomes zeros."""
    scores_BN = scores_BN.astype(np.float32)
    spread_B1 = scores_BN.std(axis=1, keepdims=True)
    found: np.ndarray = (scores_BN - scores_BN.mean(axis=1, keepdims=True)) / np.where(spread_B1 > 0, spread_B1, 1)
    return found
