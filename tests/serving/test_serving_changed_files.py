"""The files of a served release: copied, read-only, watched; a change is noticed and mended."""

import os
import shutil
import stat

import numpy as np
import pytest

from serving.config import ServeConfig
from serving.release_source import DirectorySource
from stages.contracts.arrays import load_npy
from stages.contracts.errors import ReleaseError, TransientError
from stages.contracts.manifest import read_manifest
from stages.release.cache import copy_release

PARTS = ("item_vectors.npy", "index.faiss", "state/touches.npy", "state/users_items.npy", "users.parquet")


def overwrite(path):
    """Write other bytes into the same file, as a careless copy does."""
    path.chmod(0o644)
    content = path.read_bytes()
    with path.open("r+b") as stream:
        stream.seek(len(content) // 2)
        stream.write(bytes(byte ^ 0x5A for byte in content[len(content) // 2 :]))


def truncate(path):
    path.chmod(0o644)
    with path.open("r+b") as stream:
        stream.truncate(40)


def replace(path):
    other = path.with_name("other")
    other.write_bytes(path.read_bytes()[:-1] + b"?")
    other.replace(path)


def items_of(service, user="u1"):
    moment = service.funnel.release.manifest.as_of_ms
    return [(item.item_id, item.score) for item in service.funnel.recommend(user, 20, moment).items]


@pytest.mark.parametrize("damage", [overwrite, truncate])
def test_overwriting_the_directory_does_not_reach_the_server(releases, start, tmp_path, damage):
    source = shutil.copytree(releases["alpha"], tmp_path / "source")
    service = start(source)
    before = items_of(service)
    for part in PARTS:
        damage(source / part)
    assert items_of(service) == before
    assert service.readiness().ready
    assert service.refresh() is False


@pytest.mark.parametrize("damage", [overwrite, truncate, replace, os.unlink])
@pytest.mark.parametrize("part", PARTS)
def test_a_changed_part_is_named_and_loaded_anew(releases, start, over_http, tmp_path, damage, part):
    service = start(DirectorySource(releases["alpha"], tmp_path / "cache"))
    client, before = over_http(service), items_of(service)
    damage(service.funnel.release.directory / part)
    for _ in range(2):
        answer = client.get("/readyz")
        assert (answer.status_code, answer.json()["ready"]) == (503, False)
        assert part in answer.json()["reason"]
        assert str(tmp_path) not in answer.text
    assert "sluice_release_parts_changed_total 1.0" in client.get("/metrics").text
    assert items_of(service) == before, "what is small is in memory"
    assert service.refresh() is True
    assert client.get("/readyz").json()["ready"] is True
    assert items_of(service) == before
    assert service.refresh() is False


def test_a_release_that_cannot_be_mended_stays_unready(releases, start, tmp_path, caplog):
    source = shutil.copytree(releases["alpha"], tmp_path / "source")
    service = start(DirectorySource(source, tmp_path / "cache"))
    overwrite(source / "index.faiss")
    overwrite(service.funnel.release.directory / "index.faiss")
    assert service.refresh() is False
    found = service.readiness()
    assert (found.ready, found.stale) == (False, True)
    assert "not whole" in (found.refresh_error or "") and "index.faiss: sha256" in caplog.text


def test_a_poll_mends_it(releases, start, tmp_path):
    config = ServeConfig(poll_seconds=0.01, clock="data", ready_users=1)
    service = start(DirectorySource(releases["alpha"], tmp_path / "cache"), config=config)
    first = service.funnel
    overwrite(first.release.directory / "item_vectors.npy")
    for _ in range(3000):
        if service.funnel is not first:
            break
        service._stopping.wait(0.01)
    assert service.readiness().ready


def test_copies_are_read_only_and_used_again(releases, tmp_path):
    first = copy_release(releases["alpha"], tmp_path).directory
    files = [path for path in first.rglob("*") if path.is_file()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o444}
    inodes = {path: path.stat().st_ino for path in files}
    assert not any(path.samefile(releases["alpha"] / path.relative_to(first)) for path in files)
    assert copy_release(releases["alpha"], tmp_path).directory == first
    assert {path: path.stat().st_ino for path in files} == inodes
    assert copy_release(first, tmp_path).directory == first
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", first.name]


def test_two_releases_of_one_id_do_not_share_a_copy(releases, reseal, tmp_path):
    other = shutil.copytree(releases["beta"], tmp_path / "other")
    reseal(other, read_manifest(releases["alpha"]).release_id)
    first, second = (copy_release(source, tmp_path / "cache").directory for source in (releases["alpha"], other))
    assert first != second
    assert read_manifest(first).release_id == read_manifest(second).release_id


@pytest.mark.parametrize("name", ["../../outside", "", ".hidden", "a/b"])
def test_an_id_is_no_path(releases, reseal, tmp_path, name):
    other = shutil.copytree(releases["alpha"], tmp_path / "other")
    reseal(other, name)
    with pytest.raises(ReleaseError, match="allowed is a plain name"):
        copy_release(other, tmp_path / "cache")


def test_a_copy_that_fails_leaves_nothing(releases, tmp_path, monkeypatch):
    def full(*_arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("stages.release.cache.shutil.copyfile", full)
    with pytest.raises(TransientError, match="No space left"):
        copy_release(releases["alpha"], tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [".lock"]


def test_small_arrays_are_in_memory_and_large_ones_are_mapped(tmp_path, monkeypatch):
    path = tmp_path / "numbers.npy"
    np.save(path, np.arange(5))
    kept, own = load_npy(path), load_npy(path, "c")
    with pytest.raises(ValueError, match="read-only"):
        kept[0] = 1
    own[0] = 7
    monkeypatch.setattr("stages.contracts.arrays.IN_MEMORY_BYTES", 10)
    mapped = load_npy(path, "c")
    mapped[1] = 7
    assert isinstance(mapped.base, np.memmap)
    np.save(path, np.arange(5) + 10)
    assert (kept.tolist(), own.tolist()) == ([0, 1, 2, 3, 4], [7, 1, 2, 3, 4])
