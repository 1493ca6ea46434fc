"""The portable item tower against the vectors that training exported."""

import numpy as np
import pytest

from stages.candidate.item_tower import PortableItemTower, padded_codes
from stages.contracts.errors import ReleaseError
from stages.contracts.files import read_json, sha256_file
from stages.contracts.snapshot import ItemTable, Snapshot


def joined(items: ItemTable, categories: list[list[int]], durations: list[float]) -> ItemTable:
    """Return ``items`` with new ones behind them."""
    n = len(categories)
    return ItemTable(
        item_id=np.concatenate([items.item_id, np.array([f"new{i}" for i in range(n)], dtype=object)]),
        title=np.concatenate([items.title, np.array([""] * n, dtype=object)]),
        created_at_ms=np.concatenate([items.created_at_ms, np.zeros(n, np.int64)]),
        duration_s=np.concatenate([items.duration_s, np.array(durations, np.float32)]),
        category_offsets=np.concatenate(
            [items.category_offsets, items.category_offsets[-1] + np.cumsum([len(codes) for codes in categories])]
        ),
        category_codes=np.concatenate(
            [items.category_codes, np.array([code for codes in categories for code in codes], np.int32)]
        ),
        n_categories=items.n_categories + 1,
    )


def test_it_gives_the_vectors_of_the_training(planted, trained):
    tower = PortableItemTower(trained / "item_tower.onnx")
    vectors, content = tower.embed(Snapshot(planted).items())
    np.testing.assert_allclose(vectors, np.load(trained / "item_vectors.npy"), atol=1e-5)
    assert (tower.n_rows, tower.n_categories, content.shape) == (60, 4, (60, 4))
    assert read_json(trained / "tower.json")["item_tower_sha256"] == sha256_file(trained / "item_tower.onnx")


def test_a_new_item_lies_among_those_of_its_category(planted, trained):
    """Items of the planted world differ in their block, which is their category."""
    items = joined(Snapshot(planted).items(), [[2], [2, 4], [], [4]], [np.nan, np.nan, np.nan, -1.0])
    vectors, content = PortableItemTower(trained / "item_tower.onnx").embed(items)
    assert vectors.shape == (64, 16)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    nearest = np.argsort(-(vectors[:60] @ vectors[60]))[:8]
    assert (nearest // 15 == 2).mean() > 0.7
    np.testing.assert_allclose(vectors[61], vectors[60], atol=1e-6, err_msg="a category unknown to the tower")
    np.testing.assert_allclose(vectors[63], vectors[62], atol=1e-6, err_msg="unknown duration and category")
    assert not content[62].any() and not content[63].any()


def test_codes_are_padded_by_the_number_of_categories(planted):
    items = joined(Snapshot(planted).items(), [[1, 3, 4], []], [1.0, 2.0])
    assert padded_codes(items, 59, 62, 4).tolist() == [[3, 4, 4], [1, 3, 4], [4, 4, 4]]


def test_another_model_is_refused(trained, tmp_path):
    with pytest.raises(ReleaseError, match=r"inputs \['history_items', 'history_weights'\], expected"):
        PortableItemTower(trained / "user_tower.onnx")
    (tmp_path / "item_tower.onnx").write_bytes(b"no model")
    with pytest.raises(ReleaseError, match="is not a loadable ONNX model"):
        PortableItemTower(tmp_path / "item_tower.onnx")
