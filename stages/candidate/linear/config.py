"""Settings of EASE, implicit ALS and item-KNN, wherever they are fitted, and of the step ``rank_baselines``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from stages.contracts.config import Config
from stages.features.config import FeatureConfig

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class ClosedForm(Config):
    """How a closed form over items is solved.

    Attributes:
        method: ``dense`` solves for all items together, with matrices of items by items; ``sparse`` solves for each
            item on its nearest ones alone, see ``nearest_regression``; ``auto`` takes the dense one where it fits
            ``memory_gb``.
        neighbours: nearest items of an item that the sparse one is solved on.
    """

    method: Literal["auto", "dense", "sparse"] = "auto"
    neighbours: int = Field(default=200, ge=1)


class EaseSettings(ClosedForm):
    """What ``Ease.fit`` minimises.

    Attributes:
        regularisation: lambda of the paper; some hundreds for a million touches.
    """

    regularisation: Positive = 200.0


class RidgeSettings(ClosedForm):
    """What ``DirectedRidge.fit`` minimises.

    Attributes:
        regularisation: lambda.
        power: the item k places back weighs k ** -power.
        latest: how many of the newest items of a history count.
    """

    regularisation: Positive = 300.0
    power: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.7
    latest: int = Field(default=200, ge=1)


class MemoryLimit(Config):
    """How much memory a fit may take.

    Attributes:
        memory_gb: in 10^9 bytes. A fit that needs more is refused before it starts.
    """

    memory_gb: Positive = 4.0


class LimitedEase(EaseSettings, MemoryLimit):
    """EASE within a limit of its own."""


class LimitedRidge(RidgeSettings, MemoryLimit):
    """The directed ridge within a limit of its own."""


class ImplicitAlsSettings(Config):
    """What ``ImplicitAls.fit`` minimises.

    Attributes:
        factors: D, the width of the vectors.
        confidence: weight of a touch.
        unobserved_weight: alpha0 of the paper, the weight with which every cell of the user-item matrix is pulled
            towards 0. None: such that all cells together weigh eight times as much as the touches.
        regularisation: lambda of the paper.
        regularisation_power: nu of the paper. The penalty on the factors of a user is ``regularisation`` times (the
            weights of all of the user's cells)^nu, and so is that of an item; 0 penalises all alike. With 1 the scale
            of the weights does not matter.
        iterations: pairs of half-steps, users first.
    """

    factors: int = Field(default=64, ge=1)
    confidence: Positive = 1.0
    unobserved_weight: Positive | None = None
    regularisation: Positive = 0.3
    regularisation_power: NotNegative = 0.5
    iterations: int = Field(default=15, ge=1)


class SeededAls(ImplicitAlsSettings):
    """Implicit ALS with the seed of its first factors.

    Attributes:
        seed: of the first factors.
    """

    seed: int = Field(default=42, ge=0)


class LimitedAls(SeededAls, MemoryLimit):
    """Implicit ALS within a limit of its own."""


class ItemKnnSettings(Config):
    """How ``nearest_items`` compares items.

    Attributes:
        shrink: added to the product of the norms, so that rare items are not near by chance.
        alpha: 0.5 for the cosine. Above it the norm of the history's item counts more, up to 1, the share of its users
            who have the other item; below it the norm of the neighbour.
        weighting: whether users with long histories weigh less, see ``weighted_histories``.
    """

    shrink: NotNegative = 0.0
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.5
    weighting: Literal["none", "tf_idf", "bm25"] = "none"


class LimitedItemKnn(ItemKnnSettings, MemoryLimit):
    """Nearest items within a limit of its own: what is kept grows with items times neighbours."""


class BaselineEase(EaseSettings):
    """EASE as a row of the stage ledger.

    Attributes:
        decay: the item r places before a history's newest one weighs exp(-r / decay). With None all items weigh the
            same, as published.
    """

    decay: Positive | None = None


class BaselineAls(SeededAls):
    """Implicit ALS as a row of the stage ledger."""

    factors: int = Field(default=32, ge=1)


class BaselinesConfig(MemoryLimit):
    """The linear baselines of the stage ledger.

    Attributes:
        rows: which baselines are rows of the ledger.
        memory_gb: in 10^9 bytes, for the fit of either. A baseline that needs more is left out, and the ledger says
            why.
        ease, ials: settings of each.
    """

    renamed: ClassVar[Mapping[str, str]] = {
        "ease": "rows",
        "ials": "rows",
        "ease_regularisation": "ease.regularisation",
        "ease_decay": "ease.decay",
        "ials_factors": "ials.factors",
        "ials_confidence": "ials.confidence",
        "ials_regularisation": "ials.regularisation",
        "ials_iterations": "ials.iterations",
        "seed": "ials.seed",
    }

    rows: tuple[Literal["ease", "ials"], ...] = ("ease", "ials")
    ease: BaselineEase = BaselineEase()
    ials: BaselineAls = BaselineAls()


class RankBaselinesConfig(Config):
    """Configuration of the step ``rank_baselines``.

    Attributes:
        baselines: what is fitted, and how.
        k: items of an answer.
        features: which signals are exposures.
    """

    baselines: BaselinesConfig = BaselinesConfig()
    k: int = Field(default=200, ge=1)
    features: FeatureConfig = FeatureConfig()
