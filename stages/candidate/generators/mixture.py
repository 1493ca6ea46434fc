"""A learned mixture of the generators' lists: a small network scores every item of a request's pool.

The candidates are the first ``candidate_k`` items by its score, ties to the lower item index. The score is the
logarithm of a probability: of each item to be the one that is touched, if it is one of the pool.
``stages.candidate.retrieval`` trains the network; here it runs on ONNX Runtime, request by request, so that a block of
requests has the scores that the server gives each of them. No torch here.

Shapes: B requests, E items of a pool, F features, S generators.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from stages.candidate.generators.mixing import MixedLists
from stages.candidate.generators.pools import Pools, mixture_features
from stages.contracts.errors import ReleaseError
from stages.contracts.item_lists import ItemLists
from stages.contracts.onnx_session import open_onnx
from stages.contracts.ragged import row_offsets
from stages.contracts.sources import SourceScores, source_code
from stages.contracts.top_k import top_k

INPUT, OUTPUT = "features", "log_probability"
_ROWS = 64
"""Requests whose pools are in memory at a time."""
_UNRANKED = np.iinfo(np.int32).max


class Mixture:
    """The exported network on one thread; threads may share it.

    Args:
        path: of ``mixture.onnx``.
        names: S generators, in the order in which the network reads them.
        pool: items of each generator's list that it reads, at most.

    Attributes:
        names, pool: as given.

    Raises:
        ReleaseError: if the file is missing, or no such network of that many features.
    """

    def __init__(self, path: Path, names: Sequence[str], pool: int) -> None:
        self.names, self.pool = tuple(names), pool
        self._session = open_onnx(path)
        found = [(entry.name, entry.shape[-1:]) for entry in self._session.get_inputs()]
        wanted = [(INPUT, [len(mixture_features(names))])]
        if found != wanted:
            raise ReleaseError(f"{path}: inputs {found}, expected {wanted} for the generators {list(names)}")
        self._codes = np.array([source_code(name) for name in names], dtype=np.int8)

    def scores(self, features_EF: np.ndarray) -> np.ndarray:
        """Return float32 ``[E]``, the log-probabilities of the items of one pool; they depend on the whole pool."""
        scores_E: np.ndarray = self._session.run([OUTPUT], {INPUT: features_EF})[0]
        return scores_E

    def mixed(self, lists: Mapping[str, ItemLists], history_lengths: np.ndarray, k: int) -> MixedLists:
        """Return the best ``k`` items of each request's pool.

        ``MixedLists.source`` is the generator whose list has the item at the best rank, of equal ranks the first by
        configuration.

        Args:
            lists: of every generator, at most ``pool`` items each.
            history_lengths: int ``[B]``, items of each request's history.
            k: ``candidate_k``. Fewer are returned only where the pool is smaller.
        """
        found: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []
        for start in range(0, len(history_lengths), _ROWS):
            rows = np.arange(start, min(start + _ROWS, len(history_lengths)))
            pools = Pools.of([lists[name].take(rows) for name in self.names], history_lengths[rows])
            found += [self._best(pools, row, k) for row in range(len(pools))]
        of_none = SourceScores.nothing(self.names, 0)
        empty = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32), of_none.scores, of_none.ranks
        ids, scores, own_scores, own_ranks = (np.concatenate(each) for each in zip(empty, *found, strict=True))
        first = np.where(own_ranks >= 0, own_ranks, _UNRANKED).argmin(axis=1)
        offsets = row_offsets([len(each[0]) for each in found])
        sources = SourceScores(self.names, own_scores, own_ranks)
        return MixedLists(ItemLists(offsets, ids, scores), self._codes[first], sources)

    def _best(self, pools: Pools, row: int, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return items, scores, and the generators' own scores and ranks of the best items of one pool."""
        entries = slice(int(pools.offsets[row]), int(pools.offsets[row + 1]))
        scores = self.scores(pools.features[entries]) if entries.start < entries.stop else np.zeros(0, np.float32)
        best = top_k(scores, k)  # the pool ascends, so that of equal scores the lower index comes first
        own = (column[entries][best] for column in (pools.ids, pools.scores, pools.ranks))
        ids, own_scores, own_ranks = own
        return ids, scores[best], own_scores, own_ranks
