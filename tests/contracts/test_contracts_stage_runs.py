"""A stage on a block of requests does what it does on each request alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.contracts.errors import DataError
from stages.contracts.ranking import RankingInputs
from stages.contracts.ranking_stages import RANKING_STAGES
from stages.contracts.stage_runs import LoadedStage

FIRST, SECOND = RANKING_STAGES["light"], replace(RANKING_STAGES["heavy"], cut="other_k")
VECTORS = np.random.default_rng(1).integers(0, 3, (12, 2)).astype(np.float32)


class _Column:
    """Scores by a feature, and, where it reads an earlier stage, by its score and rank and the user's vector."""

    def __init__(self, reads: str | None = None) -> None:
        self._reads = reads

    @classmethod
    def load(cls, directory: Path, feature_schema_hash: str, objective: Mapping[str, float]) -> _Column:
        return cls()

    def score_rows(self, inputs: RankingInputs, rows: np.ndarray) -> np.ndarray:
        scores = inputs.features[rows, 0]
        if self._reads is None:
            return scores
        liked = (inputs.query(rows) * inputs.vectors(rows)).sum(axis=-1)
        return np.round(inputs.scores[self._reads][rows] - inputs.ranks[self._reads][rows] % 3 + liked)


def _run(stages: list[LoadedStage], inputs: RankingInputs, sizes: SimpleNamespace) -> dict[str, np.ndarray]:
    rows, found = np.arange(len(inputs.ids)), {}
    for stage in stages:
        output = stage.run(inputs, rows, sizes)
        found[f"{stage.row.name} ranked"], found[f"{stage.row.name} passed"] = output.ranked, output.passed
        rows = output.passed
    return found


@given(
    st.lists(st.integers(0, 7), min_size=1, max_size=6), st.integers(0, 9), st.integers(0, 9), st.booleans(), st.data()
)
def test_a_block_is_ranked_as_its_requests_are(
    lengths: list[int], light_k: int, other_k: int, is_used: bool, data: st.DataObject
) -> None:
    draw = np.random.default_rng(data.draw(st.integers(0, 99)))
    n = sum(lengths)
    features = draw.integers(0, 4, (n, 1)).astype(np.float32)
    queries = draw.integers(0, 3, (len(lengths), 2)).astype(np.float32)
    ids = np.concatenate([np.zeros(0, np.int64), *(draw.permutation(12)[:length] for length in lengths)])
    request = np.repeat(np.arange(len(lengths)), lengths)
    sizes = SimpleNamespace(light_k=light_k, other_k=other_k)
    stages = [LoadedStage(FIRST, _Column(), is_used), LoadedStage(SECOND, _Column("light"))]
    whole = RankingInputs(ids, queries, VECTORS, lambda: features, request)
    found = _run(stages, whole, sizes)
    pieces: dict[str, list[np.ndarray]] = {name: [] for name in found}
    for number, query in enumerate(queries):
        rows = np.flatnonzero(request == number)
        alone = RankingInputs(ids[rows], query[None], VECTORS, lambda rows=rows: features[rows])
        for name, own in _run(stages, alone, sizes).items():
            pieces[name].append(rows[own])
        for stage in ("light", "heavy"):
            np.testing.assert_array_equal(whole.scores[stage][rows], alone.scores[stage])
            np.testing.assert_array_equal(whole.ranks[stage][rows], alone.ranks[stage])
    for name, rows in found.items():
        np.testing.assert_array_equal(rows, np.concatenate(pieces[name]), err_msg=name)


@pytest.mark.parametrize("n_requests", [1, 2])
def test_a_score_that_is_no_number_is_refused(n_requests: int) -> None:
    features = np.array([[1.0], [np.nan]], np.float32)
    inputs = RankingInputs(np.arange(2), VECTORS[:n_requests], VECTORS, lambda: features)
    with pytest.raises(DataError, match="a score is NaN"):
        LoadedStage(FIRST, _Column()).run(inputs, np.arange(2), SimpleNamespace(light_k=1))
