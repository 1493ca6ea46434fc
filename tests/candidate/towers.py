"""Helpers of the tests of towers: models without a process group, fitted on worlds with a known answer."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from stages.candidate.config import CandidateConfig, TrainCandidateConfig
from stages.candidate.data.examples import Examples
from stages.candidate.data.item_features import Catalogue
from stages.candidate.towers.table_parts import WHOLE, part_of
from stages.candidate.towers.two_tower import TwoTower, sizes_of
from stages.candidate.training.batches import Batches, make_batches
from stages.candidate.training.objective import LossOfBatch
from stages.features.config import FeatureConfig

CPU = torch.device("cpu")


def plain_catalogue(examples: Examples, n_items: int, **changes) -> Catalogue:
    """Items without categories, all of them eligible and in histories."""
    catalogue = Catalogue(
        offsets=np.zeros(n_items + 1, np.int64),
        codes=np.zeros(0, np.int64),
        log_duration=np.zeros(n_items, np.float32),
        frequency=np.bincount(examples.items[examples.usable(False)], minlength=n_items),
        in_histories=np.ones(n_items, bool),
        eligible=np.arange(n_items),
    )
    return dataclasses.replace(catalogue, **changes)


def build(examples: Examples, catalogue: Catalogue, config: CandidateConfig, features: FeatureConfig):
    """Return an untrained model, its batches and its loss."""
    torch.manual_seed(config.training.seed)
    model = TwoTower(sizes_of(catalogue, TrainCandidateConfig(candidate=config, features=features)), config.model)
    batches = make_batches(examples, catalogue, config, features)
    return model, batches, LossOfBatch(model, catalogue, config, batches, CPU)


def joined(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the arrays with those of parts of tables put together."""
    found: dict[str, np.ndarray] = {}
    for name, value in state.items():
        whole, part = part_of(name)
        if part != WHOLE and whole not in found:
            rows = sum(len(own) for other, own in state.items() if part_of(other)[0] == whole)
            found[whole] = np.full((rows, *value.shape[1:]), np.nan, value.dtype)
        if part == WHOLE:
            found[name] = value
        else:
            found[whole][part.rows] = value
    return found


def whole_state(model: torch.nn.Module) -> dict[str, np.ndarray]:
    """Return copies of a model's weights as a finished training leaves them."""
    return joined({name: value.clone().numpy() for name, value in model.state_dict().items()})


def load_whole(model: torch.nn.Module, state: dict[str, np.ndarray]) -> None:
    """Fill a model with weights that ``whole_state`` returned."""
    named = {name: part_of(name) for name in model.state_dict()}
    model.load_state_dict(
        {
            name: torch.from_numpy(state[whole][part.rows] if state[whole].ndim else state[whole])
            for name, (whole, part) in named.items()
        }
    )


def fit(examples: Examples, catalogue: Catalogue, config: CandidateConfig, features: FeatureConfig):
    """Train with Adam alone; return the model in evaluation mode and its loss."""
    model, batches, loss_of = build(examples, catalogue, config, features)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.optimizer.dense_learning_rate)
    for epoch in range(config.training.epochs):
        for batch in batches.epoch(epoch):
            optimizer.zero_grad()
            loss_of(batch).backward()
            optimizer.step()
    model.eval()
    return model, loss_of


def scores(loss_of: LossOfBatch, examples: Examples, catalogue: Catalogue, features: FeatureConfig, candidates):
    """Return float ``[B, C]``, each usable example against ``candidates``; the best taste counts."""
    config = CandidateConfig(distributed={"device": "cpu"})
    batch = Batches(examples, catalogue, config, features).probe(len(examples))
    candidates = np.asarray(candidates, np.int64)
    batch = dataclasses.replace(
        batch, items=candidates, item_named=np.ones(len(candidates), bool), item_ages=np.zeros(len(candidates), int)
    )
    with torch.no_grad():
        query, vectors, _ = loss_of.forward(batch)
    product = query.numpy() @ vectors.numpy().T
    return product.max(axis=1) if product.ndim == 3 else product
