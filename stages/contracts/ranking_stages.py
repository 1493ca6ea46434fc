"""The ranking stages of the funnel, in order: a new stage is a row here and a scorer.

A row lists a stage's files, the earlier stages whose scores it reads, and the class that scores at serving time. The
evaluation, ``assemble``, the registry and the server iterate over the rows and name no stage themselves.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from stages.contracts.artifacts import ARTIFACTS, Artifact
from stages.contracts.summaries import (
    HEAVY_FILE,
    HEAVY_JSON,
    LIGHT_FILE,
    LIGHT_JSON,
    HeavySummary,
    LightSummary,
    RankerSummary,
)


@dataclass(frozen=True)
class RankingStage:
    """One ranking stage.

    Attributes:
        name: as in recipes, the ledger and answers; also the input of ``assemble`` that holds its files.
        model_file: the model of its scorer.
        summary_file: describes the model.
        summary: class that reads the summary file.
        module, scorer: module and class name of its scorer, a ``stages.contracts.ranking.StageScorer``. The module has
            a field of its own because digests of code follow strings that name a module (``stages.contracts.code``).
        reads: earlier stages whose scores it reads; they run for it even where they are bypassed.
        cut: key of ``FunnelSpec`` that says how many items it passes on; None passes all on.
    """

    name: str
    model_file: str
    summary_file: str
    summary: type[RankerSummary]
    module: str
    scorer: str
    reads: tuple[str, ...] = ()
    cut: str | None = None

    @property
    def artifacts(self) -> tuple[Artifact, ...]:
        """Its rows in the table of artifacts."""
        again = self.summary.AGAIN
        return (
            Artifact(self.model_file, self.name, again=again),
            Artifact(self.summary_file, self.name, self.summary, again=again),
        )


RANKING_STAGES: dict[str, RankingStage] = {
    stage.name: stage
    for stage in (
        RankingStage(
            name="light",
            model_file=LIGHT_FILE,
            summary_file=LIGHT_JSON,
            summary=LightSummary,
            module="stages.light_ranker.scorer",
            scorer="LightScorer",
            cut="light_k",
        ),
        RankingStage(
            name="heavy",
            model_file=HEAVY_FILE,
            summary_file=HEAVY_JSON,
            summary=HeavySummary,
            module="stages.heavy_ranker.scorer",
            scorer="HeavyScorer",
            reads=("light",),
        ),
    )
}
"""The rows by name, in the order in which the stages run."""


def ranking_file(name: str) -> str:
    """Return the file in the output of the step ``rank_held_out`` that holds a stage's ranking (RankedTable)."""
    return f"{name}.parquet"


def unknown_stages(names: Iterable[str]) -> list[str]:
    """Return the names that are not ranking stages."""
    return [name for name in names if name not in RANKING_STAGES]


def stages_before(name: str) -> tuple[str, ...]:
    """Return the names of the stages that run before one, the nearest first."""
    names = list(RANKING_STAGES)
    return tuple(reversed(names[: names.index(name)]))


def needed_stages(names: Iterable[str]) -> tuple[RankingStage, ...]:
    """Return the stages of ``names`` and those whose scores they read, in the order in which they run."""
    wanted, waiting = set[str](), list(names)
    while waiting:
        name = waiting.pop()
        if name not in wanted:
            wanted.add(name)
            waiting += RANKING_STAGES[name].reads
    return tuple(stage for name, stage in RANKING_STAGES.items() if name in wanted)


def release_artifacts(names: Iterable[str]) -> tuple[Artifact, ...]:
    """Return every artifact of a release that uses these ranking stages.

    Args:
        names: the stages in use.
    """
    return (*ARTIFACTS, *(artifact for stage in needed_stages(names) for artifact in stage.artifacts))
