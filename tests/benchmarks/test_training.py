"""What the training benchmark compares with is the same model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.plain_towers import PlainLoss, PlainTowers
from benchmarks.training import product_on_bags, uncut, write_world
from stages.candidate.data.examples import Examples
from stages.candidate.data.item_features import Catalogue
from stages.candidate.training import worker
from stages.candidate.training.batches import make_batches
from stages.candidate.training.objective import LossOfBatch

N_USERS, N_ITEMS = 30, 40


def gradient(parameter: torch.nn.Parameter) -> torch.Tensor:
    assert parameter.grad is not None
    return parameter.grad.to_dense()


@pytest.mark.parametrize("sparse", [True, False])
def test_the_plain_model_has_the_loss_and_gradients_of_the_product(tmp_path: Path, sparse: bool) -> None:
    write_world(tmp_path, N_USERS, N_ITEMS, 1)
    settings, catalogue = uncut(worker.job(tmp_path)), Catalogue.load(tmp_path)
    config = settings.candidate
    batches = make_batches(Examples.load(tmp_path), catalogue, config, settings.features)
    torch.manual_seed(3)
    ours, plain = product_on_bags(catalogue, settings, sparse=False), PlainTowers(catalogue, settings, sparse)
    tables = {"item": ours.embeddings.tables["item"], "category": ours.embeddings.tables["category"]}
    state = {f"{name}.weight": table.weight for name, table in tables.items()}
    state |= {name: value for name, value in ours.state_dict().items() if not name.startswith("embeddings.")}
    plain.load_state_dict(state)
    of_product = LossOfBatch(ours, catalogue, config, batches, torch.device("cpu"))
    of_plain = PlainLoss(plain, catalogue, config, batches)
    batch = next(batches.epoch(0))
    assert len(batch.history) == N_USERS * 20  # every touch but the first of each user, in one batch
    assert not batch.kept.all()
    expected = of_product(batch, of_product.prepare(batch))
    found = of_plain(batch, of_plain.prepare(batch))
    assert float(expected.detach()) > 1
    torch.testing.assert_close(found, expected)
    expected.backward()
    found.backward()
    for name, table in tables.items():
        torch.testing.assert_close(gradient(getattr(plain, name).weight), gradient(table.weight), rtol=1e-4, atol=1e-7)
    others = dict(plain.named_parameters())
    for name, parameter in ours.named_parameters():
        if not name.startswith("embeddings."):
            torch.testing.assert_close(gradient(others[name]), gradient(parameter), rtol=1e-4, atol=1e-7)
