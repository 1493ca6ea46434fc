"""Runs both exported towers on ONNX Runtime; no torch here.

The item tower also embeds items that were created after the training. Their content goes through
``item_tower.onnx`` as in training. An item without a row in the trained table has a zero id embedding,
like an item whose id was hidden in training.

Shapes: B items, D dimensions, K content dimensions, M entries of a bag at most, N items.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from stages.candidate.data.words import hashed_words
from stages.contracts.errors import ReleaseError
from stages.contracts.onnx_session import open_onnx
from stages.contracts.progress import progress_of
from stages.contracts.snapshot import ItemTable
from stages.features.history import TowerInputs, age_seconds

_ALWAYS = ("item_rows", "category_codes", "duration_s")
INPUTS = (*_ALWAYS, "word_codes", "age_s")
"""What an item tower may read, by the names of its ONNX inputs; the last two are optional."""
OUTPUTS = ("vector", "content")
SIZES = ("n_rows", "n_categories", "n_words")
"""Keys of the file's metadata: items with an id embedding, categories, buckets of words."""
_BLOCK, _ENTRIES = 1 << 14, 1 << 18
"""Most items embedded at a time, and most entries of their bags with padding: 16 MB of floats at 16 dimensions."""
USER_INPUTS = ("history_items", "history_signals", "history_ages", "context", "user")
"""What a user tower may read, by the names of its ONNX inputs; see ``TowerInputs``."""


class UserTower:
    """The exported user tower on one thread.

    Attributes:
        inputs: which of ``USER_INPUTS`` it reads.

    Raises:
        ReleaseError: if the file is not a loadable ONNX model with the expected inputs.
    """

    def __init__(self, path: Path) -> None:
        self._session = open_onnx(path)
        self.inputs = tuple(entry.name for entry in self._session.get_inputs())
        if "history_items" not in self.inputs or not set(self.inputs) <= set(USER_INPUTS):
            raise ReleaseError(
                f"{path}: inputs {list(self.inputs)}, expected history_items and some of {list(USER_INPUTS)}"
            )

    def embed(self, inputs: TowerInputs) -> np.ndarray:
        """Return float32 queries ``[B, D]``, or ``[B, T, D]`` of a tower with T tastes a user."""
        named = inputs.named()
        query_BD: np.ndarray = self._session.run(["query"], {name: named[name] for name in self.inputs})[0]
        return query_BD


def ranker_query(query_BD: np.ndarray) -> np.ndarray:
    """Return float32 ``[B, D]``, the one vector per user that rankers read: the mean over tastes."""
    mean_BD: np.ndarray = query_BD if query_BD.ndim == 2 else query_BD.mean(axis=1)
    return mean_BD


class PortableItemTower:
    """The exported item tower on ONNX Runtime.

    Attributes:
        inputs: which of ``INPUTS`` it reads.
        n_rows: items that have an id embedding; later ones are embedded without.
        n_categories: categories that were trained; later ones of an item are ignored.
        n_words: buckets that words are hashed to, 0 where it reads none.

    Raises:
        ReleaseError: if the file is missing, or not such a tower.
    """

    def __init__(self, path: Path) -> None:
        self._session = open_onnx(path, threads=None)
        self.inputs = tuple(entry.name for entry in self._session.get_inputs())
        if not set(_ALWAYS) <= set(self.inputs) <= set(INPUTS):
            raise ReleaseError(
                f"{path}: inputs {list(self.inputs)}, expected {list(_ALWAYS)} and some of {list(INPUTS)}"
            )
        sizes = self._session.get_modelmeta().custom_metadata_map
        if missing := [name for name in SIZES if name not in sizes]:
            raise ReleaseError(f"{path}: its metadata lack {missing}, found {sorted(sizes)}")
        self.n_rows, self.n_categories, self.n_words = (int(sizes[name]) for name in SIZES)

    def embed(self, items: ItemTable, at_ms: int, named: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """Return the vectors float32 ``[N, D]`` of all items, and their content ``[N, K]``.

        Args:
            items: row = item index; the first ``n_rows`` are those of the training.
            at_ms: time at which the items' ages are taken; without effect on a tower that reads no ages.
            named: whether the items' ids are read; without, all of them are embedded as new items are.
        """
        bags = {"category_codes": (items.category_offsets, items.category_codes, self.n_categories)}
        if "word_codes" in self.inputs:
            bags["word_codes"] = (*hashed_words(items.title, self.n_words), self.n_words)
        ages_N = age_seconds(items.created_at_ms, at_ms)
        vectors, content = [], []
        widths_N = np.sum([np.diff(offsets) for offsets, _, _ in bags.values()], axis=0)
        with progress_of("embed items", len(widths_N), "item") as advance:
            for rows in blocks(widths_N):
                values = {name: padded_codes(*bag, rows) for name, bag in bags.items()}
                rows_B = np.arange(rows.start, rows.stop)
                values["item_rows"] = np.minimum(rows_B, self.n_rows) if named else np.full(len(rows_B), self.n_rows)
                values["duration_s"] = items.duration_s[rows].astype(np.float32)
                values["age_s"] = ages_N[rows]
                vectors_BD, content_BK = self._session.run(list(OUTPUTS), {name: values[name] for name in self.inputs})
                vectors.append(vectors_BD)
                content.append(content_BK)
                advance(len(vectors_BD))
        return np.concatenate(vectors), np.concatenate(content)


def item_tower_deviation(path: Path, items: ItemTable, vectors_ND: np.ndarray, at_ms: int) -> float:
    """Return how far the portable tower's vectors are from exported ones.

    It is relative to the largest number of the exported vectors where that is above 1.

    Args:
        path: of ``item_tower.onnx``.
        items: of the training.
        vectors_ND: float32, what training exported.
        at_ms: time of the exported vectors.
    """
    found_ND, _ = PortableItemTower(path).embed(items, at_ms)
    return float(np.abs(found_ND - vectors_ND).max() / max(1.0, np.abs(vectors_ND).max()))


def blocks(widths_N: np.ndarray) -> Iterator[slice]:
    """Yield slices of items that are embedded together, so that the padding of their bags stays bounded.

    Args:
        widths_N: int64, entries of each item's bags. An item wider than the bound is alone in its block.
    """
    start = 0
    while start < len(widths_N):
        widest = np.maximum.accumulate(widths_N[start : start + _BLOCK])
        fitting = int((widest * np.arange(1, len(widest) + 1) <= _ENTRIES).sum())
        yield slice(start, start + max(1, fitting))
        start += max(1, fitting)


def padded_codes(offsets: np.ndarray, codes: np.ndarray, padding: int, rows: slice) -> np.ndarray:
    """Return int64 ``[B, M]`` codes of the items in ``rows``; ``padding`` where there is no code or a larger one."""
    counts_B = np.diff(offsets[rows.start : rows.stop + 1])
    codes_BM = np.full((len(counts_B), max(1, int(counts_B.max(initial=0)))), padding, dtype=np.int64)
    own = codes[offsets[rows.start] : offsets[rows.stop]]
    codes_BM[np.arange(codes_BM.shape[1]) < counts_B[:, None]] = np.minimum(own, padding)
    return codes_BM
