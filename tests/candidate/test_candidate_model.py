import dataclasses

import numpy as np
import pytest
import torch

from stages.candidate.config import CandidateConfig, TrainCandidateConfig
from stages.candidate.export.user_tower import item_content, item_vectors, user_tower, write_onnx
from stages.candidate.onnx_towers import UserTower
from stages.candidate.training.batches import Batches
from stages.contracts.config import merged
from stages.features.config import FeatureConfig
from stages.features.history import UNKNOWN_USER
from tests.candidate.towers import build, whole_state

FEATURES = FeatureConfig(history_length=4, history_decay=2.0)
SMALL = {
    "model": {"dimension": 8, "category_dimension": 4, "word_dimension": 4, "hidden": (6,)},
    "training": {"batch_size": 16},
}


def forward(loss_of, batch):
    with torch.no_grad():
        query, item, _ = loss_of.forward(batch)
    return query.numpy(), item.numpy()


def naive_pooling(batch, catalogue, ids, categories):
    """The towers' inputs item by item: [weighted ids | weighted category means] of each history."""
    pooled = []
    for items, kept, named in zip(batch.history, batch.kept, batch.named, strict=True):
        weights = np.exp(-np.arange(4) / 2.0) * kept
        weights /= weights.sum()
        id_part, category_part = np.zeros(ids.shape[1]), np.zeros(categories.shape[1])
        for item, weight, is_named in zip(items, weights, named, strict=True):
            if item == len(catalogue):
                continue
            id_part += weight * is_named * ids[item]
            codes = catalogue.codes[catalogue.offsets[item] : catalogue.offsets[item + 1]]
            if len(codes):
                category_part += weight * categories[codes].mean(axis=0)
        pooled.append(np.concatenate([id_part, category_part]))
    return np.array(pooled, np.float32)


def test_the_jagged_forward_pass_is_the_naive_one(small_world):
    """Before training the mean's weights are those of the fixed decay by position."""
    examples, catalogue = small_world
    config = CandidateConfig(
        **merged(SMALL, {"negatives": {"shared": 7}, "training": {"item_id_dropout": 0.3, "history_dropout": 0.3}})
    )
    model, batches, loss_of = build(examples, catalogue, config, FEATURES)
    batch = next(batches.epoch(0))
    query, item = forward(loss_of, batch)
    state = whole_state(model)
    ids = state["embeddings.embedding_bags.item.weight"]
    categories = state["embeddings.embedding_bags.category.weight"]
    settings = TrainCandidateConfig(candidate=config, features=FEATURES)
    with torch.no_grad():
        pooled = torch.from_numpy(naive_pooling(batch, catalogue, ids, categories))
        wanted = torch.nn.functional.normalize(model.query_tower.correction(pooled[:, :8], pooled), dim=1)
        np.testing.assert_allclose(query, wanted.numpy(), atol=1e-5)
        id_part = torch.from_numpy(ids[batch.items] * batch.item_named[:, None])
        means = torch.from_numpy(item_content(state, catalogue, settings)[batch.items])
        duration = torch.from_numpy(catalogue.log_duration[batch.items])
        wanted = model.item_tower(id_part, means, duration, torch.zeros(len(duration), dtype=torch.int64)).numpy()
    np.testing.assert_allclose(item, wanted, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(item, axis=1), 1.0, rtol=1e-5)


def test_two_tables_separate_histories_from_candidates(small_world):
    examples, catalogue = small_world
    config = CandidateConfig(**merged(SMALL, {"model": {"shared_item_table": False}}))
    model, batches, loss_of = build(examples, catalogue, config, FEATURES)
    batch = batches.probe(10)
    query, item = forward(loss_of, batch)
    with torch.no_grad():
        for name, table in model.embeddings.embedding_bags.items():
            if name.startswith("item"):
                table.weight.zero_()
    query_after, item_after = forward(loss_of, batch)
    np.testing.assert_array_equal(query, query_after)
    assert np.abs(item - item_after).max() > 0.1


def test_items_without_training_rows_speak_through_their_content(rich_world):
    """Item 11 never occurs: its row of the table moves neither its vector nor its part in a history."""
    examples, catalogue = rich_world
    config = CandidateConfig(**merged(SMALL, {"model": {"word_buckets": 20}}))
    settings = TrainCandidateConfig(candidate=config, features=FEATURES)
    model, _, _ = build(examples, catalogue, config, FEATURES)
    state = whole_state(model)
    content = item_content(state, catalogue, settings)
    before = item_vectors(state, content, catalogue, settings)
    table_before = user_tower(state, content, catalogue, settings).ids.numpy()
    state["embeddings.embedding_bags.item.weight"] += 1.0
    after = item_vectors(state, content, catalogue, settings)
    table_after = user_tower(state, content, catalogue, settings).ids.numpy()
    assert (np.abs(before - after).max(axis=1) > 0.01).tolist() == [True] * 11 + [False]
    np.testing.assert_array_equal(table_before[11:], table_after[11:])
    assert np.abs(content[11, :4]).max() > 0
    assert np.abs(content[11, 4:]).max() > 0


EVERYTHING = {"model": {"word_buckets": 20, "user_id": True, "context": True, "item_age": True}}


@pytest.mark.parametrize("extra", [{}, EVERYTHING, {"model": {"normalisation": "dot", "shared_item_table": False}}])
@pytest.mark.parametrize("encoder", ["mean", "tastes", "attention"])
def test_the_exported_tower_is_the_trained_model(rich_world, tmp_path, encoder, extra):
    """ONNX against the forward pass for any batch, with every parameter away from where it began."""
    examples, catalogue = rich_world
    config = CandidateConfig(**merged(merged(SMALL, extra), {"model": {"encoder": encoder, "tastes": 3}}))
    settings = TrainCandidateConfig(candidate=config, features=FEATURES)
    model, _, loss_of = build(examples, catalogue, config, FEATURES)
    for parameter in model.query_tower.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    model.eval()
    state = whole_state(model)
    content = item_content(state, catalogue, settings)
    portable = user_tower(state, content, catalogue, settings)
    write_onnx(portable, tmp_path / "tower.onnx", 4)
    exported = UserTower(tmp_path / "tower.onnx")
    optional = ("context", "user") if extra == EVERYTHING else ()
    assert exported.inputs == portable.inputs == ("history_items", "history_signals", "history_ages", *optional)
    for n in (1, 2, 150):
        batch = Batches(examples, catalogue, config, FEATURES).probe(n)
        query, item = forward(loss_of, batch)
        assert query.shape == ((n, 3, 8) if encoder == "tastes" else (n, 8))
        np.testing.assert_allclose(exported.embed(batch.inputs), query, atol=2e-5, rtol=1e-4)
        vectors = item_vectors(state, content, catalogue, settings)
        np.testing.assert_allclose(vectors[batch.items], item, atol=1e-5)
    if config.model.normalisation == "cosine":
        np.testing.assert_allclose(np.linalg.norm(query, axis=-1), 1.0, rtol=1e-5)
    assert str(tmp_path.parent).encode() not in (tmp_path / "tower.onnx").read_bytes()


def test_an_unknown_user_and_one_without_examples_get_no_vector(rich_world, tmp_path):
    examples, catalogue = rich_world
    config = CandidateConfig(**merged(SMALL, {"model": {"user_id": True}}))
    settings = TrainCandidateConfig(candidate=config, features=FEATURES)
    model, batches, _ = build(examples, catalogue, config, FEATURES)
    state = whole_state(model)
    portable = user_tower(state, item_content(state, catalogue, settings), catalogue, settings)
    write_onnx(portable, tmp_path / "tower.onnx", 4)
    exported, inputs = UserTower(tmp_path / "tower.onnx"), batches.probe(5).inputs
    users = np.array([UNKNOWN_USER, 41, 42, 10**6, 3])
    same = {name: array[[0] * 5] for name, array in vars(inputs).items()}
    queries = exported.embed(dataclasses.replace(inputs, **{**same, "users": users}))
    np.testing.assert_array_equal(queries[:3], queries[1:4])
    assert np.abs(queries[4] - queries[0]).max() > 0.01


@pytest.mark.parametrize("encoder", ["mean", "tastes", "attention"])
def test_an_empty_history_has_no_say(rich_world, encoder):
    """Only the corrections' constants are left, whatever stands at the padding."""
    examples, catalogue = rich_world
    config = CandidateConfig(
        **merged(SMALL, {"model": {"encoder": encoder}, "training": {"use_empty_histories": True}})
    )
    _, batches, loss_of = build(examples, catalogue, config, FEATURES)
    loss_of.model.eval()
    empty = np.flatnonzero(examples.end == examples.start)[:2]
    batch = batches.probe(len(examples))
    query, _ = forward(loss_of, batch)
    assert np.isfinite(query).all()
    np.testing.assert_array_equal(query[empty[0]], query[empty[1]])
    other = dataclasses.replace(batch, signals=batch.signals + (~batch.kept), ages=batch.ages + 77 * ~batch.kept)
    np.testing.assert_allclose(forward(loss_of, other)[0], query, atol=1e-6)
