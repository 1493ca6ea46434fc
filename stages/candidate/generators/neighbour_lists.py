"""Neighbours of items that are learned once: from what users did (EASE, implicit ALS), and from what items are.

Legend: U users, N items, B rows of a block, V words and categories, E neighbours of all items.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator

import numpy as np
from scipy import sparse
from tqdm import tqdm

from stages.candidate.generators.config import SourcesConfig
from stages.candidate.generators.files import Neighbours
from stages.candidate.linear.models import Ease, ImplicitAls
from stages.contracts.ragged import row_offsets
from stages.contracts.snapshot import ItemTable
from stages.contracts.top_k import top_k

_BLOCK = 256
_WORD = re.compile(r"\w+")

Row = tuple[np.ndarray, np.ndarray]


def fitted_neighbours(
    name: str, history_UN: sparse.csr_matrix, config: SourcesConfig, allowed: np.ndarray
) -> Neighbours:
    """Fit a model of the user-item matrix and keep each item's best neighbours.

    An item's neighbours are what the model answers a history of that item alone with. Of EASE that is its row of
    weights, and their sum over a history is EASE's own score, but for what was cut. Of implicit ALS it is the folded-in
    answer, and the sum over a history approximates folding all of it in, which would take a D x D system a request.

    Args:
        name: ``ease`` or ``ials``.
        history_UN: from ``touch_matrix``.
        config: settings of the model, and how many neighbours are kept.
        allowed: int64 items that may be named.

    Raises:
        ConfigError: if the catalogue is too large for EASE; the message says what to do.
        DataError: if there are no touches.
    """
    if name == "ease":
        model: Ease | ImplicitAls = Ease.fit(history_UN, config.ease.regularisation, config.ease.memory_gb)
    else:
        settings = config.ials
        model = ImplicitAls.fit(
            history_UN,
            settings.factors,
            settings.confidence,
            settings.regularisation,
            settings.iterations,
            settings.seed,
        )
    items = history_UN.shape[1]
    known = np.diff(history_UN.tocsc().indptr) > 0
    closed = np.ones(items, dtype=bool)
    closed[allowed] = False
    alone_NN = sparse.identity(items, dtype=np.float64, format="csr")

    def rows() -> Iterator[Row]:
        for start in tqdm(range(0, items, _BLOCK), name, disable=None, leave=False, file=sys.stderr):
            scores_BN = model.score(alone_NN[start : start + _BLOCK])
            scores_BN[:, closed] = 0
            for item, scores in enumerate(scores_BN, start=start):
                scores[item] = 0
                found = np.flatnonzero(scores > 0) if known[item] else np.zeros(0, dtype=np.int64)
                yield _cut(found, scores[found], found, config.neighbours)

    return _as_arrays(rows())


def content_neighbours(items: ItemTable, neighbours: int, allowed: np.ndarray) -> Neighbours:
    """Return the items that share categories and words of the title, by cosine of tf-idf vectors.

    Each word and category of an item weighs 1 + ln(N / items that have it) (Salton and Buckley, 1988). Equally similar
    items are told apart by how close to the item's their creation was, then by item index: items of the same
    categories are many, and what is of its time is nearer.

    Args:
        items: the catalogue, N.
        neighbours: kept an item.
        allowed: int64 items that may be named.
    """
    content_NV = _content(items)
    others_VN = content_NV[allowed].T.tocsr()

    def rows() -> Iterator[Row]:
        for start in tqdm(range(0, len(items), _BLOCK), "content", disable=None, leave=False, file=sys.stderr):
            cosine_BN = (content_NV[start : start + _BLOCK] @ others_VN).tocsr()
            for item in range(start, start + cosine_BN.shape[0]):
                cells = slice(*cosine_BN.indptr[item - start : item - start + 2])
                found, cosine = allowed[cosine_BN.indices[cells]], cosine_BN.data[cells]
                other = found != item
                found, cosine = found[other], cosine[other]
                apart_ms = np.abs(items.created_at_ms[found] - items.created_at_ms[item])
                yield _cut(found, cosine, np.lexsort((found, apart_ms)).argsort(), neighbours)

    return _as_arrays(rows())


def _content(items: ItemTable) -> sparse.csr_matrix:
    """Return unit tf-idf vectors, float32 ``[N, V]``; zeros for an item without words or categories."""
    numbers: dict[str, int] = {}
    rows, columns = [], []
    for item, title in enumerate(items.title):
        for word in set(_WORD.findall(str(title).lower())):
            rows.append(item)
            columns.append(numbers.setdefault(word, len(numbers)) + items.n_categories)
    owners = np.repeat(np.arange(len(items)), np.diff(items.category_offsets))
    rows_E = np.concatenate([owners, np.array(rows, dtype=np.int64)])
    columns_E = np.concatenate([items.category_codes.astype(np.int64), np.array(columns, dtype=np.int64)])
    shape = len(items), items.n_categories + len(numbers)
    held = sparse.csr_matrix((np.ones(len(rows_E)), (rows_E, columns_E)), shape=shape)
    held.data[:] = 1.0  # a category that is listed twice counts once
    weights_V = 1.0 + np.log(len(items) / np.maximum(np.bincount(held.indices, minlength=shape[1]), 1))
    held.data = weights_V[held.indices]
    norms_N = np.sqrt(np.asarray(held.multiply(held).sum(axis=1)).ravel())
    scaled = sparse.diags(1.0 / np.maximum(norms_N, 1e-12)) @ held
    return scaled.tocsr().astype(np.float32)


def _cut(found: np.ndarray, weights: np.ndarray, ties: np.ndarray, keep: int) -> Row:
    """Return the ``keep`` strongest neighbours, the best first, equal ones by ``ties``.

    Rounded, so that how a sum was ordered decides no tie.
    """
    order = top_k(np.round(weights, 6), keep, ties)
    return found[order], weights[order]


def _as_arrays(rows: Iterator[Row]) -> Neighbours:
    """Join the rows of all items."""
    pieces = list(rows)
    offsets = row_offsets([len(found) for found, _ in pieces])
    items = np.concatenate([np.zeros(0, dtype=np.int64), *(found for found, _ in pieces)])
    weights = np.concatenate([np.zeros(0, dtype=np.float32), *(weights for _, weights in pieces)])
    return offsets, items.astype(np.int32), weights.astype(np.float32)
