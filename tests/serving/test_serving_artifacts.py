"""Every row of the table of artifacts: missing, changed, of another tower; and each file is hashed once."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.release import load_release
from serving.release_source import DirectorySource
from stages.candidate.generators.config import SourcesConfig
from stages.contracts.artifacts import Artifact
from stages.contracts.errors import ReleaseError
from stages.contracts.files import read_json, sha256_file, write_json
from stages.contracts.hashed_files import HashedFiles
from stages.contracts.ledger import JudgedRequests
from stages.contracts.manifest import read_manifest, verified_release
from stages.contracts.ranking_stages import RANKING_STAGES, release_artifacts
from stages.contracts.release_check import check_together
from tests.counted_hashes import count_hashes, times_hashed

ID = "2023-11-14-whole"
TABLE = release_artifacts(RANKING_STAGES)
FILES = {"state/": "state/positives.npy", "sources/": "sources/ease_items.npy"}
"""A file of each directory of the table."""


def file_of(row: Artifact) -> str:
    return FILES.get(row.name, row.name)


def build(build_once: Any, seal_once: Any, directory: Path, seed: int) -> Path:
    """Build a release that has every artifact of the table."""
    sources = SourcesConfig(names=("tower", "ease", "content"))
    build_once(directory, "whole", seed, sources=sources)
    (directory / "item_tower.onnx").write_bytes(b"item tower %d" % seed)
    tower = read_json(directory / "tower.json")
    write_json(directory / "tower.json", {**tower, "item_tower_sha256": sha256_file(directory / "item_tower.onnx")})
    JudgedRequests.make("ndcg@10", np.arange(seed, seed + 3), np.zeros(3)).write(directory / "held_out.parquet")
    seal_once(directory, ID)
    return directory


@pytest.fixture(scope="module")
def whole(tmp_path_factory, build_once, seal_once) -> Path:
    return build(build_once, seal_once, tmp_path_factory.mktemp("artifacts") / "whole", 0)


@pytest.fixture(scope="module")
def other(tmp_path_factory, build_once, seal_once) -> Path:
    """A release of the same catalogue with another tower."""
    return build(build_once, seal_once, tmp_path_factory.mktemp("artifacts") / "other", 1)


@pytest.fixture
def copy(whole, tmp_path) -> Path:
    return shutil.copytree(whole, tmp_path / "release")


def test_the_release_of_these_tests_has_every_artifact(whole: Path) -> None:
    assert {file_of(row) for row in TABLE} <= set(read_manifest(whole).parts)
    check_together(HashedFiles.below(whole), TABLE)
    assert load_release(whole).manifest.release_id == ID


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_a_missing_artifact_is_named_with_what_to_do(copy: Path, row: Artifact) -> None:
    (copy / file_of(row)).unlink()
    with pytest.raises(ReleaseError, match=rf"{file_of(row)}: missing.*copy or pull the release again"):
        load_release(copy)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_a_changed_artifact_is_named_with_what_to_do(copy: Path, row: Artifact) -> None:
    content = bytearray((copy / file_of(row)).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / file_of(row)).write_bytes(bytes(content))
    words = rf"{file_of(row)}: sha256 \w+…, the manifest says \w+….*copy or pull the release again"
    with pytest.raises(ReleaseError, match=words):
        load_release(copy)


@pytest.mark.parametrize(
    "row",
    [row for row in TABLE if row.is_served and not row.is_optional and not row.name.endswith("/")],
    ids=lambda row: row.name,
)
def test_an_artifact_that_the_manifest_does_not_list_is_named(copy: Path, row: Artifact, reseal: Any) -> None:
    sealed = read_json(copy / "manifest.json")
    (copy / row.name).unlink()
    del sealed["parts"][row.name]
    write_json(copy / "manifest.json", sealed)
    with pytest.raises(ReleaseError, match=rf"does not list \['{row.name}'\].*assemble the release again"):
        load_release(copy)


def tells_the_tower(row: Artifact) -> bool:
    keys = {} if row.summary is None else row.summary.model_fields
    return row.described is not None or "tower_version" in keys


@pytest.mark.parametrize("row", [row for row in TABLE if tells_the_tower(row)], ids=lambda row: row.name)
def test_an_artifact_of_another_tower_is_named_with_what_to_do(
    copy: Path, other: Path, row: Artifact, reseal: Any
) -> None:
    """Sealed anew, so that only what the files say of one another can tell."""
    tower_version = read_manifest(copy).tower_version
    shutil.copy(other / row.name, copy / row.name)
    reseal(copy, ID, tower_version=tower_version)
    words = rf"do not belong together: .* in {row.name}.*\(.*{row.remedy}"
    with pytest.raises(ReleaseError, match=words):
        check_together(HashedFiles.below(copy), TABLE)
    if row.is_served:
        with pytest.raises(ReleaseError, match=words):
            load_release(copy)


def test_a_release_of_another_tower_under_this_manifest_is_refused(copy: Path, reseal: Any) -> None:
    reseal(copy, ID, tower_version="0" * 64)
    with pytest.raises(ReleaseError, match=r"'0{12}…' in manifest.json \(assemble the release again\)"):
        load_release(copy)


def test_an_index_of_an_older_version_says_what_to_do(copy: Path, reseal: Any) -> None:
    described = read_json(copy / "index.json")
    del described["n_indexed"]
    write_json(copy / "index.json", described)
    reseal(copy, ID)
    with pytest.raises(ReleaseError, match=r"index.json lacks n_indexed; an older version .*: build the index again"):
        load_release(copy)


def test_a_server_hashes_each_file_once(whole: Path, start: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """From the directory to the first answer, with the copy that it makes."""
    counted = count_hashes(monkeypatch)
    service = start(DirectorySource(whole, tmp_path / "cache"))
    assert service.recommend("u3", 5).items
    parts = read_manifest(whole).parts
    assert times_hashed(counted, parts) == dict.fromkeys(parts, 1)


def test_a_server_that_starts_again_hashes_its_copy_once(
    whole: Path, start: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    DirectorySource(whole, tmp_path / "cache").fetch()
    counted = count_hashes(monkeypatch)
    start(DirectorySource(whole, tmp_path / "cache"))
    parts = read_manifest(whole).parts
    assert times_hashed(counted, parts) == dict.fromkeys(parts, 1)


def test_loading_a_directory_hashes_each_file_once(whole: Path, monkeypatch: Any) -> None:
    counted = count_hashes(monkeypatch)
    load_release(whole)
    parts = read_manifest(whole).parts
    assert times_hashed(counted, parts) == dict.fromkeys(parts, 1)


@pytest.mark.parametrize("name", ["index.faiss", "sources/ease_items.npy", "manifest.json"])
def test_what_changes_between_verifying_and_loading_is_refused(copy: Path, name: str) -> None:
    verified = verified_release(copy)
    content = (copy / name).read_bytes()
    (copy / name).write_bytes(content + b" ")
    with pytest.raises(ReleaseError, match=rf"{name} changed after the release was verified; copy or pull"):
        load_release(verified)
