"""Ranks held-out items after an epoch, by the model as it is then: the figures that end a training early.

The ranks share the work: each embeds its share of the users and of the items, and keeps the best k of its items for all
users. No rank needs memory for all item vectors, only for J x (k + ``ITEMS``) scores.

Shapes: J judged users, T held-out items of all of them, N items that may be answers, C items of a chunk, D dimensions
(or T tastes x D), L history length, k answers, R ranks.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from stages.candidate.config import TrainCandidateConfig
from stages.candidate.data.examples import Examples
from stages.candidate.data.item_features import Catalogue
from stages.candidate.distributed.candidate_exchange import Share, part
from stages.candidate.training.batches import Batch
from stages.candidate.training.held_out import HeldOut
from stages.candidate.training.objective import LossOfBatch
from stages.contracts.ndcg import discounts
from stages.contracts.ragged import ranges
from stages.features.history import TowerInputs

USERS, ITEMS = 256, 4096
"""Histories and items that a rank embeds at a time."""


class Judge:
    """Judges a training's model on the held-out items.

    Each user is asked for once, with the history that training knows; items of that history are no answers. Items
    without training rows are judged without their ids, as they are exported.

    Args:
        held_out: users, requests and items.
        examples: of the training, without what is held out.
        catalogue: of the training.
        settings: of the training, with ``early_stopping``.
        loss_of: holds the model.
    """

    def __init__(
        self,
        held_out: HeldOut,
        examples: Examples,
        catalogue: Catalogue,
        settings: TrainCandidateConfig,
        loss_of: LossOfBatch,
    ) -> None:
        self._held, self._examples, self._catalogue = held_out, examples, catalogue
        self._length, self._loss_of = settings.features.history_length, loss_of
        self._items_N = catalogue.eligible
        self._named_N = np.append(catalogue.named_in_histories(settings.candidate.model.shared_item_table), False)
        stopping = settings.candidate.training.early_stopping
        if stopping is None:
            raise ValueError("there is nothing to judge without candidate.training.early_stopping")
        self._k = min(stopping.k, len(self._items_N))
        self._start_J = np.searchsorted(examples.users, held_out.users)
        self._end_J = np.searchsorted(examples.users, held_out.users, side="right")
        sizes_J = self._end_J - self._start_J
        seen = examples.items[ranges(self._start_J, sizes_J)].astype(np.int64)
        user = np.repeat(np.arange(len(held_out)), sizes_J)
        order = np.argsort(seen, kind="stable")
        self._seen, self._seen_by = seen[order], user[order]

    def __call__(self) -> dict[str, float]:
        """Return the mean user's ``recall`` and ``ndcg``, the same on every rank; every rank takes part."""
        model: nn.Module = self._loss_of.model
        was_training = model.training
        model.eval()
        try:
            with torch.no_grad():
                best_Jk = self._best()
        finally:
            model.train(was_training)
        return figures(best_Jk, self._held)

    def _best(self) -> np.ndarray:
        """Return int64 ``[J, k]``, the best items of each user, best first; -1 where there are too few."""
        rank, world = dist.get_rank(), dist.get_world_size()
        own_J, own_N = part(len(self._held), rank, world), part(len(self._items_N), rank, world)
        # All ranks embed equally often: a lookup is a collective.
        n_users = math.ceil(math.ceil(len(self._held) / world) / USERS)
        n_items = math.ceil(math.ceil(len(self._items_N) / world) / ITEMS)
        queries = [self._queries(users) for users in _chunks(own_J, n_users, USERS)]
        query_JD = torch.cat(_gathered(torch.cat(queries)))
        scores_Jk = torch.full((len(query_JD), self._k), -torch.inf, device=query_JD.device)
        best_Jk = torch.full(scores_Jk.shape, -1, dtype=torch.int64, device=query_JD.device)
        for rows in _chunks(own_N, n_items, ITEMS):
            vectors_CD = self._vectors(self._items_N[rows])
            found_JC = self._scores(query_JD, vectors_CD, self._items_N[rows])
            items_JC = torch.from_numpy(self._items_N[rows]).to(best_Jk.device).expand(found_JC.shape)
            scores_Jk, best_Jk = _merged([scores_Jk, found_JC], [best_Jk, items_JC], self._k)
        _, best_Jk = _merged(_gathered(scores_Jk), _gathered(best_Jk), self._k)
        answers_Jk: np.ndarray = best_Jk.cpu().numpy()
        return answers_Jk

    def _queries(self, users: slice) -> torch.Tensor:
        """Return the vectors of some users; none of an empty slice, which takes part in the lookup all the same."""
        some = users if users.stop > users.start else slice(0, 1)
        last = self._end_J[some] - 1
        window = (self._start_J[some], self._end_J[some], self._held.asked_ms[some], last)
        inputs = self._examples.window(*window, self._length, len(self._catalogue))
        context = self._examples.moments[self._held.contexts[some]].astype(np.int64)
        inputs = dataclasses.replace(inputs, context=context)
        query_BD, _, _ = self._loss_of.forward(self._batch(inputs, self._items_N[:1]))
        return query_BD.float()[: users.stop - users.start]

    def _vectors(self, items_C: np.ndarray) -> torch.Tensor:
        """Return the vectors of items; as ``_queries``."""
        some = items_C if len(items_C) else self._items_N[:1]
        window = (self._start_J[:1], self._end_J[:1], self._held.asked_ms[:1], self._end_J[:1] - 1)
        inputs = self._examples.window(*window, self._length, len(self._catalogue))
        _, vectors_CD, _ = self._loss_of.forward(self._batch(inputs, some))
        return vectors_CD.float()[: len(items_C)]

    def _batch(self, inputs: TowerInputs, items: np.ndarray) -> Batch:
        catalogue = self._catalogue
        return Batch(
            history=inputs.items,
            signals=inputs.signals,
            ages=inputs.ages,
            users=inputs.users,
            context=inputs.context,
            kept=inputs.items < len(catalogue),
            named=self._named_N[inputs.items],
            items=items,
            item_named=catalogue.frequency[items] > 0,
            item_ages=catalogue.ages(items, catalogue.end_ms),
            candidates=items,
            share=Share.even(len(inputs), 0, 0, 1),
        )

    def _scores(self, query_JD: torch.Tensor, vectors_CD: torch.Tensor, items_C: np.ndarray) -> torch.Tensor:
        """Return float32 ``[J, C]``, minus infinity for items of a user's history; of several tastes the best."""
        scores_JC = query_JD @ vectors_CD.T
        if scores_JC.dim() == 3:
            scores_JC = scores_JC.amax(dim=1)
        if len(items_C):
            first, stop = np.searchsorted(self._seen, [items_C[0], items_C[-1] + 1])
            seen, user = self._seen[first:stop], self._seen_by[first:stop]
            column = np.minimum(np.searchsorted(items_C, seen), len(items_C) - 1)
            known = items_C[column] == seen
            place = (torch.from_numpy(each[known]).to(scores_JC.device) for each in (user, column))
            scores_JC[tuple(place)] = -torch.inf
        return scores_JC


def figures(best_Jk: np.ndarray, held_out: HeldOut) -> dict[str, float]:
    """Return the mean user's figures: recall divides by all held-out items, NDCG is binary.

    Args:
        best_Jk: int64, answers of each user, best first.
        held_out: what was wanted.
    """
    k, n_J = best_Jk.shape[1], np.diff(held_out.offsets)
    span = int(max(best_Jk.max(), held_out.items.max())) + 2
    row_T = np.repeat(np.arange(len(held_out)), n_J)
    hits_Jk = np.isin(best_Jk + np.arange(len(best_Jk))[:, None] * span, held_out.items + row_T * span)
    hits_Jk &= best_Jk >= 0
    gains_k = discounts(np.arange(k), k)
    ideal_J = np.cumsum(gains_k)[np.minimum(n_J, k) - 1]
    return {"recall": float((hits_Jk.sum(axis=1) / n_J).mean()), "ndcg": float((hits_Jk @ gains_k / ideal_J).mean())}


def _chunks(own: slice, n: int, size: int) -> list[slice]:
    """Return ``n`` slices of ``own``, the last ones empty where others have more."""
    starts = [min(own.start + number * size, own.stop) for number in range(n)]
    return [slice(start, min(start + size, own.stop)) for start in starts]


def _gathered(own: torch.Tensor) -> list[torch.Tensor]:
    """Return what all ranks have; sizes of the first dimension may differ."""
    world = dist.get_world_size()
    if world == 1:
        return [own]
    sizes = torch.zeros(world, dtype=torch.int64, device=own.device)
    sizes[dist.get_rank()] = len(own)
    dist.all_reduce(sizes)
    padded = own.new_zeros(int(sizes.max()), *own.shape[1:])
    padded[: len(own)] = own
    every = [torch.empty_like(padded) for _ in range(world)]
    dist.all_gather(every, padded)
    return [each[:size] for each, size in zip(every, sizes.tolist(), strict=True)]


def _merged(scores: list[torch.Tensor], items: list[torch.Tensor], k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the k best of several lists ``[J, …]``, best first, of equal ones the lower item."""
    best, place = torch.cat(scores, dim=1).topk(k, dim=1)
    named = torch.cat(items, dim=1).gather(1, place).masked_fill_(best == -torch.inf, -1)
    named, order = named.sort(dim=1)
    best, by_score = best.gather(1, order).sort(dim=1, descending=True, stable=True)
    return best, named.gather(1, by_score)
