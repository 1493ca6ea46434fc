"""The light ranker at serving time: LightGBM's text model, one thread, no training code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import lightgbm as lgb
import numpy as np

from stages.contracts.errors import ReleaseError
from stages.contracts.ranking import RankingInputs
from stages.contracts.summaries import LIGHT_FILE, LIGHT_JSON, LightSummary, read_summary

MODEL_FILE, META_FILE = LIGHT_FILE, LIGHT_JSON


class LightScorer:
    """Scores candidates with a trained light ranker."""

    def __init__(self, booster: lgb.Booster, n_features: int) -> None:
        self._booster = booster
        self.n_features = n_features

    @classmethod
    def load(
        cls, directory: Path, feature_schema_hash: str, objective: Mapping[str, float] | None = None
    ) -> LightScorer:
        """Load ``light_ranker.txt`` and check it against its summary.

        Args:
            directory: a finished ``train_light`` directory or a release.
            feature_schema_hash: hash of the features that the caller computes.
            objective: unused: the model scores the relevance that it was trained on.

        Raises:
            ReleaseError: if a file is missing or unreadable, or was trained on other features.
        """
        summary = read_summary(directory / META_FILE, LightSummary)
        if summary.feature_schema_hash != feature_schema_hash:
            raise ReleaseError(
                f"{directory / META_FILE}: feature_schema_hash = {summary.feature_schema_hash!r}, "
                f"the features at hand have {feature_schema_hash!r}"
            )
        path = directory / MODEL_FILE
        try:
            booster = lgb.Booster(model_str=path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, lgb.basic.LightGBMError) as error:
            raise ReleaseError(f"{path} is not a readable LightGBM model: {error}") from None
        if booster.num_feature() != summary.n_features:
            raise ReleaseError(f"{path} reads {booster.num_feature()} features, {META_FILE} says {summary.n_features}")
        return cls(booster, booster.num_feature())

    def score(self, features: np.ndarray) -> np.ndarray:
        """Return float32 ``[n]`` scores (higher is better) of float32 ``[n, F]`` features.

        Raises:
            ReleaseError: if the features are not ``[n, F]``.
        """
        if features.ndim != 2 or features.shape[1] != self.n_features:
            raise ReleaseError(f"features {list(features.shape)} must be [n, {self.n_features}]")
        if len(features) == 0:
            return np.zeros(0, dtype=np.float32)
        scores = self._booster.predict(features, raw_score=True, num_threads=1)
        return np.asarray(scores, dtype=np.float32)

    def score_rows(self, inputs: RankingInputs, rows: np.ndarray) -> np.ndarray:
        """Return float32 ``[m]`` scores of int64 ``[m]`` rows, from their features."""
        return self.score(inputs.features[rows])
