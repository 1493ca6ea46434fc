"""What ``auto`` chooses for a protocol's rows: the product's candidate stage with no setting of the protocol's own."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from benchmarks.retrieval.data import Interactions
from benchmarks.retrieval.product_steps import CandidateStage
from benchmarks.retrieval.static.judge import Scorer
from benchmarks.retrieval.static.models import Model
from benchmarks.retrieval.static.stage import LearnedMixture, Quotas, TwoTower
from stages.auto.counts import Counts
from stages.auto.rules import choose
from stages.auto.step import with_choices
from stages.contracts.config import parse_config


class AutoTower(Model):
    """The two-tower alone, as ``auto`` sets it.

    Attributes:
        ordered: whether the order of a user's rows says what came first.
        candidate_k: items of an answer.
        given: what the user sets himself, by section of a recipe: ``candidate``, ``features``, ``sources``.
    """

    deterministic: ClassVar[bool] = False
    ordered: bool = True
    candidate_k: int = Field(default=200, ge=1)
    given: dict[str, Any] = {}

    def fit(self, train: Interactions, seed: int) -> Scorer:
        """Choose from the counts of the training rows, train, and answer all users."""
        return self.chosen(train).fit(train, seed)

    def gigabytes(self, train: Interactions) -> float:
        """What the chosen model takes."""
        return self.chosen(train).gigabytes(train)

    def check(self, train: Interactions) -> None:
        """Check what the chosen model checks."""
        self.chosen(train).check(train)

    def chosen(self, train: Interactions) -> Model:
        """Return the model that is chosen for the rows."""
        return self._tower(self._stage(train))

    def _tower(self, stage: CandidateStage) -> TwoTower:
        return TwoTower(**{name: getattr(stage, name) for name in TwoTower.model_fields})

    def _stage(self, train: Interactions) -> CandidateStage:
        encoder = self.given.get("candidate", {}).get("model", {}).get("encoder")
        names = self.given.get("sources", {}).get("names")
        choices = choose(counts_of_rows(train, self.ordered), encoder, None if names is None else tuple(names))
        told = {choice.key: {"value": choice.value, "reason": choice.reason} for choice in choices}
        values = with_choices(self.given, told)
        values.pop("auto")
        return parse_config(CandidateStage, {**values, "candidate_k": self.candidate_k}, "auto")


class Auto(AutoTower):
    """The whole candidate stage, as ``auto`` sets it: the two-tower and other generators, mixed."""

    def chosen(self, train: Interactions) -> Model:
        """Return the mixture that is chosen for the rows."""
        stage = self._stage(train)
        kind = LearnedMixture if stage.sources.mixture.kind == "learned" else Quotas
        return kind(two_tower=self._tower(stage), sources=stage.sources, hold_out="last" if self.ordered else "share")


def counts_of_rows(train: Interactions, ordered: bool) -> Counts:
    """Return what ``auto`` counts; every user with two rows or more is asked once by what is held out to learn from."""
    rows_U = np.bincount(train.user, minlength=train.users)
    return Counts(
        users=int((rows_U > 0).sum()),
        items=len(np.unique(train.item)),
        touches=len(train),
        ordered=ordered,
        timed=False,
        requests=int((rows_U > 1).sum()),
    )
