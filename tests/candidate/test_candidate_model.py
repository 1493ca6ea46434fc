import numpy as np
import torch

from stages.candidate.batches import Batches
from stages.candidate.config import CandidateConfig, TrainCandidateConfig
from stages.candidate.export import category_means, item_vectors, user_tower
from stages.candidate.model import TwoTower, jagged_features
from stages.features.config import FeatureConfig

FEATURES = FeatureConfig(history_length=4, history_decay=2.0)


def forward(model, batch, catalogue):
    features = jagged_features(
        batch.history,
        batch.weights,
        batch.id_weights,
        batch.items,
        batch.item_id_weights,
        catalogue,
        torch.device("cpu"),
    )
    with torch.no_grad():
        query, item = model(features, torch.from_numpy(catalogue.log_duration[batch.items]), len(batch.history))
    return query.numpy(), item.numpy()


def naive_pooling(batch, catalogue, ids, categories):
    """The towers' inputs item by item: [weighted ids | weighted category means] of each history."""
    pooled = []
    for items, weights, id_weights in zip(batch.history, batch.weights, batch.id_weights, strict=True):
        id_part, category_part = np.zeros(ids.shape[1]), np.zeros(categories.shape[1])
        for item, weight, id_weight in zip(items, weights, id_weights, strict=True):
            if item == len(catalogue):
                continue
            id_part += id_weight * ids[item]
            codes = catalogue.codes[catalogue.offsets[item] : catalogue.offsets[item + 1]]
            if len(codes):
                category_part += weight * categories[codes].mean(axis=0)
        pooled.append(np.concatenate([id_part, category_part]))
    return np.array(pooled, np.float32)


def test_the_jagged_forward_pass_is_the_naive_one(small_world):
    examples, catalogue = small_world
    config = CandidateConfig(
        dimension=8, category_dimension=4, hidden=(6,), item_id_dropout=0.3, uniform_negatives=7, batch_size=16
    )
    torch.manual_seed(0)
    model = TwoTower(12, 5, config)
    batch = next(Batches(examples, catalogue, config, FEATURES).epoch(0))
    query, item = forward(model, batch, catalogue)
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    ids = state["embeddings.embedding_bags.item.weight"]
    categories = state["embeddings.embedding_bags.category.weight"]
    with torch.no_grad():
        pooled = torch.from_numpy(naive_pooling(batch, catalogue, ids, categories))
        np.testing.assert_allclose(query, model.query_tower(pooled[:, :8], pooled).numpy(), atol=1e-5)
        id_part = ids[batch.items] * batch.item_id_weights[:, None]
        means = category_means(categories, catalogue)[batch.items]
        inputs = np.concatenate([id_part, means, catalogue.log_duration[batch.items, None]], axis=1)
        wanted = model.item_tower(torch.from_numpy(id_part), torch.from_numpy(inputs)).numpy()
    np.testing.assert_allclose(item, wanted, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(item, axis=1), 1.0, rtol=1e-5)


def test_two_tables_separate_histories_from_candidates(small_world):
    examples, catalogue = small_world
    config = CandidateConfig(dimension=8, category_dimension=4, shared_item_table=False, batch_size=16)
    torch.manual_seed(0)
    model = TwoTower(12, 5, config)
    batch = Batches(examples, catalogue, config, FEATURES).probe(10)
    query, item = forward(model, batch, catalogue)
    with torch.no_grad():
        model.embeddings.embedding_bags["item"].weight.zero_()
    query_after, item_after = forward(model, batch, catalogue)
    np.testing.assert_array_equal(query, query_after)
    assert np.abs(item - item_after).max() > 0.1


def test_items_without_training_rows_speak_through_their_categories(small_world):
    """Item 11 never occurs: its row of the table moves neither its vector nor its part in a history."""
    _, catalogue = small_world
    settings = TrainCandidateConfig(candidate=CandidateConfig(dimension=8, category_dimension=4), features=FEATURES)
    model = TwoTower(12, 5, settings.candidate)
    state = {name: value.clone().numpy() for name, value in model.state_dict().items()}
    means = category_means(state["embeddings.embedding_bags.category.weight"], catalogue)
    before = item_vectors(state, means, catalogue, settings)
    table_before = user_tower(state, means, catalogue, settings).table.numpy()
    state["embeddings.embedding_bags.item.weight"] += 1.0
    after = item_vectors(state, means, catalogue, settings)
    table_after = user_tower(state, means, catalogue, settings).table.numpy()
    assert (np.abs(before - after).max(axis=1) > 0.01).tolist() == [True] * 11 + [False]
    np.testing.assert_array_equal(table_before[11:], table_after[11:])
    assert np.abs(means[11]).max() > 0
