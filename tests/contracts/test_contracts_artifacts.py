"""Summaries say which key is wrong and what to do; the table of artifacts and of ranking stages is sound."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages import pipeline
from stages.contracts.artifacts import collect, made_by
from stages.contracts.errors import ReleaseError
from stages.contracts.hashed_files import HashedFiles
from stages.contracts.manifest import FunnelSpec
from stages.contracts.ranking import RankingInputs
from stages.contracts.ranking_stages import RANKING_STAGES, needed_stages, release_artifacts, stages_before
from stages.contracts.release_check import Claim, check_steps, refuse_disagreements
from stages.contracts.release_code import SHARED
from stages.contracts.summaries import AGAIN, IndexSummary, TowerSummary, TrainedTower, load_vectors, read_summary

ROOT = Path(__file__).resolve().parents[2]
TOWER: dict[str, Any] = {
    "tower_version": "t" * 64,
    "item_vectors_sha256": "v" * 64,
    "n_items": 3,
    "dim": 2,
    "config": {"features": {"history_length": 5}, "seed": 4},
    "losses": [2.5, 1.25],
    "of_a_later_version": {"a": [1, None]},
}


def write(path: Path, value: Any) -> Path:
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in TOWER.items() if key != name}


def test_a_summary_is_typed_and_keeps_what_nobody_reads(tmp_path: Path) -> None:
    summary = read_summary(write(tmp_path / "tower.json", TOWER), TowerSummary)
    assert (summary.n_items, summary.config.features, summary.code) == (3, {"history_length": 5}, None)
    assert summary.trained == summary.tower_version
    summary.model_copy(update={"trained_version": "before"}).write(tmp_path / "again.json")
    assert json.loads((tmp_path / "again.json").read_text()) == {**TOWER, "trained_version": "before"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, r"tower.json: No such file or directory; train the two-tower model again"),
        ("{", r"tower.json is not a JSON object: invalid json.*: train the two-tower model again"),
        ("[]", r"tower.json is not a JSON object: .*: train the two-tower model again"),
        (b"\xff", r"tower.json is not a JSON object: "),
        (without("dim"), r"tower.json lacks dim; an older version wrote it, or it is damaged: train the two-tower"),
        ({}, "tower.json lacks tower_version, item_vectors_sha256, n_items, dim, config; an older"),
        ({**TOWER, "config": {"seed": 4}}, r"tower.json lacks config.features; an older version"),
        ({**TOWER, "n_items": "3"}, r"n_items = '3': input should be a valid integer; an older"),
        (
            {**TOWER, "n_items": -1, "tower_version": 7},
            r"tower_version = '7': .* string; n_items = '-1': .* equal to 0",
        ),
        ({**TOWER, "config": "x" * 999}, rf"config = '{'x' * 60}': input should be an object"),
    ],
)
def test_a_summary_that_is_wrong_names_file_key_and_what_to_do(tmp_path: Path, content: Any, words: str) -> None:
    path = tmp_path / "tower.json"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        write(path, content)
    with pytest.raises(ReleaseError, match=words):
        read_summary(path, TowerSummary)


def test_a_tower_that_is_older_than_the_refresh_is_read_by_a_server_and_refused_by_a_refresh(tmp_path: Path) -> None:
    path = write(tmp_path / "tower.json", TOWER)
    assert read_summary(path, TowerSummary).item_tower_sha256 is None
    with pytest.raises(ReleaseError, match=r"lacks item_tower_sha256, inputs, .* train the two-tower model again"):
        read_summary(path, TrainedTower)


def test_an_index_of_before_has_neither_sizes_nor_refinement(tmp_path: Path) -> None:
    old = {"tower_version": "t", "item_vectors_sha256": "v", "index_sha256": "i", "n_indexed": 2, "recall": 0.96}
    summary = read_summary(write(tmp_path / "index.json", old), IndexSummary)
    assert (summary.refine, summary.n_items, summary.dim) == (1, None, None)


@pytest.mark.parametrize(
    ("vectors", "words"),
    [
        (np.zeros((3, 2)), r"float64 \(3, 2\), tower.json says float32 \(3, 2\); train the two-tower model again"),
        (np.zeros((2, 2), np.float32), r"float32 \(2, 2\), tower.json says float32 \(3, 2\)"),
        (None, "not a readable array"),
    ],
)
def test_vectors_of_another_shape_or_type_are_refused(tmp_path: Path, vectors: Any, words: str) -> None:
    path = tmp_path / "item_vectors.npy"
    if vectors is not None:
        np.save(path, vectors)
    with pytest.raises(ReleaseError, match=words):
        load_vectors(path, TowerSummary.model_validate(TOWER))


def test_every_row_says_what_to_do_and_who_says_its_hash() -> None:
    rows = {row.name: row for row in release_artifacts(RANKING_STAGES)}
    assert len(rows) == len(release_artifacts(RANKING_STAGES)), "no file has two rows"
    for row in rows.values():
        assert row.remedy.endswith("again") or "again" in row.remedy
        if row.described is not None:
            summary, key = row.described
            assert key in rows[summary].summary.model_fields
            assert rows[summary].step == row.step, "a file and its summary are made together"
    assert {row.step for row in rows.values()} == {*AGAIN, *RANKING_STAGES}


def test_the_documentation_has_every_row() -> None:
    text = (ROOT / "docs" / "contracts.md").read_text(encoding="utf-8")
    _, _, section = text.partition("## A release\n")
    section, _, _ = section.partition("\n## ")
    assert [row.name for row in release_artifacts(RANKING_STAGES) if f"`{row.name}`" not in section] == []


def test_every_ranking_stage_is_covered_by_digests_import_rules_and_the_funnels_keys() -> None:
    rules = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    scorers = next(rule["source_modules"] for rule in rules if rule["id"] == "no-torch-online")
    for name, stage in RANKING_STAGES.items():
        assert stage.name == name
        assert stage.module in SHARED, "its code is part of what a release was made with"
        assert stage.module in scorers, "a server loads neither torch nor training code with it"
        assert stage.cut is None or stage.cut in FunnelSpec.model_fields
        assert set(stage.reads) <= set(stages_before(name))
    assert FunnelSpec().stages == tuple(RANKING_STAGES) == tuple(pipeline.RANKERS) == ("light", "heavy")
    assert [stage.name for stage in needed_stages(["heavy"])] == ["light", "heavy"]
    assert [stage.name for stage in needed_stages(["light"])] == ["light"]
    assert stages_before("heavy") == ("light",)


def test_files_of_steps_are_collected_by_name(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    for name in ("feature_schema.json", "state/state.json", "state/counts.npy"):
        (tmp_path / name).write_text("{}")
    found = collect(made_by("examples", "sources"), {"examples": tmp_path})
    assert list(found) == ["feature_schema.json", "state/counts.npy", "state/state.json"]
    (tmp_path / "state" / "state.json").unlink()
    with pytest.raises(ReleaseError, match=r"state/state.json: missing; build the examples again"):
        collect(made_by("examples"), {"examples": tmp_path})


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match=r"nowhere: missing"):
        HashedFiles.of({"a": tmp_path / "nowhere"})
    with pytest.raises(ReleaseError, match=r"Is a directory"):
        HashedFiles.of({"a": tmp_path})
    (tmp_path / "tower.json").write_text(json.dumps(TOWER))
    with pytest.raises(ReleaseError, match=r"user_tower.onnx: missing; train the two-tower model again"):
        check_steps(made_by("candidate"), {"candidate": tmp_path})


@pytest.mark.parametrize(
    ("claims", "words"),
    [
        ([("a.json", 1, "redo a"), ("b.json", 2, "redo b")], r"n is 1 in a.json, 2 in b.json \(redo b\)$"),
        ([("a.json", 1, "redo a"), ("b.json", 2, "redo b"), ("c.json", 2, "redo c")], r"\(redo a\)$"),
        ([("a.json", 1, "redo a"), ("recipe", 2, "")], r"n is 2 in recipe, 1 in a.json \(redo a\)$"),
        ([("a.json", 1, "redo a"), ("b.json", 2, "b"), ("c.json", 3, "c")], r"\(b, then c\)$"),
    ],
)
def test_what_most_say_is_right_and_what_is_given_comes_first(claims: Any, words: str) -> None:
    with pytest.raises(ReleaseError, match=words):
        refuse_disagreements(Claim("n", origin, value, again) for origin, value, again in claims)


def test_equal_claims_and_what_nobody_says_are_no_disagreement() -> None:
    refuse_disagreements([Claim("n", "a", 1), Claim("n", "b", 1), Claim("n", "c", None), Claim("m", "a", [2])])


def test_stages_read_what_the_ones_before_gave() -> None:
    """Features are computed once, when they are first read; ties keep the order of retrieval."""
    asked: list[int] = []

    def features() -> np.ndarray:
        asked.append(1)
        return np.arange(8, dtype=np.float32).reshape(4, 2)

    vectors = np.arange(12, dtype=np.float32).reshape(6, 2)
    inputs = RankingInputs(np.array([5, 0, 3, 1]), vectors[:1], vectors, features)
    assert not asked
    assert (inputs.features is inputs.features, asked) == (True, [1])
    order = inputs.keep("first", np.array([3, 0, 2]), np.array([1.0, 2.0, 1.0], np.float32))
    assert order.tolist() == [1, 2, 0], "of two with score 1, row 2 was retrieved before row 3"
    np.testing.assert_array_equal(inputs.scores["first"], np.array([2, np.nan, 1, 1], np.float32))
    assert inputs.ranks["first"].tolist() == [0, -1, 1, 2]
    np.testing.assert_array_equal(inputs.vectors(np.array([2, 0])), vectors[[3, 5]])
