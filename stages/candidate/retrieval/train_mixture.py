"""Trains the network of a learned mixture, and exports it.

For each request the loss is the cross-entropy between the softmax over its pool and its targets, each of which weighs
1 / the number of the request's targets. Pools have different sizes and are not padded.

Shapes: B requests, E items of all pools of a batch, F features, S generators.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

from stages.candidate.export.onnx_export import onnx_model
from stages.candidate.generators.config import MixtureConfig
from stages.candidate.generators.mixture import INPUT, OUTPUT, Mixture
from stages.candidate.generators.pools import ITEM_FEATURES
from stages.candidate.retrieval.listed_requests import ListedRequests
from stages.contracts.errors import DataError
from stages.contracts.memory import require_memory
from stages.contracts.progress import progress_of

PARITY = 1e-5
"""Largest difference between a score of the exported network and of training, relative where scores are above 1."""
_START = {"share": 0.2, "reciprocal_rank": 0.2}
"""First weights of the linear sum; the others are 0, so that training begins near a fusion of shares and ranks."""
_PROBED = 64
"""Requests whose scores are compared after the export."""


class MixtureNetwork(nn.Module):  # type: ignore[misc]
    """A linear sum of what each list says of an item, plus two hidden layers on all features.

    Args:
        n_sources: S.
        hidden: width of the hidden layers.
    """

    def __init__(self, n_sources: int, hidden: int) -> None:
        super().__init__()
        self.of_items = len(ITEM_FEATURES) * n_sources
        width = self.of_items + 1 + n_sources
        self.sum = nn.Linear(self.of_items, 1, bias=False)
        with torch.no_grad():
            own = [_START.get(feature, 0.0) for feature in ITEM_FEATURES]
            self.sum.weight.copy_(torch.tensor(own * n_sources)[None])
        self.rest = nn.Sequential(
            nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1)
        )

    def logits(self, features_EF: torch.Tensor) -> torch.Tensor:
        """Return a float32 number for each item ``[E]``; only differences within a pool mean anything."""
        logits: torch.Tensor = self.sum(features_EF[:, : self.of_items]) + self.rest(features_EF)
        return logits[:, 0]

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return float32 log-probabilities ``[E]`` of the items of one pool."""
        return torch.log_softmax(self.logits(features), dim=0)


@dataclass(frozen=True)
class Trained:
    """A trained network.

    Attributes:
        network: with the weights of the best epoch.
        epochs: after which those weights were taken; 0 for the first weights.
        loss: mean on the validation requests that have a target in their pool.
    """

    network: MixtureNetwork
    epochs: int
    loss: float


def train_mixture(train: ListedRequests, validation: ListedRequests, config: MixtureConfig) -> Trained | None:
    """Train on earlier requests, and keep the weights of the epoch with the smallest loss on later ones.

    Requests without a target in their pool teach nothing and are left out.

    Args:
        train: the earlier requests.
        validation: the later requests.
        config: size of the network, and its training.

    Returns:
        None where no request of either has a target in its pool.

    Raises:
        ConfigError: if a batch will not fit the memory.
        DataError: if the loss is not a finite number.
    """
    taught, judged = _with_hits(train), _with_hits(validation)
    if not len(taught) or not len(judged):
        return None
    _require_memory(taught, config)
    rng = np.random.default_rng(config.seed)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        network = MixtureNetwork(len(taught.listed.lists), config.hidden)
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.learning_rate)
    steps = config.epochs * -(-len(taught) // config.batch_requests)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.learning_rate, total_steps=max(steps, 2))
    best = Trained(copy.deepcopy(network), 0, _mean_loss(network, judged, config.batch_requests))
    with progress_of("mixture", config.epochs * len(taught), "request") as advance:
        for epoch in range(1, config.epochs + 1):
            _train_epoch(network, taught, rng.permutation(len(taught)), config, (optimizer, schedule), advance)
            loss = _mean_loss(network, judged, config.batch_requests)
            if not np.isfinite(loss):
                raise DataError(f"train_sources: the mixture's loss is {loss}; lower sources.mixture.learning_rate")
            if loss < best.loss:
                best = Trained(copy.deepcopy(network), epoch, loss)
            elif epoch - best.epochs >= config.patience:
                break
    best.network.eval()
    return best


def write_mixture(trained: Trained, requests: ListedRequests, path: Path, pool: int) -> tuple[Mixture, float]:
    """Write the network as an ONNX file, and compare its scores with those of training.

    Args:
        trained: the network.
        requests: whose pools are scored; the first ones are compared.
        path: of the file.
        pool: items of each list that the network reads, at most.

    Returns:
        The exported network, and the largest difference.

    Raises:
        DataError: if the difference is above ``PARITY``.
    """
    network = trained.network
    example = {INPUT: torch.zeros(3, network.of_items + 1 + len(requests.listed.lists))}
    onnx.save_model(onnx_model(network, example, [OUTPUT], {INPUT: {0: "items"}}), str(path))
    mixture = Mixture(path, tuple(requests.listed.lists), pool)
    pools = requests.take(np.arange(min(_PROBED, len(requests)))).pools()
    deviation = 0.0
    with torch.inference_mode():
        for row in np.flatnonzero(np.diff(pools.offsets)):
            features = pools.features[pools.offsets[row] : pools.offsets[row + 1]]
            expected = network(torch.from_numpy(features)).numpy()
            gap = np.abs(mixture.scores(features) - expected) / np.maximum(np.abs(expected), 1)
            deviation = max(deviation, float(gap.max()))
    if not deviation <= PARITY:
        raise DataError(f"{path.name}: differs by {deviation:.2g} from the trained mixture, allowed is {PARITY:g}")
    return mixture, deviation


def _with_hits(requests: ListedRequests) -> ListedRequests:
    """Return the requests that have a target in one of their lists."""
    hits = np.zeros(len(requests))
    for lists in requests.listed.lists.values():
        gains = requests.gains(lists.offsets, lists.ids)
        hits += np.bincount(np.repeat(np.arange(len(requests)), lists.lengths), gains, minlength=len(requests))
    return requests.take(np.flatnonzero(hits > 0))


def _train_epoch(
    network: MixtureNetwork,
    requests: ListedRequests,
    order: np.ndarray,
    config: MixtureConfig,
    steppers: tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler],
    advance: Callable[[int], object],
) -> None:
    optimizer, schedule = steppers
    for start in range(0, len(order), config.batch_requests):
        batch = requests.take(order[start : start + config.batch_requests])
        optimizer.zero_grad()
        (_loss(network, batch) / len(batch)).backward()
        optimizer.step()
        schedule.step()
        advance(len(batch))


def _mean_loss(network: MixtureNetwork, requests: ListedRequests, size: int) -> float:
    total = 0.0
    with torch.inference_mode():
        for start in range(0, len(requests), size):
            total += float(_loss(network, requests.take(np.arange(start, min(start + size, len(requests))))))
    return total / len(requests)


def _loss(network: MixtureNetwork, requests: ListedRequests) -> torch.Tensor:
    """Return the sum of the requests' losses; each has an item in its pool."""
    pools = requests.pools()
    gains = torch.from_numpy(requests.gains(pools.offsets, pools.ids).astype(np.float32))
    row = torch.from_numpy(np.repeat(np.arange(len(pools)), np.diff(pools.offsets)))
    logits = network.logits(torch.from_numpy(pools.features))
    largest = torch.full((len(pools),), -torch.inf).scatter_reduce(0, row, logits.detach(), "amax")
    shifted = logits - largest[row]
    sums = torch.zeros(len(pools)).index_add(0, row, shifted.exp())
    return -(gains * (shifted - sums.log()[row])).sum()


def _require_memory(requests: ListedRequests, config: MixtureConfig) -> None:
    """Check the pools of the largest batch, and what the network computes of them: forward, backward and exponents."""
    n_sources = len(requests.listed.lists)
    sizes = np.sort(np.sum([each.lengths for each in requests.listed.lists.values()], axis=0))
    width = (len(ITEM_FEATURES) + 1) * n_sources + 1
    needed = int(sizes[-config.batch_requests :].sum()) * 4 * (2 * width + 8 * config.hidden + 2 * n_sources + 16)
    settings = "sources.mixture.batch_requests, sources.mixture.pool or sources.mixture.hidden"
    require_memory("train_sources (a batch of the mixture)", needed, settings)
