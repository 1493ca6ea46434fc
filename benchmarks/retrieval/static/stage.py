"""The product's candidate stage as a model of the static protocols: the two-tower alone, or with other generators.

A user's training rows are his history, and all users ask at the same moment, a second after their latest row.
``--models quotas`` prints the rows of the two-tower and of the mixture; the tower is trained once for both.

Legend: U users, N items, B users of a block, k candidates.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from benchmarks.retrieval.data import Interactions, Split
from benchmarks.retrieval.product_steps import (
    SECOND_MS,
    CandidateStage,
    SnapshotRows,
    answers_of,
    events_of,
    requests_of,
    train_stage,
)
from benchmarks.retrieval.static.judge import Scorer
from benchmarks.retrieval.static.models import Model
from benchmarks.retrieval.static.protocols import deal_by_user, leave_last_out
from stages.candidate.config import CandidateConfig, IndexConfig
from stages.candidate.generators.config import SourcesConfig
from stages.candidate.generators.generator import FitSize
from stages.contracts.config import merged
from stages.contracts.errors import DataError
from stages.contracts.snapshot import TimeBorders
from stages.contracts.tables import PART_CANDIDATE, PART_EVALUATION, PART_RANKER, CandidateTable
from stages.features.config import FeatureConfig

_HELD_SEED = 2_000_003
"""Added to a seed for what a mixture is learned from."""


class TwoTower(Model):
    """The two-tower index alone.

    Attributes:
        candidate, features, index, candidate_k: as in ``CandidateStage``.
    """

    deterministic: ClassVar[bool] = False
    candidate: CandidateConfig = CandidateConfig()
    features: FeatureConfig = FeatureConfig()
    index: IndexConfig = IndexConfig()
    candidate_k: int = Field(default=200, ge=1)

    def stage(self, sources: SourcesConfig | None = None) -> CandidateStage:
        """Return the settings of the candidate stage, with other generators if ``sources`` names some."""
        own = {name: getattr(self, name) for name in TwoTower.model_fields}
        return CandidateStage(**own, sources=SourcesConfig() if sources is None else sources)

    def fit(self, train: Interactions, seed: int) -> Scorer:
        """Train, and answer all users; a user without rows gets the popular items."""
        return answer_all(train, self.stage().seeded(seed))

    def gigabytes(self, train: Interactions) -> float:
        """The training, its processes, and the answers of all users."""
        return self.stage().gigabytes(fit_size(train), train.users)


class Quotas(Model):
    """The two-tower and other generators, mixed by quotas.

    Where quotas are learned, or a mixture is, rows are held out of the training rows in the manner of the protocol. The
    generators are fitted to the others, and the held-out rows teach. Then the generators are fitted to all training
    rows, and what was learned is taken over.

    Attributes:
        two_tower: settings of the model of that name.
        sources: a recipe's section: generators, their settings, and what mixes their lists.
        hold_out: which rows teach: ``last`` is each user's latest row, ``share`` a random fifth of a user's rows.
    """

    deterministic: ClassVar[bool] = False
    parts: ClassVar[tuple[str, ...]] = ("two_tower",)
    kind: ClassVar[str] = "quotas"
    two_tower: TwoTower = TwoTower()
    sources: SourcesConfig = Field(default_factory=SourcesConfig)
    hold_out: Literal["last", "share"] = "last"

    @model_validator(mode="before")
    @classmethod
    def _mixed_by_its_kind(cls, values: Any) -> Any:
        return with_kind(cls.kind, values)

    def fit(self, train: Interactions, seed: int) -> Scorer:
        """Learn what is to be learned, train, and answer all users."""
        stage = self.two_tower.stage(self.sources).seeded(seed)
        if stage.sources.learns:
            cut = held_out(train, self.hold_out, seed + _HELD_SEED)
            earlier = train_stage(rows_to_learn_from(cut, seed), stage)["sources"]
            taken = stage.sources.changed(learned_from=str(earlier.directory))
            stage = stage.model_copy(update={"sources": taken})
        return answer_all(train, stage)

    def check(self, train: Interactions) -> None:
        """Check that the generators fit their memory, and that rows can be held out where something is learned."""
        self.two_tower.stage(self.sources).check(fit_size(train))
        if self.sources.learns and not len(held_out(train, self.hold_out, _HELD_SEED).test):
            raise DataError("no row can be held out to learn the mixture from; allowed are users of several items")

    def gigabytes(self, train: Interactions) -> float:
        """The training, its processes, the largest generator, and the answers of all users."""
        return self.two_tower.stage(self.sources).gigabytes(fit_size(train), train.users)


class LearnedMixture(Quotas):
    """The two-tower and other generators, mixed by a network, where that gains; else by quotas."""

    kind: ClassVar[str] = "learned"


def with_kind(kind: str, values: Any) -> Any:
    """Return the settings of a model with the given kind of mixture, and with one more generator if none is named."""
    if not isinstance(values, dict):
        return values
    sources = values.get("sources") or {}
    own = sources.model_dump() if isinstance(sources, SourcesConfig) else sources
    given = {"names": ("tower", "item_knn"), "quotas": "learned", **own}
    return {**values, "sources": merged(given, {"mixture": {"kind": kind}})}


def held_out(train: Interactions, kind: str, seed: int) -> Split:
    """Cut rows to learn from: each user's latest row, or a random fifth of a user's rows."""
    return leave_last_out(train, False) if kind == "last" else deal_by_user(train, seed, 0.2)


def in_time_order(rows: Interactions) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Return user, item and time in ms, int64 ``[R]``, in time order, and the moment at which everybody asks.

    Each user's latest row is a second before that moment. One unit of the protocol's time is a second, so that ages are
    positions where there are positions only; rows without a time follow one another in the file's order, as those of
    equal time do.
    """
    time = np.arange(len(rows)) if rows.time is None else np.asarray(rows.time, dtype=np.int64)
    latest = np.full(rows.users, np.iinfo(np.int64).min)
    np.maximum.at(latest, rows.user, time)
    before = time - latest[rows.user]
    moment_ms = int(1 - before.min(initial=0)) * SECOND_MS
    order = np.argsort(before, kind="stable")
    return rows.user[order], rows.item[order], before[order] * SECOND_MS + moment_ms - SECOND_MS, moment_ms


def rows_to_learn_from(cut: Split, seed: int) -> SnapshotRows:
    """Return a snapshot whose candidate period holds the training rows, and whose requests are of the ranker period.

    The requests are those of the users with held-out rows, in random order: the latest ones decide whether a mixture is
    used, and those would be the users with the highest numbers.
    """
    users = np.random.default_rng(seed).permutation(np.unique(cut.test.user))
    place = np.full(cut.train.users, -1)
    place[users] = np.arange(len(users))
    request = place[cut.test.user]
    order = np.lexsort((cut.test.item, request))
    return _rows(cut.train, users, PART_RANKER, request[order], cut.test.item[order])


def rows_to_answer(train: Interactions) -> SnapshotRows:
    """Return a snapshot whose candidate period holds all training rows, with a request of each user after them."""
    none = np.zeros(0, dtype=np.int64)
    return _rows(train, np.arange(train.users), PART_EVALUATION, none, none)


def _rows(
    train: Interactions, asking: np.ndarray, part: int, target_request: np.ndarray, target_item: np.ndarray
) -> SnapshotRows:
    user, item, time_ms, moment_ms = in_time_order(train)
    ends = (moment_ms, moment_ms + (part == PART_RANKER), moment_ms + 2)
    return SnapshotRows(
        events=events_of(user, item, time_ms, PART_CANDIDATE),
        requests=requests_of(asking, moment_ms, part),
        target_request=target_request,
        target_item=target_item,
        users=train.users,
        items=train.items,
        borders=TimeBorders(start_ms=0, candidate_end_ms=ends[0], ranker_end_ms=ends[1], as_of_ms=ends[2]),
        created_at_ms=np.zeros(train.items, dtype=np.int64),
    )


def answer_all(train: Interactions, stage: CandidateStage) -> Scorer:
    """Train the stage on all rows and answer each user; an answer's score is k for its first item, 1 for the k-th."""
    return scorer_of(answers_of(train_stage(rows_to_answer(train), stage), stage), train, stage.candidate_k)


def scorer_of(tables: Iterable[CandidateTable], train: Interactions, k: int) -> Scorer:
    """Return the scores of what was answered, -inf for everything else; request u is of user u."""
    kept = [(table.request_id.astype(np.int32), table.item_index.astype(np.int32), table.rank) for table in tables]
    empty = (np.zeros(0, dtype=np.int32),) * 3
    user, item, rank = (np.concatenate(columns) for columns in zip(empty, *kept, strict=True))
    starts = np.searchsorted(user, np.arange(train.users + 1))

    def score(users: np.ndarray) -> np.ndarray:
        scores_BN = np.full((len(users), train.items), -np.inf, dtype=np.float32)
        for row, asked in enumerate(users.tolist()):
            own = slice(starts[asked], starts[asked + 1])
            scores_BN[row, item[own]] = k - rank[own]
        return scores_BN

    return score


def fit_size(train: Interactions) -> FitSize:
    """Return the sizes of what the generators are fitted to."""
    counts = np.bincount(train.user)
    return FitSize(
        items=train.items, users=int((counts > 0).sum()), touches=len(train), longest=int(counts.max(initial=0))
    )
