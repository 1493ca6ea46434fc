"""DCN-v2 with a head for each task, on top of the light ranker's score.

Shapes: n rows, W input width, T tasks, E networks of the ensemble.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stages.heavy_ranker.config import NetworkConfig

_CLIP = 8.0
"""Standardised inputs are clipped to this size, so that an outlier at serving time cannot blow up the cross layers."""


class CrossLayer(nn.Module):  # type: ignore[misc]
    """``x0 * (W x + b) + x``, with ``W = U V`` of a given rank or full (Wang et al., 2021, eq. 1 and 2)."""

    def __init__(self, width: int, rank: int | None) -> None:
        super().__init__()
        self.project: nn.Module
        if rank is None or rank >= width:
            self.project = nn.Linear(width, width)
        else:
            self.project = nn.Sequential(nn.Linear(width, rank, bias=False), nn.Linear(rank, width))

    def forward(self, x0: Tensor, x: Tensor) -> Tensor:
        """Cross ``x [..., W]`` with the first layer's input ``x0 [..., W]``."""
        return x0 * self.project(x) + x


class DCN(nn.Module):  # type: ignore[misc]
    """One Deep and Cross Network, version 2 (Wang et al., WWW 2021)."""

    def __init__(self, width: int, n_tasks: int, config: NetworkConfig) -> None:
        super().__init__()
        self.stacked = config.structure == "stacked"
        self.cross = nn.ModuleList(CrossLayer(width, config.cross_rank) for _ in range(config.cross_layers))
        layers: list[nn.Module] = []
        last = width
        for size in config.deep_layers:
            layers += [nn.Linear(last, size), nn.ReLU(), nn.Dropout(config.dropout)]
            last = size
        self.deep = nn.Sequential(*layers)
        self.head = nn.Linear(last if self.stacked else last + width, n_tasks)
        # Near zero: the network starts as the light ranker and moves only where the data says so.
        nn.init.normal_(self.head.weight, std=1e-3)
        nn.init.zeros_(self.head.bias)

    def forward(self, x0: Tensor) -> Tensor:
        """Return logits ``[..., T]`` of standardised inputs ``[..., W]``."""
        x = x0
        for layer in self.cross:
            x = layer(x0, x)
        if self.stacked:
            return self.head(self.deep(x))  # type: ignore[no-any-return]
        return self.head(torch.cat([x, self.deep(x0)], dim=-1))  # type: ignore[no-any-return]


class HeavyRanker(nn.Module):  # type: ignore[misc]
    """An ensemble of DCN-v2 networks, each a correction of the Platt-scaled light score.

    ``logit_t = slope_t * light_score + bias_t + network_t(standardised input)``; the exported
    probabilities are the sigmoid of the networks' mean logit. The standardisation is part of the model, so that serving
    passes raw features.

    Args:
        mean, std: float ``[W]`` of the training rows.
        platt: float ``[2, T]``, slope and bias that turn the light score into each task's logit.
        light_column: column of the input that holds the light score.
        config: shape of each network.
        ensemble: E.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, mean: Tensor, std: Tensor, platt: Tensor, light_column: int, config: NetworkConfig, ensemble: int
    ) -> None:
        super().__init__()
        self.light_column = light_column
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        width, n_tasks = len(mean), platt.shape[1]
        self.networks = nn.ModuleList(DCN(width, n_tasks, config) for _ in range(ensemble))
        self.slope = nn.Parameter(platt[0].repeat(ensemble, 1))
        self.bias = nn.Parameter(platt[1].repeat(ensemble, 1))

    def member_logits(self, inputs: Tensor) -> Tensor:
        """Return logits ``[E, ..., T]`` of raw inputs ``[..., W]``."""
        x = ((inputs - self.mean) / self.std).clamp(-_CLIP, _CLIP)
        light = inputs[..., self.light_column].unsqueeze(-1)
        logits = [
            self.slope[member] * light + self.bias[member] + network(x) for member, network in enumerate(self.networks)
        ]
        return torch.stack(logits)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return probabilities ``[n, T]`` of raw inputs ``[n, W]``."""
        return torch.sigmoid(self.member_logits(inputs).mean(dim=0))
