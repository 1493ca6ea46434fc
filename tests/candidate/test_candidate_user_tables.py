"""A user tower that grows by new items reads them as the training's own modules do."""

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from stages.candidate.export import user_tower_tables as user_tables
from stages.candidate.export.item_tower import write_item_tower
from stages.candidate.export.user_tower import item_content, user_tower, write_onnx
from stages.candidate.export.user_tower_tables import content_of, extended, item_tables
from stages.candidate.onnx_towers import PortableItemTower, UserTower
from stages.contracts.config import merged
from stages.contracts.errors import DataError, ReleaseError
from tests.candidate.grown import BUCKETS, LATER_MS, NEW, N, grow, models

RICH = {"model": {"word_buckets": BUCKETS, "user_id": True, "context": True, "item_age": True}}
KINDS = [
    merged(extra, {"model": {"encoder": encoder, "tastes": 3}})
    for encoder in ("mean", "tastes", "attention")
    for extra in (RICH, {"model": {"normalisation": "dot", "shared_item_table": False}})
]


@pytest.fixture(scope="module")
def exported(small_world, tmp_path_factory):
    """Return a function that writes both towers of a kind of model, once, and returns the user tower's own copy.

    With it come the directory, the items, and the batches and the loss of the grown world.
    """
    made = {}

    def export(**changes):
        key = repr(changes)
        if key not in made:
            directory = tmp_path_factory.mktemp("towers")
            settings, items, catalogue, state, batches, loss_of = models(small_world, **changes)
            tower = user_tower(state, item_content(state, catalogue, settings), catalogue, settings)
            write_onnx(tower, directory / "user.onnx", settings.features.history_length)
            write_item_tower(state, catalogue, settings, directory / "item.onnx")
            made[key] = directory, items, batches, loss_of
        return onnx.load_model(str(made[key][0] / "user.onnx")), *made[key]

    return export


def initializers(model):
    return {entry.name: numpy_helper.to_array(entry) for entry in model.graph.initializer}


@pytest.mark.parametrize("changes", KINDS, ids=str)
def test_the_grown_towers_are_the_training_forward_pass(exported, tmp_path, changes):
    """Query and item vectors against the model whose tables were grown by rows of zeros; N = U = V."""
    model, directory, items, batches, loss_of = exported(**changes)
    before = initializers(model)
    vectors, content = PortableItemTower(directory / "item.onnx").embed(grow(items), LATER_MS)
    onnx.save_model(extended(model, N, content), str(tmp_path / "grown.onnx"))
    batch = batches.probe(200)
    with torch.no_grad():
        query, item, _ = loss_of.forward(batch)
    assert {N, N + 1} <= set(batch.items) and {N, N + 1} <= set(batch.history[batch.history < N + NEW])
    tower = UserTower(tmp_path / "grown.onnx")
    np.testing.assert_allclose(tower.embed(batch.inputs), query.numpy(), atol=3e-5, rtol=1e-4)
    np.testing.assert_allclose(vectors[batch.items], item.numpy(), atol=2e-5, rtol=1e-4)
    after = initializers(onnx.load_model(str(tmp_path / "grown.onnx")))
    assert {name: array.shape for name, array in after.items() if array.shape[:1] == (N + NEW + 1,)} == {
        "ids": (N + NEW + 1, 8),
        "content": (N + NEW + 1, content.shape[1]),
        "is_item": (N + NEW + 1, 1),
    }
    kept = set(before) - {"ids", "content", "is_item"}
    assert all(np.array_equal(before[name], after[name]) for name in kept)
    assert ({"users", "contexts"} <= kept) == ("user_id" in changes["model"])


@pytest.mark.parametrize("encoder", ["mean", "tastes", "attention"])
def test_a_new_item_in_a_history_is_no_padding(exported, tmp_path, encoder):
    model, directory, items, batches, _ = exported(model={"encoder": encoder, "word_buckets": BUCKETS})
    _, content = PortableItemTower(directory / "item.onnx").embed(grow(items), LATER_MS)
    onnx.save_model(extended(model, N, content), str(tmp_path / "grown.onnx"))
    inputs = batches.probe(3).inputs
    inputs.items[:] = N + NEW
    inputs.signals[:], inputs.ages[:] = 0, 0
    inputs.items[1, 0] = N
    inputs.items[2, :2] = N, 5
    empty, new, both = UserTower(tmp_path / "grown.onnx").embed(inputs)
    assert np.abs(new - empty).max() > 0.01 and np.abs(both - new).max() > 0.01


def test_nothing_new_changes_no_byte(exported):
    model, directory, *_ = exported(**KINDS[0])
    same = extended(model, N, content_of(model, N).copy())
    assert same.SerializeToString() == (directory / "user.onnx").read_bytes()


def test_tables_are_recognised_by_name_and_size(exported):
    model, *_ = exported(**KINDS[0])
    assert list(item_tables(model, N)) == ["ids", "content", "is_item"]
    with pytest.raises(ReleaseError, match=r"of 12 rows are expected, found \{'ids': \[13, 8\], .*train a new one"):
        item_tables(model, N - 1)
    next(entry for entry in model.graph.initializer if entry.name == "content").name = "other"
    with pytest.raises(ReleaseError, match=r"found \{'ids': \[13, 8\], 'is_item': \[13, 1\]\}"):
        item_tables(model, N)


def test_more_than_one_file_holds_is_refused(exported, monkeypatch):
    model, *_ = exported(**KINDS[0])
    monkeypatch.setattr(user_tables, "PROTOBUF_LIMIT", model.ByteSize())
    with pytest.raises(DataError, match=r"14 items make \d+ bytes, one ONNX file holds \d+; train a new release"):
        extended(model, N, np.zeros((N + NEW, content_of(model, N).shape[1]), np.float32))
