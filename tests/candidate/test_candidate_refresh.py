"""A released tower and a grown catalogue, without training."""

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.candidate.config import IndexConfig
from stages.candidate.index import build_index
from stages.candidate.refresh import RefreshVectorsConfig, refresh_vectors
from stages.candidate.scorer import CandidateScorer, UserTower
from stages.contracts.errors import DataError, ReleaseError
from stages.contracts.files import read_json, sha256_file, write_json

NEW = 4


@pytest.fixture
def champion(planted, trained, tmp_path):
    """What a refresh reads of a release."""
    for source in (planted, trained):
        shutil.copytree(source, tmp_path / "champion", dirs_exist_ok=True)
    return tmp_path / "champion"


@pytest.fixture
def grown(planted, tmp_path):
    """The planted snapshot with one new item a block behind its own."""
    directory = shutil.copytree(planted, tmp_path / "grown")
    table = pq.read_table(directory / "items.parquet")
    more = table.slice(0, NEW).to_pydict()
    more |= {
        "item_index": list(range(60, 60 + NEW)),
        "item_id": [f"new{block}" for block in range(NEW)],
        "categories": [[block] for block in range(NEW)],
    }
    pq.write_table(pa.concat_tables([table, pa.table(more, schema=table.schema)]), directory / "items.parquet")
    return directory


@pytest.fixture
def refreshed(champion, grown, tmp_path):
    directory = tmp_path / "refreshed"
    directory.mkdir()
    metrics, _ = refresh_vectors(RefreshVectorsConfig(), {"champion": champion, "snapshot": grown}, directory)
    return directory, metrics


def test_the_parts_are_bound_to_each_other_and_serve(trained, grown, refreshed, tmp_path):
    directory, metrics = refreshed
    assert metrics == {"items": 64.0, "new_items": 4.0, "changed_items": 0.0}
    tower, before = read_json(directory / "tower.json"), read_json(trained / "tower.json")
    assert tower["tower_version"] == sha256_file(directory / "user_tower.onnx") != before["tower_version"]
    assert (tower["refreshed_from"], tower["n_items"]) == (before["tower_version"], 64)
    assert sha256_file(directory / "item_tower.onnx") == before["item_tower_sha256"] == tower["item_tower_sha256"]
    (tmp_path / "index").mkdir()
    build_index(IndexConfig(), {"snapshot": grown, "candidate": directory}, tmp_path / "index")
    scorer = CandidateScorer.load(directory, tmp_path / "index")
    assert scorer.indexed.tolist() == list(range(64))
    with pytest.raises(ReleaseError, match="tower_version"):
        CandidateScorer.load(trained, tmp_path / "index")


def test_known_histories_keep_their_vectors_and_new_items_speak_through_their_category(trained, refreshed):
    directory, _ = refreshed

    old, new = UserTower(trained / "user_tower.onnx"), UserTower(directory / "user_tower.onnx")
    items, weights = np.full((4, 8), 60, np.int64), np.zeros((4, 8), np.float32)
    items[:, 0], weights[:, 0] = [1, 16, 31, 46], 1.0
    moved = np.where(items == 60, 64, items)
    np.testing.assert_allclose(new.embed(moved, weights), old.embed(items, weights), atol=1e-6)
    moved[:, 0] = range(60, 64)  # the new item of each block
    nearest = np.argsort(-(new.embed(moved, weights) @ np.load(trained / "item_vectors.npy").T), axis=1)[:, :8]
    assert (nearest // 15 == np.arange(4)[:, None]).mean() > 0.7


def test_a_second_refresh_grows_the_refreshed_release(refreshed, grown, tmp_path):
    directory, _ = refreshed
    for name in ("items.parquet", "snapshot.json"):
        shutil.copy(grown / name, directory / name)
    again = tmp_path / "again"
    again.mkdir()
    metrics, info = refresh_vectors(RefreshVectorsConfig(), {"champion": directory, "snapshot": grown}, again)
    assert metrics == {"items": 64.0, "new_items": 0.0, "changed_items": 0.0}
    assert info["tower_version"] == read_json(directory / "tower.json")["tower_version"], "nothing changed"


def test_a_snapshot_that_does_not_extend_the_release_is_refused(champion, grown, tmp_path):
    table = pq.read_table(grown / "items.parquet")
    pq.write_table(table.take([1, 0, *range(2, 64)]), grown / "items.parquet")
    with pytest.raises(DataError, match="64 items do not begin with the release's 60"):
        refresh_vectors(RefreshVectorsConfig(), {"champion": champion, "snapshot": grown}, tmp_path)


def test_a_release_without_an_item_tower_or_with_another_one_is_refused(champion, grown, tmp_path):
    inputs = {"champion": champion, "snapshot": grown}
    write_json(champion / "tower.json", {**read_json(champion / "tower.json"), "item_tower_sha256": "0"})
    with pytest.raises(ReleaseError, match=r"item_tower.onnx: sha256 .* tower.json says another one"):
        refresh_vectors(RefreshVectorsConfig(), inputs, tmp_path)
    (champion / "item_tower.onnx").unlink()
    with pytest.raises(ReleaseError, match=r"no item_tower.onnx; .* train a new one"):
        refresh_vectors(RefreshVectorsConfig(), inputs, tmp_path)
