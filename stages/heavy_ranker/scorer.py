"""The heavy ranker at serving time: ONNX Runtime on one thread, nothing of training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnxruntime import InferenceSession

from stages.contracts.errors import ReleaseError
from stages.contracts.files import read_json
from stages.contracts.onnx_session import open_onnx

MODEL_FILE = "heavy_ranker.onnx"
META_FILE = "heavy_ranker.json"
INPUT_NAME, OUTPUT_NAME = "features", "probabilities"


@dataclass(frozen=True)
class _Description:
    feature_schema_hash: str
    width: int
    tasks: tuple[str, ...]
    objective: dict[str, float]


class HeavyScorer:
    """Scores one request's candidates with a trained heavy ranker.

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
        """Load ``heavy_ranker.onnx`` and check it against its description.

        Args:
            directory: a finished ``train_heavy`` directory or a release.
            feature_schema_hash: hash of the features that the caller computes.
            objective: weight of each task in the score; tasks left out weigh 0; empty means the
                weights that the model was trained for.

        Raises:
            ReleaseError: if a file is missing or unreadable, was trained on other features, or the
                objective names an unknown task or weighs nothing.
        """
        meta = _read_meta(directory / META_FILE)
        if meta.feature_schema_hash != feature_schema_hash:
            raise ReleaseError(
                f"{directory / META_FILE}: feature_schema_hash = {meta.feature_schema_hash!r}, "
                f"the features at hand have {feature_schema_hash!r}"
            )
        session = open_onnx(directory / MODEL_FILE)
        found = (session.get_inputs()[0].shape[-1], session.get_outputs()[0].shape[-1])
        if found != (meta.width, len(meta.tasks)):
            raise ReleaseError(
                f"{directory / MODEL_FILE} maps {found[0]} inputs to {found[1]} tasks, "
                f"{META_FILE} says {meta.width} and {len(meta.tasks)}"
            )
        weights = dict(objective) or meta.objective
        check_objective(weights, meta.tasks)
        return cls(session, meta.width, meta.tasks, weights)

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


def _read_meta(path: Path) -> _Description:
    try:
        meta = read_json(path)
        return _Description(
            feature_schema_hash=str(meta["feature_schema_hash"]),
            width=int(meta["input_width"]),
            tasks=tuple(str(task) for task in meta["tasks"]),
            objective={str(task): float(weight) for task, weight in meta["objective"].items()},
        )
    except OSError as error:
        raise ReleaseError(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ReleaseError(
            f"{path} must hold feature_schema_hash, input_width, tasks and objective: {error!r}"
        ) from None
