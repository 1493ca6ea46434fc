"""A third ranking stage is a row of the table and a scorer: assembled, loaded and served without other changes."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from serving.funnel import Funnel
from serving.release import load_release
from stages.contracts.errors import ReleaseError
from stages.contracts.files import read_json, sha256_file, write_json
from stages.contracts.manifest import FunnelSpec, read_manifest
from stages.contracts.ranking import RankingInputs
from stages.contracts.ranking_stages import RANKING_STAGES, RankingStage
from stages.contracts.summaries import RankerSummary, read_summary
from stages.contracts.tables import EventTable
from stages.release.assemble import AssembleConfig, assemble
from stages.release.runs import lineage

AS_OF_MS = 1_700_000_000_000
NOW_MS = AS_OF_MS + 3_600_000
FUNNEL = {"candidate_k": 60, "light_k": 20, "max_k": 50, "objective": {"click": 0.25, "like": 2.0}}
STEPS = ("snapshot", "candidate", "index", "examples", "evaluate", "light", "heavy", "third")


class ThirdSummary(RankerSummary):
    """``third.json``."""

    AGAIN: ClassVar[str] = "train the third ranker again"

    factor: float


class ThirdScorer:
    """Multiplies what the heavy ranker said by a factor."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    @classmethod
    def load(cls, directory: Path, feature_schema_hash: str, objective: Mapping[str, float]) -> ThirdScorer:
        summary = read_summary(directory / "third.json", ThirdSummary)
        assert summary.feature_schema_hash == feature_schema_hash
        return cls(float(np.load(directory / "third.npy")) * summary.factor)

    def score_rows(self, inputs: RankingInputs, rows: np.ndarray) -> np.ndarray:
        return np.float32(self.factor) * inputs.scores["heavy"][rows]


@pytest.fixture
def third(monkeypatch: pytest.MonkeyPatch) -> RankingStage:
    row = RankingStage(
        name="third",
        model_file="third.npy",
        summary_file="third.json",
        summary=ThirdSummary,
        module=__name__,
        scorer="ThirdScorer",
        reads=("heavy",),
    )
    monkeypatch.setitem(RANKING_STAGES, "third", row)
    return row


@pytest.fixture
def steps(releases: Any, tmp_path: Path, third: RankingStage) -> Path:
    """One directory that holds what every finished step would."""
    steps = shutil.copytree(releases["alpha"], tmp_path / "steps")
    (steps / "manifest.json").unlink()
    (steps / "item_tower.onnx").write_bytes(b"item tower")
    tower = read_json(steps / "tower.json")
    write_json(steps / "tower.json", {**tower, "item_tower_sha256": sha256_file(steps / "item_tower.onnx")})
    np.save(steps / "third.npy", np.array(-1.0))
    schema_hash = read_json(steps / "feature_schema.json")["hash"]
    write_json(steps / "third.json", {"feature_schema_hash": schema_hash, "factor": 2.0})
    serves(steps, ["light", "heavy", "third"])
    EventTable(
        user_index=np.zeros(1, np.int64),
        item_index=np.full(1, 7),
        event_time_ms=np.array([AS_OF_MS - 1]),
        signal=np.ones(1, np.int16),
        value=np.ones(1, np.float32),
        part=np.zeros(1, np.int8),
        active=np.ones(1, np.bool_),
    ).write(steps / "events.parquet")
    return steps


def serves(steps: Path, stages: list[str]) -> None:
    metrics = {"ndcg@10": 0.2}
    served = {"row": stages[-1], "stages": stages, "bypassed": {}, "metrics": metrics}
    write_json(steps / "ledger.json", {"rows": [{"name": stages[-1], "metrics": metrics}], "served": served})


def assembled(steps: Path, out: Path, *stages: str) -> Path:
    out.mkdir()
    config = AssembleConfig(
        funnel=FunnelSpec(**FUNNEL, stages=stages), resolved=read_json(steps / "config.json"), fallback_k=30
    )
    assemble(config, dict.fromkeys(STEPS, steps), out)
    return out / "release"


def funnel_of(release: Path) -> Funnel:
    return Funnel(load_release(release), clock=lambda: NOW_MS)


def test_the_answer_passes_the_third_stage(steps: Path, releases: Any, tmp_path: Path) -> None:
    release = assembled(steps, tmp_path / "out", "light", "heavy", "third")
    manifest = read_manifest(release)
    assert {"third.npy", "third.json", "heavy_ranker.onnx"} <= set(manifest.parts)
    assert lineage(manifest) == ["candidate", "light-ranker", "heavy-ranker", "third-ranker"]
    before, after = funnel_of(releases["alpha"]), funnel_of(release)
    for user in ("u2", "u11"):
        heavy = before.recommend(user, 20, explain=True)
        answer = after.recommend(user, 20, explain=True)
        assert [item.item_id for item in answer.items] == [item.item_id for item in reversed(heavy.items)]
        assert list(answer.items[0].places) == ["candidate", "light", "heavy", "third"]
        for item in answer.items:
            assert item.score == item.places["third"].score == -2.0 * item.places["heavy"].score
        assert answer.counts["after_heavy"] == answer.counts["after_third"] == 20
        assert "third" in answer.timings_ms


def test_alone_it_brings_the_stages_that_it_reads(steps: Path, releases: Any, tmp_path: Path) -> None:
    serves(steps, ["third"])
    release = assembled(steps, tmp_path / "out", "third")
    assert {"third.npy", "heavy_ranker.onnx", "light_ranker.txt"} <= set(read_manifest(release).parts)
    answer = funnel_of(release).recommend("u2", 20, explain=True)
    assert list(answer.items[0].places) == ["candidate", "third"]
    assert all(item.places["candidate"].rank < 20 for item in answer.items), "the bypassed light ranker's cut"


def test_where_it_is_bypassed_nothing_of_it_is_in_the_release(steps: Path, releases: Any, tmp_path: Path) -> None:
    serves(steps, ["light", "heavy"])
    release = assembled(steps, tmp_path / "out", "light", "heavy", "third")
    assert not [name for name in read_manifest(release).parts if name.startswith("third")]
    first, second = (funnel_of(each).recommend("u2", 20) for each in (releases["alpha"], release))
    assert [(item.item_id, item.score) for item in first.items] == [(item.item_id, item.score) for item in second.items]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"feature_schema_hash": "other"}, r"feature_schema_hash is .*'other' in third.json \(train the third ranker"),
        ({"vector_dim": 9}, r"dim is .*9 in third.json \(train the third ranker again\)"),
        ({"factor": "2"}, r"third.json factor = '2': input should be a valid number.*train the third ranker again"),
    ],
)
def test_its_files_are_checked_like_all_others(steps: Path, tmp_path: Path, values: dict[str, Any], words: str) -> None:
    write_json(steps / "third.json", {**read_json(steps / "third.json"), **values})
    with pytest.raises(ReleaseError, match=words):
        assembled(steps, tmp_path / "out", "light", "heavy", "third")


def test_a_missing_model_of_it_is_named(steps: Path, tmp_path: Path) -> None:
    (steps / "third.npy").unlink()
    with pytest.raises(ReleaseError, match=r"third.npy: missing; train the third ranker again"):
        assembled(steps, tmp_path / "out", "light", "heavy", "third")
