from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from stages.heavy_ranker.config import NetworkConfig
from stages.heavy_ranker.model import DCN, CrossLayer, HeavyRanker

WIDTH = 7


def random_input(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, WIDTH, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("rank", [None, 3])
def test_a_cross_layer_is_the_published_formula(rank: int | None) -> None:
    layer = CrossLayer(WIDTH, rank)
    parameters = [parameter.detach().numpy().astype(np.float64) for parameter in layer.parameters()]
    if rank is None:
        matrix, bias = parameters
    else:
        matrix, bias = parameters[1] @ parameters[0], parameters[2]
    x0, x = random_input(2).numpy(), random_input(3)[1:].numpy()
    expected = x0 * (x @ matrix.T + bias) + x
    found = layer(torch.from_numpy(x0), torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rank", [None, 3])
def test_stacked_cross_layers_agree_with_torchrec(rank: int | None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own imports warn of operators that a CPU build lacks
        from torchrec.modules.crossnet import CrossNet, LowRankCrossNet

    theirs = CrossNet(WIDTH, 2) if rank is None else LowRankCrossNet(WIDTH, 2, rank)
    ours = [CrossLayer(WIDTH, rank) for _ in range(2)]
    with torch.no_grad():
        for number, layer in enumerate(ours):
            theirs.bias[number].normal_()
            if rank is None:
                layer.project.weight.copy_(theirs.kernels[number])
                layer.project.bias.copy_(theirs.bias[number].flatten())
            else:
                layer.project[0].weight.copy_(theirs.V_kernels[number])
                layer.project[1].weight.copy_(theirs.W_kernels[number])
                layer.project[1].bias.copy_(theirs.bias[number].flatten())
    x = x0 = random_input(5)
    for layer in ours:
        x = layer(x0, x)
    torch.testing.assert_close(x, theirs(x0))


def test_a_rank_that_saves_nothing_makes_a_full_matrix() -> None:
    assert isinstance(CrossLayer(WIDTH, WIDTH).project, torch.nn.Linear)


@pytest.mark.parametrize("structure", ["parallel", "stacked"])
@pytest.mark.parametrize("deep_layers", [(), (6, 4)])
def test_both_structures_answer_every_task(structure: str, deep_layers: tuple[int, ...]) -> None:
    config = NetworkConfig(structure=structure, deep_layers=deep_layers, cross_rank=2)
    assert DCN(WIDTH, 3, config)(random_input(4, 5)).shape == (4, 5, 3)


def heavy_ranker(ensemble: int = 2) -> HeavyRanker:
    return HeavyRanker(
        mean=torch.full((WIDTH,), 3.0),
        std=torch.full((WIDTH,), 2.0),
        platt=torch.tensor([[0.5, 1.0], [-2.0, -3.0]]),
        light_column=4,
        config=NetworkConfig(dropout=0.0, deep_layers=(8,)),
        ensemble=ensemble,
    ).eval()


def test_before_training_the_light_ranker_decides() -> None:
    inputs = random_input(50)
    probabilities = heavy_ranker()(inputs)
    expected = torch.sigmoid(inputs[:, 4:5] * torch.tensor([0.5, 1.0]) + torch.tensor([-2.0, -3.0]))
    torch.testing.assert_close(probabilities, expected, atol=0.02, rtol=0)


def test_the_ensemble_averages_logits() -> None:
    model = heavy_ranker(ensemble=3)
    members = model.member_logits(random_input(6))
    assert members.shape == (3, 6, 2)
    assert not torch.equal(members[0], members[1])
    torch.testing.assert_close(model(random_input(6)), torch.sigmoid(members.mean(dim=0)))


def test_outliers_are_cut_but_the_light_score_is_not() -> None:
    model = heavy_ranker()
    far, further = torch.zeros(2, WIDTH)
    far[0], further[0] = 1e3, 1e6
    torch.testing.assert_close(model(far[None]), model(further[None]))
    far[4], further[4] = 30.0, 40.0
    assert (model.member_logits(further[None]) > model.member_logits(far[None])).all()
