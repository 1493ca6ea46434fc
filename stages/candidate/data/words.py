"""The words of items' titles as table rows.

Shapes: N items.
"""

from __future__ import annotations

import re
import zlib

import numpy as np

from stages.contracts.ragged import row_offsets

_WORD = re.compile(r"\w+")


def hashed_words(titles: np.ndarray, n_buckets: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct words of each title as buckets: offsets int64 ``[N + 1]`` and codes int64.

    A word is a run of letters, digits and underscores, in lower case; its bucket is the CRC-32 of its
    UTF-8 bytes modulo ``n_buckets`` (feature hashing, Weinberger et al., 2009). So no vocabulary is needed for
    words that no training item has. Words that share a bucket share a row.
    """
    if n_buckets == 0:
        return np.zeros(len(titles) + 1, dtype=np.int64), np.zeros(0, dtype=np.int64)
    bags = [
        sorted({zlib.crc32(word.encode()) % n_buckets for word in _WORD.findall(title.lower())}) for title in titles
    ]
    offsets = row_offsets([len(bag) for bag in bags])
    return offsets, np.array([code for bag in bags for code in bag], dtype=np.int64)
