"""The heavy ranker at serving time: ONNX Runtime on one thread, no training code."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from onnxruntime import InferenceSession

from stages.contracts.errors import ReleaseError
from stages.contracts.onnx_session import open_onnx
from stages.contracts.ranking import RankingInputs
from stages.contracts.summaries import HEAVY_FILE, HEAVY_JSON, HeavySummary, read_summary
from stages.features.ranking import heavy_features

MODEL_FILE, META_FILE = HEAVY_FILE, HEAVY_JSON
INPUT_NAME, OUTPUT_NAME = "features", "probabilities"
LIGHT = "light"
"""The stage whose scores this one reads."""


class HeavyScorer:
    """Scores candidates with a trained heavy ranker.

    Attributes:
        tasks: names of the T tasks, in the order of the probabilities.
        width: W, columns of an input row.
        objective: weight of each task in the score.
    """

    def __init__(
        self, session: InferenceSession, width: int, tasks: tuple[str, ...], objective: dict[str, float]
    ) -> None:
        self._session = session
        self.width = width
        self.tasks = tasks
        self.objective = objective
        self._weights = np.array([objective.get(task, 0.0) for task in tasks], dtype=np.float32)

    @classmethod
    def load(cls, directory: Path, feature_schema_hash: str, objective: Mapping[str, float]) -> HeavyScorer:
        """Load ``heavy_ranker.onnx`` and check it against its summary.

        Args:
            directory: a finished ``train_heavy`` directory or a release.
            feature_schema_hash: hash of the features that the caller computes.
            objective: weight of each task in the score; tasks left out weigh 0; empty means the
                weights that the model was trained for.

        Raises:
            ReleaseError: if a file is missing or unreadable, was trained on other features, or the objective names an
                unknown task or has no weight other than 0.
        """
        summary = read_summary(directory / META_FILE, HeavySummary)
        if summary.feature_schema_hash != feature_schema_hash:
            raise ReleaseError(
                f"{directory / META_FILE}: feature_schema_hash = {summary.feature_schema_hash!r}, "
                f"the features at hand have {feature_schema_hash!r}"
            )
        session = open_onnx(directory / MODEL_FILE)
        found = (session.get_inputs()[0].shape[-1], session.get_outputs()[0].shape[-1])
        if found != (summary.input_width, len(summary.tasks)):
            raise ReleaseError(
                f"{directory / MODEL_FILE} maps {found[0]} inputs to {found[1]} tasks, "
                f"{META_FILE} says {summary.input_width} and {len(summary.tasks)}"
            )
        weights = dict(objective) or summary.objective
        check_objective(weights, summary.tasks)
        return cls(session, summary.input_width, summary.tasks, weights)

    def probabilities(self, inputs: np.ndarray) -> np.ndarray:
        """Return float32 ``[n, T]`` probabilities of float32 ``[n, W]`` inputs.

        Raises:
            ReleaseError: if the inputs are not ``[n, W]``.
        """
        if inputs.ndim != 2 or inputs.shape[1] != self.width:
            raise ReleaseError(f"heavy ranker inputs {list(inputs.shape)} must be [n, {self.width}]")
        if len(inputs) == 0:
            return np.zeros((0, len(self.tasks)), dtype=np.float32)
        (probabilities,) = self._session.run([OUTPUT_NAME], {INPUT_NAME: np.ascontiguousarray(inputs, np.float32)})
        return np.asarray(probabilities, dtype=np.float32)

    def score(self, inputs: np.ndarray) -> np.ndarray:
        """Return float32 ``[n]`` scores ``sum_t objective[t] * p_t`` of float32 ``[n, W]`` inputs."""
        scores: np.ndarray = self.probabilities(inputs) @ self._weights
        return scores

    def score_rows(self, inputs: RankingInputs, rows: np.ndarray) -> np.ndarray:
        """Return float32 ``[m]`` scores of int64 ``[m]`` rows, which the light ranker scored before."""
        light_scores, light_ranks = inputs.scores[LIGHT][rows], inputs.ranks[LIGHT][rows]
        query, vectors_mD = inputs.query(rows), inputs.vectors(rows)
        return self.score(heavy_features(inputs.features[rows], light_scores, light_ranks, query, vectors_mD))


def check_objective(objective: Mapping[str, float], tasks: tuple[str, ...]) -> None:
    """Refuse an objective that this model cannot serve.

    Raises:
        ReleaseError: naming the task or weight, and what is allowed.
    """
    unknown = sorted(set(objective) - set(tasks))
    if unknown:
        raise ReleaseError(f"objective: unknown task {', '.join(unknown)}; allowed: {', '.join(tasks)}")
    for task, weight in objective.items():
        if not math.isfinite(weight):
            raise ReleaseError(f"objective.{task} = {weight}, a finite weight is needed")
    if not any(objective.values()):
        raise ReleaseError(f"objective = {dict(objective)}: at least one of {', '.join(tasks)} needs a weight")
