"""Find pairs of similar documents: candidates by MinHash LSH, each verified by its exact Jaccard similarity.

MinHash: Broder, "On the resemblance and containment of documents", 1997. Banding: Leskovec, Rajaraman
and Ullman, "Mining of Massive Datasets", section 3.4. The library ``rensa`` does both.

Shapes: N documents, P pairs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Literal

import numpy as np
from rensa import RMinHash, RMinHashLSH

from stages.contracts.ragged import ranges

_PERMUTATIONS = 192
_SEED = 42
_MISSED = 0.01
_DOCUMENTS = 20_000
_PAIRS = 500_000
_GRAM = 4
_ROMAN = re.compile(r"(?=[ivx]{2,}|v$|x$)x{0,3}(ix|iv|v?i{0,3})")

Shingles = Literal["words", "characters"]


def numbers(title: str) -> tuple[str, ...]:
    """Return the sorted numbers in a normalised title: words with a digit, and Roman numerals except I."""
    words = (word for word in title.split() if _ROMAN.fullmatch(word) or any(map(str.isdigit, word)))
    return tuple(sorted(words))


def shingles(document: str, kind: Shingles) -> frozenset[str]:
    """Return the words of a normalised document, or all of its four-character substrings."""
    if kind == "words":
        return frozenset(document.split())
    padded = f" {document} "
    return frozenset(padded[start : start + _GRAM] for start in range(max(1, len(padded) - _GRAM + 1)))


def jaccard(left: frozenset[str], right: frozenset[str]) -> float:
    """Return the Jaccard similarity: the share of common members among all; 0 for two empty sets."""
    common = len(left & right)
    return common / (len(left) + len(right) - common) if common else 0.0


def bands(threshold: float) -> int:
    """Return the smallest number of bands that misses at most 1% of the pairs at ``threshold``."""
    choices = (n for n in range(4, _PERMUTATIONS + 1) if _PERMUTATIONS % n == 0)
    return next(n for n in choices if (1 - threshold ** (_PERMUTATIONS // n)) ** n <= _MISSED)


def similar_pairs(
    documents: Sequence[str], keys: Sequence[tuple[str, ...]], threshold: float, floor: float, kind: Shingles
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return pairs of documents with equal keys and a Jaccard similarity of at least ``floor``.

    A pair at the threshold is missed with a probability of at most 1%; below the threshold more are missed.

    Args:
        documents: N normalised texts; an empty one is similar to no other.
        keys: N keys; documents with different keys are never compared.
        threshold: similarity for which the number of bands is chosen.
        floor: lowest similarity that is returned.
        kind: shingles to compare.

    Returns:
        int64 ``[P]`` and int64 ``[P]`` positions, the first above the second; float64 ``[P]`` similarities.
    """
    index = RMinHashLSH(threshold, _PERMUTATIONS, bands(threshold))
    sets = _Sets()
    found = []
    for start in range(0, len(documents), _DOCUMENTS):
        end = start + _DOCUMENTS
        # The key is part of every shingle, so a series of a thousand numbered titles does not fill one bucket.
        marked = [
            [f"{'/'.join(key)}:{word}" for word in shingles(text, kind)] if text else [f"empty {start + row}"]
            for row, (text, key) in enumerate(zip(documents[start:end], keys[start:end], strict=True))
        ]
        sets.add(marked)
        hashes = RMinHash.from_token_sets(marked, _PERMUTATIONS, _SEED)
        index.insert_many(hashes, start)
        for left, right in _candidates(index.query_all(hashes), start):
            similarity = sets.jaccard(left, right)
            kept = similarity >= floor
            found.append((left[kept], right[kept], similarity[kept]))
    if not found:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
    first, second, similarity = (np.concatenate(column) for column in zip(*found, strict=True))
    return first, second, similarity


def _candidates(answers: Sequence[Sequence[int]], start: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    sizes = np.fromiter(map(len, answers), np.int64, len(answers))
    left = np.repeat(np.arange(start, start + len(answers)), sizes)
    right = np.fromiter(chain.from_iterable(answers), np.int64, int(sizes.sum()))
    earlier = right < left
    left, right = left[earlier], right[earlier]
    for at in range(0, len(left), _PAIRS):
        yield left[at : at + _PAIRS], right[at : at + _PAIRS]


class _Sets:
    """Sets of words as sorted integers, one after the other."""

    def __init__(self) -> None:
        self._codes: dict[str, int] = {}
        self._values = np.zeros(1 << 16, np.int32)
        self._offsets = np.zeros(1, np.int64)

    def add(self, sets: Sequence[Sequence[str]]) -> None:
        codes = self._codes
        flat = np.fromiter((codes.setdefault(word, len(codes)) for words in sets for word in words), np.int32)
        end = int(self._offsets[-1])
        if end + len(flat) > len(self._values):
            self._values = np.concatenate([self._values[:end], np.zeros(end + 2 * len(flat), np.int32)])
        self._values[end : end + len(flat)] = flat
        sizes = np.fromiter(map(len, sets), np.int64, len(sets))
        self._offsets = np.concatenate([self._offsets, end + np.cumsum(sizes)])

    def jaccard(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Return float64 ``[P]``; both sets of a pair are sorted together, and equal neighbours are counted."""
        pairs = np.concatenate([np.arange(len(left)), np.arange(len(right))])
        rows = np.concatenate([left, right])
        sizes = np.diff(self._offsets)[rows]
        values = self._values[ranges(self._offsets[rows], sizes)].astype(np.int64)
        # The pair is in the upper 32 bits, the member in the lower 32.
        joined = np.sort((np.repeat(pairs, sizes) << 32) | values)
        twice = joined[1:][joined[1:] == joined[:-1]] >> 32
        common = np.bincount(twice, minlength=len(left))
        total = np.bincount(pairs, weights=sizes, minlength=len(left))
        return common / (total - common)
